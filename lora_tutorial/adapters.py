"""Save what was trained, and nothing else; load it into the base it was trained on, and no other."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_tutorial.config import LoraConfig
from lora_tutorial.inject import inject_lora
from lora_tutorial.merging import lora_modules
from lora_tutorial.storage import atomic_folder, atomic_write_json

FORMAT = 1
TENSORS, SETTINGS = "adapter.safetensors", "adapter.json"


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything the adapter consists of: LoRA factors and whatever else trains, by name."""
    factors = {id(f) for _, m in lora_modules(model) for pair in m.lora_factors().values() for f in pair}
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or id(p) in factors}


def base_hash(model: nn.Module, without: set[str]) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter that the adapter does not carry.

    Merged weights count as they were before merging, so the hash does not depend on it.
    """
    originals = {
        f"{name}.{weight}" if name else weight: kept
        for name, module in lora_modules(model)
        for weight, kept in (module._originals or {}).items()
    }
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name not in without:
            value = originals.get(name, parameter).detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # any shape -> bytes
    return digest.hexdigest()


def save_adapter(
    model: nn.Module, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> Path:
    """Write ``adapter.safetensors`` and ``adapter.json`` into ``folder``, whole or not at all.

    Parameters
    ----------
    model
        A `LoraWrapperRoberta`, or any model that `inject_lora` has changed.
    folder
        Made if it does not exist; an adapter already in it is replaced in one step.
    metadata
        Whatever else should travel along as JSON: task, scores, labels, licence.

    Raises
    ------
    ValueError
        If the model holds no adapter, or a tensor is not finite or has no data (``"meta"``).
    """
    folder = Path(folder)
    if not any(True for _ in lora_modules(model)):
        raise ValueError("The model holds no LoRA adapter; inject one before saving.")
    if folder.is_dir() and (others := sorted({p.name for p in folder.iterdir()} - {TENSORS, SETTINGS})):
        raise FileExistsError(f"{folder} holds other files ({', '.join(others[:3])}); choose an empty folder.")
    tensors = {name: value.cpu().contiguous() for name, value in adapter_tensors(model).items()}
    for name, value in tensors.items():
        if value.is_meta or not torch.isfinite(value).all():
            raise ValueError(f"{name} has no data or holds an infinity or NaN; this adapter is not worth saving.")
    settings = {
        "format": FORMAT,
        "base": {**_describe(model), "sha256_of_frozen_parameters": base_hash(model, set(tensors))},
        "parameters": sum(value.numel() for value in tensors.values()),
        "metadata": metadata or {},
    }
    with atomic_folder(folder) as new:
        save_file(tensors, new / TENSORS, metadata={"format": "pt"})
        atomic_write_json(new / SETTINGS, settings)
    return folder


def _describe(model: nn.Module) -> dict[str, Any]:
    """How to build the model again: the wrapper's arguments, or a class with its configuration."""
    if hasattr(model, "init_args"):
        return {"wrapper": model.init_args}
    described: dict[str, Any] = {"class": type(model).__name__, "lora": model.lora_config.to_dict()}
    if hasattr(model, "config"):
        described |= {"name": model.config.name_or_path, "num_labels": model.config.num_labels}
        described |= {"id2label": {str(k): v for k, v in model.config.id2label.items()}}
    return described


def load_adapter(folder: str | os.PathLike[str], base: nn.Module | None = None) -> nn.Module:
    """Put a saved adapter back onto its base, with head, biases and number of labels.

    Parameters
    ----------
    folder
        What `save_adapter` wrote.
    base
        The model without adapters. Left out, it is loaded again by the name it had.

    Returns
    -------
    nn.Module
        The adapted model, in evaluation mode; ``model.adapter_metadata`` is what was saved along.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter.
    ValueError
        If a file is damaged, a tensor is missing, unexpected or of another shape, or the base is not the
        one that the adapter was trained on. A base given by the caller is then as it was.
    """
    settings, tensors = read_adapter(folder)
    described = settings["base"]
    if "wrapper" in described:
        if base is not None:
            raise ValueError("This adapter builds its own wrapper; call load_adapter without a base.")
        from lora_tutorial.wrapper import LoraWrapperRoberta

        model = LoraWrapperRoberta(**described["wrapper"])
        _check_base(model, tensors, described)
    else:
        model = _load_base(described) if base is None else base
        _check_base(model, tensors, described)
        inject_lora(model, LoraConfig.from_dict(described["lora"]))
    _copy_into(model, tensors)
    model.adapter_metadata = settings["metadata"]
    return model.eval()


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors in an adapter folder, checked against each other."""
    folder = Path(folder)
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no adapter folder: {name} is missing.")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"The adapter in {folder} is damaged: {error}. Copy or train it again.") from error
    if settings.get("format") != FORMAT:
        raise ValueError(f"{folder} has adapter format {settings.get('format')!r}; this version reads {FORMAT}.")
    return settings, tensors


def _load_base(described: dict[str, Any]) -> nn.Module:
    import transformers

    from lora_tutorial.encoders import load_encoder

    if not described.get("name"):
        raise ValueError(f"This adapter's base, a {described['class']}, has no name to load it by: pass base=.")
    options = {"num_labels": described["num_labels"]}
    options["id2label"] = {int(k): v for k, v in described["id2label"].items()}
    model_class = getattr(transformers, described["class"])
    return load_encoder(described["name"], model_class=model_class, **options).model


def _check_base(model: nn.Module, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, value in tensors.items():
        if name in shapes and shapes[name] != tuple(value.shape):
            raise ValueError(f"{name} is {tuple(value.shape)} in the adapter and {shapes[name]} in this base.")
    factors = {n for n in shapes if n.rpartition(".")[2].startswith("lora_")}
    if base_hash(model, set(tensors) | factors) != described["sha256_of_frozen_parameters"]:
        raise ValueError(
            "This base is not the one that the adapter was trained on: its frozen parameters differ. "
            f"The adapter was trained on {described.get('name') or described.get('wrapper', {}).get('model_id')!r}."
        )


def _copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = adapter_tensors(model)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"The adapter does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}.")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} in the adapter, {tuple(value.shape)} here.")
    for name, value in own.items():
        value.copy_(tensors[name])
