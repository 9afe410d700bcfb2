"""What a run does when spread over two processes: what each of them executes, and how they are started."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.training.trainer import train


def run(model, folder=None, **changes):
    loaders = changes.pop("loaders", None) or tiny.loaders()
    recipe = changes.pop("recipe", tiny.recipe())
    return train(model, *loaders, load_metric("accuracy"), recipe, folder, cpu=True, **changes)


def end_of(model):
    return [value.tolist() for value in model.state_dict().values()] + [torch.get_rng_state().sum().item()]


def forked(function: Callable[..., None], *arguments: object) -> int:
    """Call a function in a fork of this process, which has the imports; returns the fork's number."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def spread(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in two forks, with what torchrun would set in their environments as last argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    children = [forked(function, *arguments, group | {"RANK": r, "LOCAL_RANK": r}) for r in ("0", "1")]
    if sum(os.waitpid(child, 0)[1] for child in children):
        sys.exit(f"a process of two failed: {function.__name__} of {arguments}")


def one_process(folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    plain = tiny.model(seed=PartialState(cpu=True).process_index, dropout=0.0)
    record = run(plain)
    own_record = run(tiny.model(dropout=0.0), loaders=tiny.own_loaders())
    try:
        run(tiny.model(), loaders=tiny.loaders(batch_size=9), recipe=tiny.recipe(batch_size=9))
        refusal = None
    except ValueError as error:
        refusal = str(error)

    whole = tiny.model()
    whole_record = run(whole, folder / "whole", checkpoint_every=3)
    expected = end_of(whole)
    torch.manual_seed(0)
    with contextlib.suppress(KeyboardInterrupt):
        run(tiny.Interrupted(), folder / "part", checkpoint_every=3)
    resumed = tiny.model()
    resumed_record = run(resumed, folder / "part", checkpoint_every=3, resume=True)
    same = gather_object([end_of(resumed) == expected and resumed_record.steps == whole_record.steps])

    if PartialState().is_main_process:
        save_file(tiny.weights(plain), folder / "weights.safetensors")
        told = {
            "record": record.to_dict(),
            "refusal": refusal,
            "resumed": same,
            "own": own_record.steps,
        }
        (folder / "told.json").write_text(json.dumps(told))
    PartialState().destroy_process_group()
