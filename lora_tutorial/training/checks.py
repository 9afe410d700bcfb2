"""Before the first step: what is refused, what is seeded, and accelerate's object for the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lora_tutorial.training.recipes import Recipe, with_defaults
from lora_tutorial.training.records import RunRecord


def stream_seed(seed: int, purpose: str) -> int:
    """An independent seed for one purpose: the numbers that drew the adapters must not draw dropout again."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1)[0])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters as AdamW's groups: matrices with weight decay, vectors without.

    Vectors are biases and LayerNorm gains. Decay bounds the size of a product; pulling an offset or a gain
    of 1 towards zero bounds nothing.
    """
    trainable = [value for value in model.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trainable if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trainable if value.ndim < 2], "weight_decay": 0.0},
    ]


def check_inputs(
    model: nn.Module,
    train_loader: DataLoader,
    recipe: Recipe,
    output_dir: str | os.PathLike[str] | None,
    checkpoint_every: int | None,
    log_with: Sequence[str],
) -> None:
    """Raise ``ValueError`` for whatever could only fail, or mislead, later."""
    parameters = list(model.parameters())
    if not any(value.requires_grad for value in parameters):
        raise ValueError("The model has no trainable parameter: inject adapters or unfreeze something first.")
    if any(value.is_meta for value in parameters):
        raise ValueError(
            'The model has weights on the "meta" device, which hold no numbers: load real weights.'
        )
    if isinstance(train_loader.dataset, IterableDataset):
        raise ValueError("The training data have no length: give a data set that can be indexed.")
    examples = len(train_loader.dataset)
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
    if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
        raise ValueError(
            f"checkpoint_every={checkpoint_every!r}: give a number of steps of at least 1, or None."
        )
    if output_dir is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every needs an output_dir to write to.")
    if output_dir is not None and not _order_is_reproducible(train_loader):
        raise ValueError(
            f"{type(train_loader.sampler).__name__} draws an order that cannot be drawn again after an "
            f"interruption: use shuffle=True, or a sampler with set_epoch."
        )
    check_trackers(log_with)
    if log_with and output_dir is None:
        raise ValueError("Trackers need an output_dir for their files.")


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
    return loader.batch_size if loader.batch_size is not None else loader.batch_sampler.batch_size


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
    return _flat({"recipe": recipe, "config": record.config, "seed": record.seed} | record.identity)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # what JSON makes of it: a tuple comes back as a list
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def make_accelerator(
    recipe: Recipe, seed: int, folder: Path | None, log_with: Sequence[str], cpu: bool
) -> Accelerator:
    """Accelerate's object for one run: global batches are split, and the order of the data is seeded."""
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != recipe.mixed_precision:
        # It outlives a run, and would refuse another precision in the same process.
        AcceleratorState._reset_state()
    return Accelerator(
        cpu=cpu,
        mixed_precision=recipe.mixed_precision,
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=stream_seed(seed, "order")
        ),
        # A pooler that no output reads gets no gradient; DDP waits for it for ever unless told.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(log_with) or None,
        project_dir=folder / "logs" if folder is not None else None,
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
