"""What a run does when spread over processes. Usage: torchrun --nproc_per_node 2 two_processes.py FOLDER."""

import contextlib
import json
import sys
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


def main() -> None:
    folder = Path(sys.argv[1])
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


if __name__ == "__main__":
    main()
