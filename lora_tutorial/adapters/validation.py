"""What an adapter's files must be: whole, unchanged, of the right kind. A sentence for all that is not."""

from __future__ import annotations

import copy
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping, Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.variants import VARIANTS

#: What ``save_adapter`` writes. Format 1 had no checksum and no path to a relative base; it is still read.
FORMAT = 2
TENSORS, SETTINGS = "adapter.safetensors", "adapter.json"
#: What PEFT and ``export_peft`` write.
PEFT_TENSORS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
LORA = ("r", "lora_alpha", "target_modules", "use_rslora")  # what no adapter computes the same without
JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def checksum(settings: dict[str, Any], data: bytes) -> str:
    """SHA-256 over the settings, their own checksum aside, and the bytes of the tensors' file."""
    rest = {key: value for key, value in settings.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + data).hexdigest()


def damaged(place: object, what: str) -> ValueError:
    """The error for a file that is not as it was written."""
    return ValueError(f"{place} is damaged: {what}. Copy the adapter again, or train it again.")


def read_json(file: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises
    ------
    ValueError
        If it is not JSON, or not an object.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"it is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise damaged(file, f"it holds {_kind(settings)} where an object of settings belongs")
    return settings


def read_tensors(file: Path, data: bytes | None = None) -> dict[str, Tensor]:
    """The tensors in a safetensors file, or in ``data``, its bytes.

    Raises
    ------
    ValueError
        If it is not whole, or a tensor holds whole numbers, an infinity or NaN.
    """
    try:
        tensors = load(file.read_bytes() if data is None else data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(file, f"it is no whole safetensors file ({error})") from error
    for name, value in sorted(tensors.items()):
        if not value.is_floating_point() or not torch.isfinite(value.float()).all():
            raise damaged(file, f"{name} holds whole numbers, an infinity or NaN")
    return tensors


def check_only(folder: Path, patterns: Iterable[str], what: str) -> None:
    """Refuse to write into a folder with files that are no part of what will replace it.

    Raises
    ------
    FileExistsError
        The message names one of them.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]:
        raise FileExistsError(f"{folder} holds {others[0]}, no part of {what}; choose another folder.")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write tensors without data, or with an infinity or NaN."""
    for name, value in tensors.items():
        if value.is_meta or not torch.isfinite(value).all():
            raise ValueError(f"{name} has no data or holds an infinity or NaN; nothing was written.")


def check_fit(
    folder: object,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    needed: Set[str] | None = None,
    same_dtype: bool = True,
) -> None:
    """Refuse an adapter's tensors that are not those of a model.

    Parameters
    ----------
    folder
        Where they come from.
    tensors
        What was read, by name.
    own
        The model's own, by name; only names, shapes and types count.
    needed
        The names that must be there, by default all of ``own``.
    same_dtype
        Whether each must have the model's type too.

    Raises
    ------
    ValueError
        If one is missing, unexpected, or of another shape or type.
    """
    missing = sorted((own.keys() if needed is None else needed) - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"The adapter in {folder} does not fit its settings on this base: {len(missing)} tensors missing "
            f"{missing[:2]}, {len(unexpected)} unexpected {unexpected[:2]}. Copy it again, or train it again."
        )
    for name, saved in sorted(tensors.items()):
        check_shape(name, saved, own[name])
        if same_dtype and saved.dtype != own[name].dtype:
            raise ValueError(
                f"{name} is {saved.dtype} in the adapter but {own[name].dtype} in this model: the adapter in "
                f"{folder} was changed. Copy it again, or train it again."
            )


def check_shape(name: str, saved: Tensor, own: Tensor) -> None:
    """Refuse a tensor of another shape than the model's own."""
    if saved.shape != own.shape:
        raise ValueError(
            f"{name} is {tuple(saved.shape)} in the adapter but {tuple(own.shape)} in this model."
        )


def shapes_of(model: nn.Module) -> nn.Module:
    """A copy of a model with shapes only, to try on it whether something fits before the model is touched."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
        if p.is_floating_point()  # 4-bit codes are small, and their scales hang on them
    }
    return copy.deepcopy(model, empty)


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuse an ``adapter.json`` that lacks an entry or holds one of another kind.

    Raises
    ------
    ValueError
        The message names the entry.
    """
    base = _entry(file, settings, "base", dict)
    metadata = _entry(file, settings, "metadata", dict)
    _entry(file, settings, "parameters", int)
    _entry(file, base, "name", str, "base")
    _entry(file, base, "sha256_of_frozen_parameters", str, "base")
    if not is_kind(base.get("folder", ""), str) or base.get("variant", "lora") not in tuple(VARIANTS):
        raise damaged(file, "its base.folder or base.variant is none that save_adapter writes")
    if "wrapper" in base:
        wrapper, known = _entry(file, base, "wrapper", dict, "base"), _wrapper_settings()
        for key, kind in known.items():
            if key in wrapper and not is_kind(wrapper[key], kind):
                raise damaged(file, f"its base.wrapper.{key} is {wrapper[key]!r}")
        if unknown := sorted(wrapper.keys() - known.keys()):
            raise damaged(file, f"it has a setting base.wrapper.{unknown[0]}, which no wrapper has")
        for key in ("task_type", "model_id"):
            _entry(file, wrapper, key, str, "base.wrapper")
        outputs = wrapper.get("num_classes") if wrapper["task_type"] == "glue" else None
    else:
        _entry(file, base, "class", str, "base")
        labels = _entry(file, base, "id2label", dict, "base")
        if not all(key.isdecimal() for key in labels):
            raise damaged(file, "the keys of its base.id2label are not numbers")
        lora = _entry(file, base, "lora", dict, "base")
        if lacking := [key for key in LORA if key not in lora]:
            raise damaged(file, f"base.lora.{lacking[0]} is missing")
        try:
            LoraConfig.from_dict(lora)
        except (TypeError, ValueError) as error:
            raise damaged(file, f"its base.lora is refused ({str(error).rstrip('.')})") from error
        outputs = len(labels) if base["class"].endswith("Classification") else None
    _check_metadata(file, metadata, outputs)


def _wrapper_settings() -> dict[str, Any]:
    """What a `LoraWrapperRoberta` is made with, and of which kind each setting is."""
    from lora_tutorial.models.roberta import WrapperOptions  # imports transformers, which takes seconds

    return {"task_type": str, "num_classes": int | None} | typing.get_type_hints(WrapperOptions)


def _check_metadata(file: Path, metadata: dict[str, Any], outputs: int | None) -> None:
    """Refuse labels that are not one for each output (a regression has none), and a length that is none."""
    labels, length = metadata.get("labels"), metadata.get("max_length")
    if labels and outputs is not None and (not isinstance(labels, list) or len(labels) != outputs):
        count = len(labels) if isinstance(labels, list) else "no list of"
        raise ValueError(
            f"{file} names {count} labels, and the head has {outputs} outputs: save the adapter again with "
            "one label for each, in the order of the classes."
        )
    if length is not None and (not is_kind(length, int) or length < 1):
        raise damaged(file, f"its metadata.max_length is {length!r}")


def check_length(folder: object, metadata: Mapping[str, Any], config: Any) -> None:
    """Refuse an adapter whose texts may be longer than its encoder has positions.

    Raises
    ------
    ValueError
        If ``max_length`` in the metadata is above that.
    """
    length = metadata.get("max_length")
    if length is None or getattr(config, "model_type", None) != "roberta":
        return
    most = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts from pad_token_id + 1
    if length > most:
        raise ValueError(
            f"The adapter in {folder} says max_length {length}, and its encoder takes at most {most} tokens: "
            f"save it again with a max_length up to {most}."
        )


def _entry(file: Path, settings: dict[str, Any], key: str, kind: type, inside: str = "") -> Any:
    path = f"{inside}.{key}".lstrip(".")
    if key not in settings:
        raise damaged(file, f"{path} is missing")
    if not is_kind(settings[key], kind):
        raise damaged(file, f"its {path} is {_kind(settings[key])}, not {JSON_TYPES[kind]}")
    return settings[key]


def is_kind(value: object, kind: Any) -> bool:
    """``isinstance`` as JSON needs it: True is no number, 1 may be 1.0, a literal is one of its words."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return value in options
    kinds = options or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _kind(value: object) -> str:
    return JSON_TYPES.get(type(value)) or json.dumps(value)
