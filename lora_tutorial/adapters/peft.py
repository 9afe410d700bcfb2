"""Give an adapter to PEFT and take one back, exactly or not at all. PEFT itself is not needed."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import (
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from lora_tutorial.adapters import validation
from lora_tutorial.adapters.card import model_card
from lora_tutorial.adapters.peft_layout import (
    PREFIX,
    NotExpressibleError,
    PeftLayout,
    base_names,
    peft_layout,
    task_of,
)
from lora_tutorial.lm.basics import is_language_model
from lora_tutorial.lm.models import SMOLLM2, load_lm, smollm2_folder
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias, matching_modules
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.models.minilm import minilm_folder
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.quant.inject import inject_into_base
from lora_tutorial.storage.files import atomic_folder, atomic_write_bytes, atomic_write_json

TENSORS, SETTINGS = validation.PEFT_TENSORS, validation.PEFT_SETTINGS
CARD, BASE = "README.md", "base"
_OURS = ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora")
_KINDS = {
    "r": int, "lora_alpha": int | float, "lora_dropout": float, "target_modules": list | str, "bias": str,
    "use_rslora": bool, "modules_to_save": list, "auto_mapping": dict, "base_model_name_or_path": str,
}  # fmt: skip
# Entries that do not change what the adapter computes once it is trained.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type",
    "inference_mode", "init_lora_weights", "modules_to_save", "megatron_core", "qalora_group_size",
    "ensure_weight_tying", "eva_config",
}  # fmt: skip
# Starts that leave the base as it was; others (PiSSA, OLoRA, LoftQ ...) take something out of its weights.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json"),
    *("vocab*", "merges*", "chat_template*", "generation_config.json", "LICENSE*"),
)
_CLASSES = {
    "SEQ_CLS": RobertaForSequenceClassification,
    "TOKEN_CLS": RobertaForTokenClassification,
    "QUESTION_ANS": RobertaForQuestionAnswering,
    "FEATURE_EXTRACTION": RobertaModel,
}


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
        model was loaded from, and ``""`` for none (a base in 4 bits). A folder (and ``"minilm"`` and
        ``"smollm2"``) is copied into ``folder/base`` with the model's labels in its ``config.json``, so that
        PEFT's ``AutoPeftModel...`` classes need nothing else.
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
    validation.check_only(folder, (TENSORS, SETTINGS, CARD, BASE), "an export")
    validation.check_finite(layout.tensors)
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
        atomic_write_bytes(new / TENSORS, save(tensors, metadata={"format": "pt"}))
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
        ``load_encoder``, or for ``load_lm`` if the adapter is a language model's. By default ``folder/base``
        if there is one, else what ``base_model_name_or_path`` names, with as many labels as the saved head
        has.

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
    # On shapes alone whatever is wrong shows, before the model itself is touched.
    trial = peft_layout(_adapt(validation.shapes_of(model), config)).tensors
    validation.check_fit(folder, tensors, trial, same_dtype=False)
    own = peft_layout(_adapt(model, config)).tensors
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return model.eval()


def read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors in a folder that PEFT or `export_peft` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or damaged, a tensor is not finite, or the adapter is not one of LoRA.
    """
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file() and name == TENSORS
            hint = (
                " The pickled adapter_model.bin can run code and is not read: save it again as safetensors."
            )
            raise FileNotFoundError(
                f"{folder} is no PEFT adapter: {name} is missing.{hint if pickled else ''}"
            )
    settings = validation.read_json(folder / SETTINGS)
    if (kind := settings.get("peft_type")) != "LORA":
        raise ValueError(f"{folder} holds a {kind!r} adapter; only 'LORA' can be imported.")
    for key, accepted in _KINDS.items():
        if settings.get(key) is not None and not validation.is_kind(settings[key], accepted):
            raise validation.damaged(folder / SETTINGS, f"its {key} is {settings[key]!r}")
    return settings, _without_doubles(validation.read_tensors(folder / TENSORS))


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


def base_name(model: nn.Module) -> str:
    """The name that the model's base was loaded by, ``""`` if it was not loaded."""
    if getattr(model, "init_args", {}).get("weights", "pretrained") != "pretrained":
        return ""
    return getattr(getattr(model, "config", None), "name_or_path", "")


def local_folder(name: str) -> Path | None:
    """The folder behind a name, if it is one of those fetched by pip or a folder, and not on the hub."""
    if name in ("minilm", SMOLLM2):
        return minilm_folder() if name == "minilm" else smollm2_folder()
    return Path(name) if name and Path(name).is_dir() else None


def check_base(source: Path, layout: PeftLayout) -> None:
    """Refuse a checkpoint whose weights are not those under the adapter.

    Raises
    ------
    ValueError
        If a parameter that the adapter does not carry is missing from ``source`` or differs from it.
    """
    unseen = dict(layout.frozen)
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - the reader is no mapping
                own = next((n for n in (name, f"roberta.{name}") if n in unseen), None)
                value = unseen.pop(own, None) if own else None
                if value is None:
                    continue
                found = stored.get_tensor(name).to(value.dtype)  # load_lm reads bfloat16 as float32, exactly
                if not torch.equal(found, value.detach().cpu()):
                    raise ValueError(
                        f"{own} is not what {source} holds: the adapter has another base. "
                        'Name that one in base=, or "" for none.'
                    )
    if unseen:
        raise ValueError(
            f"{source} has no {next(iter(unseen))}, which is frozen and so not in the adapter: whoever loads "
            "it would draw one at random. Train it whole (modules_to_save), or save the base first."
        )


def labels(model: nn.Module, given: list[str] | None) -> dict[str, Any]:
    """``id2label`` and ``label2id`` for the base's configuration, from the model or as given.

    A wrapper's regression is named one, or a pipeline would put its answer through a sigmoid. A language
    model has none; of its configuration, the type in which its weights were loaded must be said.

    Raises
    ------
    ValueError
        If ``given`` has not as many names as the model has outputs.
    """
    if is_language_model(type(model).__name__):
        return {"dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    head = getattr(model, "finetune_head_classifier", None)
    config: Any = getattr(model, "config", None)
    id2label = dict(config.id2label) if config is not None else {}
    if head is not None:
        id2label = {i: f"LABEL_{i}" for i in range(list(head.parameters())[-1].shape[0])}
    if given:  # a regression has none
        if len(given) != len(id2label):
            raise ValueError(f"metadata names {len(given)} labels; the model has {len(id2label)} outputs.")
        id2label = dict(enumerate(given))
    regression = {"problem_type": "regression"} if head is not None and len(id2label) == 1 else {}
    return regression | {
        "id2label": {str(i): str(label) for i, label in id2label.items()},
        "label2id": {str(label): int(i) for i, label in id2label.items()},
    }


def copy_base(source: Path, target: Path, changes: dict[str, Any]) -> None:
    """Copy a checkpoint and its tokenizer, with ``changes`` in its ``config.json``."""
    target.mkdir()
    for file in sorted({file for pattern in _FILES for file in source.glob(pattern)}):
        if not file.name.startswith("adapter_"):
            shutil.copyfile(file, target / file.name)
    settings = validation.read_json(source / "config.json")
    atomic_write_json(target / "config.json", settings | changes)


def load_base(
    shipped: Path, settings: dict[str, Any], tensors: dict[str, Tensor], name: str | os.PathLike[str] | None
) -> nn.Module:
    """Load the base that an adapter belongs to, with as many labels as its head has outputs.

    Raises
    ------
    ValueError
        If nothing says which base it is, or its class cannot be told from the task.
    """
    if name is None:
        name = shipped if shipped.is_dir() else settings.get("base_model_name_or_path")
    if not name:
        raise ValueError("The adapter does not say which base it belongs to: pass base=, a model or a name.")
    task = settings.get("task_type")
    mapped = (settings.get("auto_mapping") or {}).get("base_model_class")
    if task == "CAUSAL_LM" or is_language_model(mapped):
        return load_lm(name).model
    of_task = _CLASSES.get(task or "")
    model_class = next((c for c in _CLASSES.values() if c.__name__ == mapped), of_task)
    if model_class is None:
        raise ValueError(
            f"task_type {task!r} does not tell the class of the base: load it yourself, pass base=."
        )
    options: dict[str, Any] = {}
    for head in (f"{PREFIX}classifier.out_proj.weight", f"{PREFIX}classifier.weight"):
        if head in tensors:
            options["num_labels"] = tensors[head].shape[0]
    return load_encoder(name, model_class=model_class, **options).model
