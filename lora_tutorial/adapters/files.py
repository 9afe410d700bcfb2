"""Save what was trained, and nothing else; load it into the base it was trained on, and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import factor_names, lora_modules
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.lora.variants import inject_variant, variant_of
from lora_tutorial.storage.files import atomic_folder, atomic_write_json

FORMAT = 1
TENSORS, SETTINGS = "adapter.safetensors", "adapter.json"


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything the adapter consists of: LoRA factors and whatever else trains, by name."""
    factors = factor_names(model)
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or n in factors}


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
    ValueError, FileExistsError
        If the model holds no adapter, or one of PiSSA; a tensor is not finite or has no data (``"meta"``); or
        the folder holds anything but an adapter.
    """
    folder = Path(folder)
    if not any(True for _ in lora_modules(model)):
        raise ValueError("The model holds no LoRA adapter; inject one before saving.")
    if variant_of(model) == "pissa":
        raise ValueError(
            "A PiSSA adapter fits the residual it was trained on and no base that anyone has. Save what "
            "pissa_to_lora(model, base) makes of it."
        )
    if folder.is_dir() and (others := {p.name for p in folder.iterdir()} - {TENSORS, SETTINGS}):
        raise FileExistsError(
            f"{folder} holds {sorted(others)[0]}, no part of an adapter; choose another folder."
        )
    tensors = adapter_tensors(model)
    for name, value in tensors.items():
        if value.is_meta or not torch.isfinite(value).all():
            raise ValueError(f"{name} has no data or holds an infinity or NaN; nothing was saved.")
    settings = {
        "format": FORMAT,
        "base": _describe(model) | {"sha256_of_frozen_parameters": parameters_hash(model, tensors)},
        "parameters": sum(value.numel() for value in tensors.values()),
        "metadata": metadata or {},
    }
    with atomic_folder(folder) as new:
        contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, new / TENSORS, metadata={"format": "pt"})
        atomic_write_json(new / SETTINGS, settings)
    return folder


def _describe(model: nn.Module) -> dict[str, Any]:
    """How to build the model again: the wrapper's arguments, or a class with its configuration."""
    if hasattr(model, "init_args"):
        return {"name": model.init_args["model_id"], "wrapper": model.init_args}
    config = getattr(model, "config", None)
    return {
        "name": getattr(config, "name_or_path", ""),
        "class": type(model).__name__,
        "id2label": {str(key): label for key, label in getattr(config, "id2label", {}).items()},
        "lora": model.lora_config.to_dict(),
        "variant": variant_of(model),
    }


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
    FileNotFoundError, ValueError
        If a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the base is
        not the one that the adapter was trained on.
    """
    settings, tensors = read_adapter(folder)
    described = settings["base"]
    if "wrapper" in described:
        if base is not None:
            raise ValueError("This adapter builds its own wrapper; call load_adapter without a base.")
        from lora_tutorial.models.roberta import LoraWrapperRoberta

        model = LoraWrapperRoberta(**described["wrapper"])
    else:
        model = _load_base(described) if base is None else base
    _check_base(model, tensors, described)
    if "lora" in described:
        inject_into_base(model, LoraConfig.from_dict(described["lora"]), described.get("variant", "lora"))
    own = dict(model.named_parameters())
    missing, unexpected = sorted(factor_names(model) - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"{folder} does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}.")
    for name in tensors:
        _same_shape(name, tensors[name], own[name])
    for name, parameter in own.items():  # what was saved is what trained: training can go on
        parameter.requires_grad_(name in tensors)
        if name in tensors:
            parameter.detach().copy_(tensors[name])
    model.adapter_metadata = settings["metadata"]
    return model.eval()


def start_from_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Copy another task's adapter into a fresh model of the same base; the head stays as it is.

    The LoRA paper begins MRPC, RTE and STS-B from the adapter that learnt MNLI (section 5.2).

    Parameters
    ----------
    model
        A fresh `LoraWrapperRoberta` with the same parameters to train, its head aside.
    folder
        What `save_adapter` wrote for the other task.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no adapter, or one of another base, rank or set of trained parameters.
    """
    settings, tensors = read_adapter(folder)
    body = {n: t for n, t in tensors.items() if not n.startswith("finetune_head_")}
    own = {n: p for n, p in adapter_tensors(model).items() if not n.startswith("finetune_head_")}
    if body.keys() != own.keys():
        differing = sorted(body.keys() ^ own.keys())
        raise ValueError(
            f"The adapter in {folder} trained other parameters than this model will, such as "
            f"{differing[0]}: start from one of the same method."
        )
    for name, value in body.items():
        _same_shape(name, value, own[name])
    heads = {name for name, _ in model.named_parameters() if name.startswith("finetune_head_")}
    if parameters_hash(model, own.keys() | heads) != settings["base"]["sha256_of_frozen_parameters"]:
        raise ValueError(f"The adapter in {folder} was trained on another base; start from one of this base.")
    for name, value in body.items():
        own[name].copy_(value)  # own holds the parameters' storage, detached
    return model


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors in an adapter folder."""
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
        raise ValueError(
            f"{folder} has adapter format {settings.get('format')!r}; this version reads {FORMAT}."
        )
    return settings, tensors


def inject_into_base(model: nn.Module, config: LoraConfig, variant: str = "lora") -> nn.Module:
    """`inject_variant`, or LoRA in its 4-bit form where the base holds bitsandbytes' 4-bit layers."""
    if variant == "lora" and any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        from lora_tutorial.quant.linear4bit import inject_lora_4bit  # imports bitsandbytes

        return inject_lora_4bit(model, config)
    return inject_variant(model, config, variant)


def _load_base(described: dict[str, Any]) -> nn.Module:
    import transformers

    from lora_tutorial.models.encoders import load_encoder

    if not described["name"]:
        raise ValueError(
            f"This adapter's base, a {described['class']}, has no name to load it by: pass base=."
        )
    model_class = getattr(transformers, described["class"])
    labels = {int(key): label for key, label in described["id2label"].items()}
    return load_encoder(described["name"], model_class=model_class, id2label=labels).model


def _check_base(model: nn.Module, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    own = dict(model.named_parameters())
    for name in own.keys() & tensors.keys():
        _same_shape(name, tensors[name], own[name])
    if (
        parameters_hash(model, tensors.keys() | factor_names(model))
        != described["sha256_of_frozen_parameters"]
    ):
        raise ValueError(
            f"This base is not the one that the adapter was trained on ({described['name'] or 'unnamed'}): "
            "their frozen parameters differ. Load that one, or train an adapter for this one."
        )


def _same_shape(name: str, saved: Tensor, own: Tensor) -> None:
    if saved.shape != own.shape:
        raise ValueError(
            f"{name} is {tuple(saved.shape)} in the adapter but {tuple(own.shape)} in this model."
        )
