"""Read the two files of an adapter in PEFT's format, and refuse what is damaged or does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors in a folder that PEFT or `export_peft` wrote."""
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file() and name == TENSORS
            hint = (
                " The pickled adapter_model.bin can run code and is not read: save it again as safetensors."
            )
            raise FileNotFoundError(
                f"{folder} is no PEFT adapter: {name} is missing.{hint if pickled else ''}"
            )
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"The adapter in {folder} is damaged: {error}. Copy or train it again.") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ValueError(f"{folder} holds a {kind!r} adapter; only 'LORA' can be imported.")
    return settings, _without_doubles(tensors)


def _without_doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With ``bias="all"`` PEFT writes biases in whole modules up to three times; keep the one that counts."""
    kept = {}
    for name, value in tensors.items():
        # "x.modules_to_save.bias" repeats "x.bias", "x.modules_to_save.<adapter>.dense.bias" "x.dense.bias".
        single = {
            re.sub(pattern, ".", name) for pattern in (r"\.modules_to_save\.", r"\.modules_to_save\.[^.]+\.")
        }
        double = next((tensors[s] for s in single - {name} if s in tensors), None)
        if double is not None and not torch.equal(double, value):
            raise ValueError(
                f"{name} is in the file twice with two values; it is damaged. Save the adapter again."
            )
        if double is None and ".original_module." not in name:
            kept[name] = value
    return kept


def check_tensors(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Refuse a file whose names and shapes are not those of ``own``, or whose numbers are not finite."""
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"The file does not fit its settings on this base: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}."
        )
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise ValueError(
                f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(value.shape)} is needed."
            )
        if not tensors[name].is_floating_point() or not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds an infinity, NaN or whole numbers; train the adapter again.")
