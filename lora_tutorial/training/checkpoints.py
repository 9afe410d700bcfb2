"""Checkpoints of a run in progress: complete or absent, checked by hash, without pickle.

A checkpoint is a folder ``step-00000042`` with ``tensors.safetensors`` (every tensor), ``state.json`` (the
rest) and ``manifest.json`` (the SHA-256 of both). It is filled under another name and renamed when complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import gather_object
from torch import Tensor, nn

from lora_tutorial.storage.files import atomic_folder, atomic_write_json, sha256_of
from lora_tutorial.training.processes import shared_like, whole

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class CheckpointError(OSError):
    """A checkpoint or the record of a run could not be written."""


class Checkpoint(NamedTuple):
    """What was saved after one optimiser step: named tensors, and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    folder: Path


def save_checkpoint(
    parent: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of ``step`` under ``parent``, then remove all but the ``keep`` latest up to it.

    Parameters
    ----------
    parent
        Folder of the run's checkpoints, made if need be.
    step
        Optimiser steps done.
    tensors
        Any shapes and types safetensors holds; moved to the CPU.
    values
        JSON values; NaN and infinity are refused.
    keep
        How many to keep. Two: the one before is there when the newest turns out damaged.
    """
    parent = Path(parent)
    with atomic_folder(parent / f"step-{step:08d}") as folder:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, folder / TENSORS)
        atomic_write_json(folder / STATE, dict(values))
        hashes = {name: sha256_of(folder / name) for name in (TENSORS, STATE)}
        atomic_write_json(folder / MANIFEST, {"format": FORMAT, "step": step, "sha256": hashes})
    # Newer folders can only be damaged ones; they are replaced when the run gets there again.
    for old in [path for path in _folders(parent) if _step(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return parent / f"step-{step:08d}"


@contextlib.contextmanager
def explained(what: str, folder: Path, last: Path | None) -> Iterator[None]:
    """Turn what the system says of a failed write in ``folder`` into a sentence about the run.

    Raises
    ------
    CheckpointError
        If the block raises `OSError`, or safetensors its own error.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{what} could not be saved in {folder}: {reason}. Make room there, or choose another folder, "
            f"and resume. Last complete checkpoint: {last or 'none yet'}."
        ) from error


def resume_point(output_dir: str | os.PathLike[str]) -> int | None:
    """The optimiser step that resuming in ``output_dir`` would go on from; ``None`` for nothing to resume.

    Reads every byte of the newest complete checkpoint, and no model or data.
    """
    with warnings.catch_warnings(action="ignore"):  # `train` tells of damaged ones
        saved = latest_checkpoint(Path(output_dir) / "checkpoints")
    return None if saved is None else saved.step


def latest_checkpoint(parent: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest complete checkpoint under ``parent``, or ``None``.

    A damaged one (cut short, altered, a file missing) is passed over with a warning that names it, in favour
    of the one before it.
    """
    for folder in reversed(_folders(Path(parent))):
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            warnings.warn(
                f"Checkpoint {folder} is damaged ({error}); going back to the one before.", stacklevel=2
            )
    return None


def remove_leftovers(parent: str | os.PathLike[str]) -> None:
    """Remove what a kill in the middle of a write left under ``parent`` (hidden, never complete)."""
    for path in Path(parent).glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _folders(parent: Path) -> list[Path]:
    return sorted((path for path in parent.glob("step-*") if path.name[5:].isdigit()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _read(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT or manifest["step"] != _step(folder):
        raise ValueError(f"its manifest is of format {manifest['format']} and step {manifest['step']}")
    for name in (TENSORS, STATE):
        if sha256_of(folder / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} does not match its hash")
    values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Checkpoint(manifest["step"], safetensors.torch.load_file(folder / TENSORS), values, folder)


# ---- what a run is made of: weights, optimiser, random numbers ----


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Whatever training can change: trainable parameters, and the buffers a state dict would hold."""
    kept = set(model.state_dict(keep_vars=True))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return trained | {name: value for name, value in model.named_buffers() if name in kept}


def model_tensors(model: nn.Module, part: str = "model") -> dict[str, Tensor]:
    """Tensors ``<part>.<name>`` of the trainable parameters and persistent buffers, whole even if sharded."""
    return {f"{part}.{name}": whole(value) for name, value in _state_of(model).items()}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], part: str = "model") -> None:
    """Copy the tensors of :func:`model_tensors` back; every name must be there, in the same shape.

    Raises
    ------
    ValueError
        If the names or a shape differ.
    """
    target, given = _state_of(model), _part(tensors, f"{part}.")
    if set(target) != set(given):
        raise ValueError(
            f"The checkpoint holds other weights than the model: {sorted(set(target) ^ set(given))[:4]}."
        )
    with torch.no_grad():
        for name, value in target.items():
            if value.shape != given[name].shape:
                shapes = f"{tuple(given[name].shape)}, the model's {tuple(value.shape)}"
                raise ValueError(f"The checkpoint's {name} is of shape {shapes}.")
            value.copy_(shared_like(given[name], value))


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters in its own order, which its state dict numbers."""
    names = {id(value): name for name, value in model.named_parameters()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors ``optimizer.<parameter>|<key>``: AdamW's step, exp_avg and exp_avg_sq."""
    names, state = _named(model, optimizer), optimizer.state_dict()["state"]
    return {
        f"optimizer.{names[i]}|{key}": whole(value)
        for i, item in state.items()
        for key, value in item.items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of :func:`optimizer_tensors` back; the learning rates are the scheduler's."""
    index = {name: i for i, name in enumerate(_named(model, optimizer))}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        parameter, _, key = name.rpartition("|")
        like = parameters[parameter]
        value = shared_like(value, like) if value.shape == like.shape else value  # the count of steps is not
        state.setdefault(index[parameter], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of all generators: Python's, NumPy's, torch's and of the current CUDA or MPS device."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()
    kind, key, position, has_gauss, cached = state
    tensors = {
        "python": torch.tensor(words),  # (625,) int64
        "numpy": torch.tensor(key.astype(np.int64)),  # (624,)
        "torch": torch.get_rng_state(),  # (5056,) uint8
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return tensors, {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}


def restore_random(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put every generator of :func:`random_state` back where it was."""
    version, gauss = values["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])


def run_state(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    scheduler: AcceleratedScheduler,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint holds of a run: the tensors, and the JSON values beside them.

    Every process must call it: the generators of all are in it, as ``random.<process>.<generator>``.
    """
    states = gather_object([random_state()])
    tensors = model_tensors(model) | optimizer_tensors(model, optimizer)
    for process, (generators, _) in enumerate(states):
        tensors |= {f"random.{process}.{name}": value for name, value in generators.items()}
    scaler = accelerator.scaler
    values = {
        "random": [rest for _, rest in states],
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    return tensors, values


def restore_run(
    saved: Checkpoint,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    scheduler: AcceleratedScheduler,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put back what `run_state` took, but for this process's generators, which are returned.

    Give those to `restore_random` right before the next batch is drawn: preparing the loader draws as well.
    A process that was not there when the checkpoint was written goes on with its own.
    """
    restore_model(model, saved.tensors)
    restore_optimizer(model, optimizer, saved.tensors)
    scheduler.load_state_dict(saved.values["scheduler"])
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate  # the scheduler's own state does not reach the optimiser
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(saved.values["scaler"])
    process = accelerator.process_index
    if process >= len(saved.values["random"]):
        return random_state()
    return _part(saved.tensors, f"random.{process}."), saved.values["random"][process]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
