"""Hand an adapter to people who have nothing of ours: merged, in a folder that was moved, or on the hub."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import RobertaForQuestionAnswering as ForQuestionAnswering
from transformers import RobertaForSequenceClassification as ForSequenceClassification

from lora_tutorial.adapters import files, peft, validation
from lora_tutorial.adapters.card import card_on_hub, merged_card
from lora_tutorial.adapters.peft_layout import base_names
from lora_tutorial.lm.basics import is_language_model
from lora_tutorial.lm.models import SMOLLM2, load_lm_tokenizer
from lora_tutorial.lora.merge import lora_modules, unload_lora
from lora_tutorial.models.encoders import load_tokenizer, quiet
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.storage import hub
from lora_tutorial.storage.files import atomic_folder, atomic_write_bytes, atomic_write_json

#: What transformers writes for a model and its tokenizer, and our card.
MODEL = ("*.json", "*.txt", "*.jinja", "model*.safetensors", "LICENSE*", peft.CARD)


def export_merged(
    model: nn.Module,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the whole model with its adapters merged: transformers alone loads it, from anywhere.

    It is as large as the base. Every variant of LoRA can be merged, those too that PEFT's format has no place
    for. The model itself stays as it is.

    Parameters
    ----------
    model
        A model of transformers that `inject_lora` has changed, or a ``LoraWrapperRoberta(head="roberta")``,
        which becomes a ``RobertaForSequenceClassification`` or ``RobertaForQuestionAnswering``.
    folder
        Made if it does not exist; an export already in it is replaced in one step.
    tokenizer
        By default the base's own, if it has one.
    metadata
        For the card, see `lora_tutorial.adapters.card.write_card`; ``labels`` names the classes in
        ``config.json`` too.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    NotExpressibleError
        If the head is in no class of transformers.
    ValueError
        If the model holds no adapter or is none of transformers, its base is in 4 bits, or a weight is not
        finite.
    FileExistsError
        If the folder holds something other than an export.
    """
    folder, about = Path(folder), dict(metadata or {})
    validation.check_only(folder, MODEL, "a merged model")
    named = peft.labels(model, about.get("labels"))
    plain = _merged(model)
    validation.check_finite(plain.state_dict())
    if "id2label" in named:
        named["id2label"] = {int(i): label for i, label in named["id2label"].items()}
        plain.config.update(named)
    base = peft.base_name(model)
    tokenizer = _tokenizer(base, model) if tokenizer is None else tokenizer
    ranks = sorted({module.lora_config.r for _, module in lora_modules(model)})
    card = merged_card(type(plain).__name__, base, about, ranks)
    with atomic_folder(folder) as new, quiet():
        plain.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        atomic_write_bytes(new / peft.CARD, card.encode())
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors makes 0600, which a colleague could not read
    return folder


def _merged(model: nn.Module) -> PreTrainedModel:
    """The plain model with the adapters in its weights, all of it a copy."""
    if any(type(module).__name__ in ("Linear4bit", "LoraLinear4bit") for module in model.modules()):
        raise ValueError("This base is in 4 bits: call dequantize_linears first, then export_merged.")
    if not isinstance(model, (PreTrainedModel, LoraWrapperRoberta)):
        raise ValueError(
            f"A {type(model).__name__} is no model of transformers: call unload_lora and save its state_dict."
        )
    names = base_names(model)
    merged = unload_lora(copy.deepcopy(model))
    if isinstance(merged, PreTrainedModel):
        return merged
    config: Any = copy.deepcopy(model.config)
    config.num_labels = list(cast(nn.Module, model.finetune_head_classifier).parameters())[-1].shape[0]
    with torch.device("meta"):
        plain = (ForSequenceClassification if model.task_type == "glue" else ForQuestionAnswering)(config)
    state = {names(name): value for name, value in merged.state_dict().items() if names(name)}
    plain.load_state_dict(state, assign=True)
    return plain


def _tokenizer(base: str, model: nn.Module) -> PreTrainedTokenizerBase | None:
    load = load_lm_tokenizer if is_language_model(type(model).__name__) else load_tokenizer
    try:
        return load(base) if base else None
    except FileNotFoundError:  # a base that was saved without one
        return None


def relocate_peft(folder: str | os.PathLike[str]) -> Path:
    """Correct the place of the base in an export of `export_peft` that was moved or copied.

    ``AutoPeftModel...`` and ``pipeline`` find the base by the entry ``base_model_name_or_path`` of
    ``adapter_config.json`` alone, and read a relative path from the working directory; so the entry is an
    absolute path, and wrong once the folder has moved. `import_peft` needs no correction.

    Returns
    -------
    pathlib.Path
        The base's folder, which the entry now names.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no adapter in PEFT's format, or no folder ``base``.
    """
    folder = Path(folder)
    settings, _ = peft.read_peft(folder)
    base = folder.resolve() / peft.BASE
    if not base.is_dir():
        name = settings.get("base_model_name_or_path")
        raise FileNotFoundError(f"{folder} has no folder {peft.BASE!r}; its base is {name!r}.")
    atomic_write_json(folder / peft.SETTINGS, settings | {"base_model_name_or_path": str(base)})
    return base


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    base_repo_id: str | None = None,
    private: bool | None = None,
) -> str:
    """Upload an adapter to the model hub, into a repository that is made if it does not exist.

    What is uploaded is what `save_adapter`, `export_peft` or `export_merged` wrote, and nothing else in the
    folder. A base that `export_peft` put into ``folder/base`` gets a repository of its own, which the
    uploaded ``adapter_config.json`` and card then name: so ``AutoPeftModel...from_pretrained(repo_id)`` works
    for everybody. You have to be logged in (``hf auth login``), or ``HF_TOKEN`` to be set.

    Parameters
    ----------
    folder
        The adapter's folder.
    repo_id
        ``"user/name"``.
    base_repo_id
        Where ``folder/base`` goes; by default ``"user/name-base"``.
    private
        As for ``huggingface_hub.HfApi.create_repo``.

    Returns
    -------
    str
        The repository's address.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds none of these or it is damaged, its base is a folder that nobody else has, or the
        hub does not take the name or lets you not write. Nothing is uploaded unless the files are whole.
    HubUnreachableError
        If the hub does not answer.
    """
    folder = Path(folder)
    if (folder / peft.SETTINGS).is_file():
        return _push_peft(folder, repo_id, base_repo_id, private)
    if base_repo_id is not None:
        raise ValueError(f"base_repo_id is for a folder with a base from export_peft, and {folder} is none.")
    if (folder / files.SETTINGS).is_file():
        settings, _ = files.read_adapter(folder)
        _refuse_local(folder, settings["base"]["name"])
        return hub.upload(folder, repo_id, [files.SETTINGS, files.TENSORS, peft.CARD], private)
    if not any(folder.glob("model*.safetensors")) or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds nothing to upload: give a folder of save_adapter, export_peft or export_merged."
        )
    return _push_model(folder, repo_id, private)


def _push_model(folder: Path, repo_id: str, private: bool | None) -> str:
    for file in folder.glob("model*.safetensors"):
        validation.read_tensors(file)
    return hub.upload(folder, repo_id, list(MODEL), private)


def _push_peft(folder: Path, repo_id: str, base_repo_id: str | None, private: bool | None) -> str:
    settings, _ = peft.read_peft(folder)
    if (folder / peft.BASE).is_dir():
        base = base_repo_id or f"{repo_id}-base"
        _push_model(folder / peft.BASE, base, private)
    elif base_repo_id is not None:
        raise ValueError(f"{folder} has no folder {peft.BASE!r} to upload to {base_repo_id!r}.")
    else:
        base = settings.get("base_model_name_or_path") or ""
        _refuse_local(folder, base)
    with tempfile.TemporaryDirectory() as stage:
        staged = Path(stage)
        shutil.copyfile(folder / peft.TENSORS, staged / peft.TENSORS)
        atomic_write_json(staged / peft.SETTINGS, settings | {"base_model_name_or_path": base or None})
        if (folder / peft.CARD).is_file():
            card = card_on_hub((folder / peft.CARD).read_text(encoding="utf-8"), settings, base, repo_id)
            atomic_write_bytes(staged / peft.CARD, card.encode())
        return hub.upload(staged, repo_id, [peft.SETTINGS, peft.TENSORS, peft.CARD], private)


def _refuse_local(folder: Path, base: str) -> None:
    if base not in ("minilm", SMOLLM2) and (Path(base).is_absolute() or Path(base).is_dir()):
        raise ValueError(
            f"The base of {folder} is a folder on this machine, {base}: upload what export_merged writes, or "
            "what export_peft writes with a copy of the base."
        )
