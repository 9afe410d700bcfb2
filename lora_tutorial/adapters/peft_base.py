"""The base under an adapter in PEFT's format: which it is, whether it is that one, and a copy to go along."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from lora_tutorial.adapters.peft_layout import PREFIX, PeftLayout
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.models.minilm import minilm_folder
from lora_tutorial.storage.files import atomic_write_json

_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json")
_FILES += ("vocab*", "merges*", "LICENSE*")
_CLASSES = {
    "SEQ_CLS": RobertaForSequenceClassification,
    "TOKEN_CLS": RobertaForTokenClassification,
    "QUESTION_ANS": RobertaForQuestionAnswering,
    "FEATURE_EXTRACTION": RobertaModel,
}


def base_name(model: nn.Module) -> str:
    """The name that the model's base was loaded by, ``""`` if it was not loaded."""
    if getattr(model, "init_args", {}).get("weights", "pretrained") != "pretrained":
        return ""
    return getattr(getattr(model, "config", None), "name_or_path", "")


def local_folder(name: str) -> Path | None:
    """The folder behind a name, if it is ``"minilm"`` or a folder and not a repository on the hub."""
    if name == "minilm":
        return minilm_folder()
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
                value = unseen.pop(own, None)
                if value is not None and not torch.equal(stored.get_tensor(name), value.detach().cpu()):
                    raise ValueError(
                        f"{own} is not what {source} holds: the adapter has another base. "
                        'Name that one in base=, or "" for none.'
                    )
    if unseen:
        raise ValueError(
            f"{source} has no {next(iter(unseen))}, which is frozen and so not in the adapter: whoever loads "
            "it would draw one at random. Train it whole (modules_to_save), or save the base first."
        )


def labels(model: nn.Module, given: list[str] | None) -> dict[str, dict[str, Any]]:
    """``id2label`` and ``label2id`` for the base's configuration, from the model or as given.

    Raises
    ------
    ValueError
        If ``given`` has not as many names as the model has outputs.
    """
    head = getattr(model, "finetune_head_classifier", None)
    id2label = dict(model.config.id2label) if hasattr(model, "config") else {}
    if head is not None:
        id2label = {i: f"LABEL_{i}" for i in range(list(head.parameters())[-1].shape[0])}
    if given:  # a regression has none
        if len(given) != len(id2label):
            raise ValueError(f"metadata names {len(given)} labels; the model has {len(id2label)} outputs.")
        id2label = dict(enumerate(given))
    return {
        "id2label": {str(i): str(label) for i, label in id2label.items()},
        "label2id": {str(label): int(i) for i, label in id2label.items()},
    }


def copy_base(source: Path, target: Path, changes: dict[str, Any]) -> None:
    """Copy a checkpoint and its tokenizer, with ``changes`` in its ``config.json``."""
    target.mkdir()
    for file in sorted({file for pattern in _FILES for file in source.glob(pattern)}):
        if not file.name.startswith("adapter_"):
            shutil.copyfile(file, target / file.name)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
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
    model_class = next((c for c in _CLASSES.values() if c.__name__ == mapped), None) or _CLASSES.get(task)
    if model_class is None:
        raise ValueError(
            f"task_type {task!r} does not tell the class of the base: load it yourself, pass base=."
        )
    options = {}
    for head in (f"{PREFIX}classifier.out_proj.weight", f"{PREFIX}classifier.weight"):
        if head in tensors:
            options["num_labels"] = tensors[head].shape[0]
    return load_encoder(name, model_class=model_class, **options).model
