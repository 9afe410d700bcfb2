"""Before the first step: what is refused, what is seeded, and accelerate's object for the run."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
from collections.abc import Mapping, Sequence, Sized
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.training.bfloat16 import add_up_in_float32, has_bfloat16
from lora_tutorial.training.processes import stays_on_cpu
from lora_tutorial.training.recipes import Recipe, RunOptions, with_defaults
from lora_tutorial.training.records import RunRecord, describe_hardware


def stream_seed(seed: int, purpose: str) -> int:
    """An independent seed for one purpose: the numbers that drew the adapters must not draw dropout again."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1)[0])


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, in the model's order."""
    return [value for value in model.parameters() if value.requires_grad]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters as AdamW's groups: matrices with weight decay, vectors without.

    Vectors are biases and LayerNorm gains. Decay bounds the size of a product; pulling an offset or a gain
    of 1 towards zero bounds nothing.
    """
    return [
        {"params": [value for value in trainable(model) if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trainable(model) if value.ndim < 2], "weight_decay": 0.0},
    ]


def check_model(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that has nothing to train, or weights that are no numbers."""
    if not trainable(model):
        raise ValueError("The model has no trainable parameter: inject adapters or unfreeze something first.")
    for name, value in model.named_parameters():
        if value.is_meta:
            raise ValueError(
                'The model has weights on the "meta" device, which hold no numbers: load real weights.'
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"The model's {name} has values that are NaN or infinite before training: load or make the "
                "model again."
            )


def check_loaders(train_loader: DataLoader, eval_loader: DataLoader | None, recipe: Recipe) -> None:
    """Raise ``ValueError`` for data that are empty, without a length, or not what the recipe says."""
    if isinstance(train_loader.dataset, IterableDataset):
        raise ValueError("The training data have no length: give a data set that can be indexed.")
    examples = len(cast(Sized, train_loader.dataset))
    if len(train_loader) == 0:
        raise ValueError(f"The training loader yields no batch from {examples} examples.")
    if batch_size(train_loader) != recipe.batch_size:
        raise ValueError(
            f"The training loader has batches of {batch_size(train_loader)}, recipe {recipe.name!r} "
            f"of {recipe.batch_size}: use batch_size=recipe.batch_size."
        )
    if recipe.max_examples is not None and examples > recipe.max_examples:
        raise ValueError(
            f"Recipe {recipe.name!r} trains on at most {recipe.max_examples} examples, given {examples}: "
            f"take recipe.subset({examples}, seed)."
        )
    if eval_loader is not None and len(eval_loader) == 0:
        raise ValueError("The held-out loader yields no batch: give it examples, or None for no scores.")


def check_held_out(recipe: Recipe, scored: bool) -> None:
    """Raise ``ValueError`` if the recipe looks at held-out scores that the run will not have."""
    if not scored and (recipe.patience is not None or recipe.keep_best):
        raise ValueError(
            "patience and keep_best need held-out scores: give eval_loader and metric, or scorer."
        )


def check_folder(
    output_dir: str | os.PathLike[str] | None, train_loader: DataLoader, options: RunOptions
) -> None:
    """Raise ``ValueError`` for what a run can keep in no folder, or not take up again from one."""
    check_trackers(options.log_with)
    if output_dir is None:
        if options.checkpoint_every is not None:
            raise ValueError("checkpoint_every needs an output_dir to write to.")
        if options.log_with:
            raise ValueError("Trackers need an output_dir for their files.")
    elif not _order_is_reproducible(train_loader):
        raise ValueError(
            f"{type(train_loader.sampler).__name__} draws an order that cannot be drawn again after an "
            f"interruption: use shuffle=True, or a sampler with set_epoch."
        )


def check_scores(scores: Mapping[str, float], recipe: Recipe, step: int) -> None:
    """Raise ``ValueError`` for a score that is no number, or for none where the recipe looks at them."""
    check_held_out(recipe, bool(scores))
    for name, value in scores.items():
        if not math.isfinite(value):
            raise ValueError(f"The score {name} at step {step} is {value}: look at the held-out examples.")


def check_trackers(log_with: Sequence[str]) -> None:
    """Raise ``ValueError`` for a tracker that accelerate does not have here."""
    available = [str(name.value if hasattr(name, "value") else name) for name in get_available_trackers()]
    for name in log_with:
        if name not in available:
            raise ValueError(
                f"Tracker {name!r} is unknown or not installed; here: {', '.join(available) or 'none'}."
            )


def batch_size(loader: DataLoader) -> int:
    """Examples in a batch of ``loader``, also where a batch sampler of the caller's decides."""
    return cast(Any, loader if loader.batch_size is not None else loader.batch_sampler).batch_size


def check_split(processes: int, *loaders: DataLoader | None) -> None:
    """Raise ``ValueError`` where a global batch cannot be shared out equally."""
    for loader in loaders:
        if loader is not None and batch_size(loader) % processes:
            raise ValueError(
                f"A batch of {batch_size(loader)} cannot be split over {processes} processes. Batch sizes "
                f"are global: choose one that {processes} divides."
            )


def _order_is_reproducible(loader: DataLoader) -> bool:
    samplers = (loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    plain = isinstance(loader.sampler, (SequentialSampler, RandomSampler)) and loader.batch_size is not None
    return plain or any(hasattr(sampler, "set_epoch") for sampler in samplers)


def model_identity(model: nn.Module) -> dict[str, str]:
    """Two hashes that tell a model from another: what trains and in which shapes, and the frozen weights."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    shapes = [(name, *value.shape) for name, value in trained.items()]
    return {
        "trainable_shapes_sha256": sha256(str(shapes).encode()).hexdigest(),
        "frozen_sha256": parameters_hash(model, without=trained),
    }


def check_identity(theirs: RunRecord, ours: RunRecord, where: Path) -> None:
    """Raise ``ValueError`` if what is in ``where`` comes from another configuration, saying what differs."""
    there, here = _identity(theirs), _identity(ours)
    differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if differing:
        told = "; ".join(
            f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{where} is of another configuration: {told}{more}. "
            f"Give it the same configuration, or choose another folder."
        )


def _identity(record: RunRecord) -> dict[str, Any]:
    recipe = with_defaults(record.recipe)
    # any number of processes learns the same, and may go on with what another number began
    identity = {key: value for key, value in record.identity.items() if key != "processes"}
    return _flat({"recipe": recipe, "config": record.config, "seed": record.seed} | identity)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # what JSON makes of it: a tuple comes back as a list
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def make_accelerator(recipe: Recipe, seed: int, folder: Path | None, options: RunOptions) -> Accelerator:
    """Accelerate's object for one run: global batches are split, and the order of the data is seeded."""
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != recipe.mixed_precision:
        # It outlives a run, and would refuse another precision in the same process.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=stays_on_cpu(options.cpu),
        mixed_precision=recipe.mixed_precision,
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=stream_seed(seed, "order")
        ),
        # A pooler that no output reads gets no gradient; DDP waits for it for ever unless told.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(options.log_with) or None,
        project_dir=folder / "logs" if folder is not None else None,
    )
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # accelerate trains in full precision there, and the record would say otherwise
        raise ValueError('mixed_precision="fp16" needs a GPU: on the CPU use "bf16" or "no".')
    if recipe.mixed_precision == "bf16" and accelerator.device.type == "cpu" and not has_bfloat16():
        add_up_in_float32()
    return accelerator


def new_record(
    model: nn.Module,
    accelerator: Accelerator,
    recipe: Recipe,
    seed: int,
    config: Mapping[str, Any] | None,
    data: Mapping[str, int],
) -> RunRecord:
    """The record of a run that is about to begin; ``data`` counts its examples and its steps in an epoch."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    processes = accelerator.num_processes
    return RunRecord(
        config=dict(config or {}),
        recipe=recipe.to_dict(),
        seed=seed,
        identity={**data, "processes": processes, **model_identity(model)},
        trainable_parameters=sum(value.numel() for value in trainable(model)),
        total_parameters=sum(value.numel() for value in model.parameters()),
        device=str(device),
        processes=processes,
        mixed_precision=recipe.mixed_precision,
        hardware=describe_hardware(torch.get_num_threads(), name),
    )


def peak_memory(device: torch.device) -> int | None:
    """Highest memory so far in bytes: allocated on a CUDA device, otherwise resident; ``None`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def count_memory_anew() -> None:
    """Let the next peak be that of the next run: the process would otherwise report its highest so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets the peak resident set
