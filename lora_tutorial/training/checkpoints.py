"""Checkpoints of a run in progress: complete or absent, checked by hash, without pickle.

A checkpoint is a folder ``step-00000042`` with ``tensors.safetensors`` (every tensor), ``state.json`` (the
rest) and ``manifest.json`` (the SHA-256 of both). It is filled under another name and renamed when complete.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from lora_tutorial.storage.files import atomic_folder, atomic_write_json, sha256_of

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


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


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors ``model.<name>`` of the trainable parameters and persistent buffers."""
    return {f"model.{name}": value for name, value in _state_of(model).items()}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of :func:`model_tensors` back; every name must be there, in the same shape.

    Raises
    ------
    ValueError
        If the names or a shape differ.
    """
    target, given = _state_of(model), _part(tensors, "model.")
    if set(target) != set(given):
        raise ValueError(
            f"The checkpoint holds other weights than the model: {sorted(set(target) ^ set(given))[:4]}."
        )
    with torch.no_grad():
        for name, value in target.items():
            if value.shape != given[name].shape:
                shapes = f"{tuple(given[name].shape)}, the model's {tuple(value.shape)}"
                raise ValueError(f"The checkpoint's {name} is of shape {shapes}.")
            value.copy_(given[name])


def _named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters in its own order, which its state dict numbers."""
    names = {id(value): name for name, value in model.named_parameters()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors ``optimizer.<parameter>|<key>``: AdamW's step, exp_avg and exp_avg_sq."""
    names, state = _named(model, optimizer), optimizer.state_dict()["state"]
    return {f"optimizer.{names[i]}|{key}": value for i, item in state.items() for key, value in item.items()}


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of :func:`optimizer_tensors` back; the learning rates are the scheduler's."""
    index = {name: i for i, name in enumerate(_named(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        parameter, _, key = name.rpartition("|")
        state.setdefault(index[parameter], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This process's generators: Python's, NumPy's and torch's (and of the current CUDA or MPS device)."""
    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state()
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


def random_part(tensors: Mapping[str, Tensor], process: int) -> dict[str, Tensor]:
    """The tensors ``random.<process>.<generator>`` of one process."""
    return _part(tensors, f"random.{process}.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
