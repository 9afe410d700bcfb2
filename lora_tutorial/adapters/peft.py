"""Give an adapter to PEFT and take one back, exactly or not at all. PEFT itself is not needed."""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_tutorial.adapters.card import model_card
from lora_tutorial.adapters.files import inject_into_base
from lora_tutorial.adapters.peft_base import base_name, check_base, copy_base, labels, load_base, local_folder
from lora_tutorial.adapters.peft_layout import NotExpressibleError, base_names, peft_layout, task_of
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias, matching_modules
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.storage.files import atomic_folder, atomic_write_bytes, atomic_write_json

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


CARD, BASE = "README.md", "base"
_OURS = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora")
# Entries that do not change what the adapter computes once it is trained.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type",
    "inference_mode", "init_lora_weights", "modules_to_save", "megatron_core", "qalora_group_size",
    "ensure_weight_tying", "eva_config",
}  # fmt: skip
# Starts that leave the base as it was; others (PiSSA, OLoRA, LoftQ ...) take something out of its weights.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def export_peft(
    model: nn.Module,
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write an adapter as PEFT writes it: ``adapter_model.safetensors``, ``adapter_config.json``, a card.

    PEFT puts it onto the same base with equal logits, bit for bit. For a sequence classifier the head always
    goes along, because PEFT expects it there. Merged adapters are written as if they were not merged.

    Parameters
    ----------
    model
        A model that `inject_lora` has changed, or a ``LoraWrapperRoberta(head="roberta")``.
    folder
        Made if it does not exist; an export already in it is replaced in one step.
    base
        Name on the hub, or folder, of the base for ``base_model_name_or_path``; by default the one that the
        model was loaded from, and ``""`` for none (a base in 4 bits). A folder (and ``"minilm"``) is copied
        into ``folder/base`` with the model's labels in its ``config.json``, so that PEFT's
        ``AutoPeftModel...`` classes need nothing else.
    metadata
        For the card, see `model_card`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    NotExpressibleError
        If PEFT's format has no place for something in the model.
    ValueError
        If the model holds no adapter, a tensor is not finite or has no data, or the base's weights are not
        those under the adapter.
    FileExistsError
        If the folder holds something other than an export.
    """
    folder, layout, metadata = Path(folder), peft_layout(model), dict(metadata or {})
    allowed = {TENSORS, SETTINGS, CARD, BASE}
    if folder.is_dir() and (others := sorted(p.name for p in folder.iterdir() if p.name not in allowed)):
        raise FileExistsError(f"{folder} holds {others[0]}, no part of an export; choose another folder.")
    for name, value in layout.tensors.items():
        if value.is_meta or not torch.isfinite(value).all():
            raise ValueError(f"{name} has no data or holds an infinity or NaN; nothing was written.")
    name = str(base if base is not None else base_name(model))
    if (source := local_folder(name)) is not None:
        check_base(source, layout)
        named = labels(model, metadata.get("labels"))
    place = str(folder.resolve() / BASE) if source else name or None
    settings = layout.settings | {"base_model_name_or_path": place}
    if settings["task_type"] is None and isinstance(model, transformers.PreTrainedModel):
        kind = type(model)
        settings["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    with atomic_folder(folder) as new:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in layout.tensors.items()}
        save_file(tensors, new / TENSORS, metadata={"format": "pt"})
        (new / TENSORS).chmod(0o644)  # save_file makes 0600, which a colleague could not read
        atomic_write_json(new / SETTINGS, dict(sorted(settings.items())))
        atomic_write_bytes(new / CARD, model_card(settings, name, source is not None, metadata).encode())
        if source is not None:
            copy_base(source, new / BASE, named)
    return folder


def import_peft(
    folder: str | os.PathLike[str], base: nn.Module | str | os.PathLike[str] | None = None
) -> nn.Module:
    """Put an adapter that PEFT or `export_peft` wrote onto its base, as `LoraLinear` and a trained head.

    Parameters
    ----------
    folder
        Holds ``adapter_config.json`` and ``adapter_model.safetensors``. Pickled weights are not read.
    base
        The model without adapters; or a ``LoraWrapperRoberta(head="roberta")`` of the same rank and scale,
        for an adapter of query and value (it has no LoRA dropout for further training); or a name for
        ``load_encoder``. By default ``folder/base`` if there is one, else what ``base_model_name_or_path``
        names, with as many labels as the saved head has.

    Returns
    -------
    nn.Module
        The adapted model, in evaluation mode, changed in place if it was given. The same parameters train as
        would in PEFT.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, a setting changes what LoRA computes in a way that `LoraConfig` has no word for,
        or a tensor is missing, unexpected, of another shape or not finite. The base is then as it was.

    Warns
    -----
    UserWarning
        If ``modules_to_save`` lists a module that the base lacks; the entry is dropped.
    """
    folder = Path(folder)
    settings, tensors = read_peft(folder)
    model = base if isinstance(base, nn.Module) else load_base(folder / BASE, settings, tensors, base)
    config = _lora_config(settings, model)
    # The same with shapes only: whatever is wrong shows there, before the model itself is touched.
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
        if p.is_floating_point()  # 4-bit codes are small, and their scales hang on them
    }
    check_tensors(peft_layout(_adapt(copy.deepcopy(model, empty), config)).tensors, tensors)
    own = peft_layout(_adapt(model, config)).tensors
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return model.eval()


def _adapt(model: nn.Module, config: LoraConfig) -> nn.Module:
    if not isinstance(model, LoraWrapperRoberta):
        return inject_into_base(model, config)
    own = next(module for _, module in lora_modules(model)).lora_config
    if (own.r, own.scaling) != (config.r, config.scaling):
        raise ValueError(
            f"This wrapper has rank {own.r} and scale {own.scaling:g}, the adapter {config.r} and "
            f"{config.scaling:g}. Use lora_rank={config.r}, lora_alpha={config.scaling * config.r:g}."
        )
    freeze_parameters_except_lora_and_bias(model, config.bias)
    for entry in config.modules_to_save:
        names = ["finetune_head_classifier"] if entry in ("classifier", "qa_outputs") else None
        for name in names or matching_modules(model, [entry], "modules_to_save"):
            model.get_submodule(name).requires_grad_(True)
    return model


def _lora_config(settings: dict[str, Any], model: nn.Module) -> LoraConfig:
    for key, value in settings.items():
        if key not in _NEUTRAL and key not in _OURS and value:
            raise NotExpressibleError(
                f"{key}={value!r} changes plain LoRA, and LoraConfig has no word for it."
            )
    start = settings.get("init_lora_weights", True)
    if start not in _STARTS:
        raise NotExpressibleError(
            f"init_lora_weights={start!r} changed the base's weights: this adapter does not fit it as it is. "
            "Convert it in PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    heads, to_base = task_of(model)[1], base_names(model)
    modules = [f".{to_base(name)}" for name, _ in model.named_modules()]
    wanted = dict.fromkeys([*(settings.get("modules_to_save") or []), *heads])
    saved = [entry for entry in wanted if any(name.endswith(f".{entry}") for name in modules)]
    if dropped := [entry for entry in wanted if entry not in saved and entry not in heads]:
        listed = ", ".join(dropped)
        warnings.warn(
            f"modules_to_save lists {listed}, which this base does not have: dropped.", stacklevel=3
        )
    values = {key: settings[key] for key in _OURS if key in settings}
    values["target_modules"] = settings.get("target_modules")  # PEFT has no default either
    init = "gaussian" if start == "gaussian" else "kaiming"
    return LoraConfig.from_dict(values | {"modules_to_save": saved, "init": init})
