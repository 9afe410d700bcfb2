"""The README of an adapter: its base, data, scores and licence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_tutorial.lm.models import LANGUAGE_MODELS
from lora_tutorial.models.encoders import ENCODERS

KNOWN = ("title", "base", "base_licence", "data", "data_licence", "scores", "licence", "labels")
_AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    None: "AutoModel",
}
_LOCAL = (".", "/", "~")
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
}


def model_card(settings: Mapping[str, Any], base: str, shipped: bool, metadata: Mapping[str, Any]) -> str:
    """The card of an adapter in PEFT's format; see `write_card`.

    Parameters
    ----------
    settings
        What stands in ``adapter_config.json``.
    base
        Name of the base, as for ``load_encoder`` or ``load_lm``; ``""`` where it has none.
    shipped
        Whether the base lies in the subfolder ``base``.
    metadata
        As for `write_card`.

    Returns
    -------
    str
        The text of ``README.md``.
    """
    return write_card(base, metadata, _adapter(settings), _usage(settings, shipped, base), "peft")


def write_card(
    base: str, metadata: Mapping[str, Any], adapter: str, usage: Sequence[str], library: str | None = None
) -> str:
    """Write a card in Markdown, with the YAML head that a model hub reads.

    Parameters
    ----------
    base
        Name of the base, as for ``load_encoder`` or ``load_lm``; ``""`` where it has none.
    metadata
        What the author knows: ``title``, ``base``, ``base_licence``, ``data``, ``data_licence``, ``scores``
        (a mapping), ``licence`` (an SPDX identifier), ``labels``. Other entries are listed as they are. What
        is not known is said to be unknown.
    adapter
        Its settings, in a line.
    usage
        Lines on how to load it.
    library
        What a model hub calls the library that reads the adapter.

    Returns
    -------
    str
        The text of ``README.md``.
    """
    origin = (ENCODERS | LANGUAGE_MODELS).get(base)
    known: dict[str, Any] = {"base": base}
    if origin:
        known = {"base": origin.name, "base_licence": origin.licence}
    known |= dict(metadata)
    scores, licence = known.get("scores") or {}, known.get("licence")
    head: dict[str, Any] = {"library_name": library} if library else {}
    head["tags"] = ["lora"]
    if licence:
        head["license"] = str(licence).lower()
    if "/" in str(known["base"]) and not str(known["base"]).startswith(_LOCAL):
        head["base_model"] = known["base"]
    named = str(known["base"] or "the model it was trained on (not recorded)")
    if named.startswith(_LOCAL) or Path(named).is_absolute():
        named = f"{Path(named).name}, a folder of the author's"
    data = known.get("data") or known.get("task") or "not recorded"
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {known.get('title') or 'LoRA adapter'}", "", "| | |", "|---|---|"]
    lines += [
        _row("Base", f"{named}{_licence(known.get('base_licence'))}"),
        _row("Data", f"{data}{_licence(known.get('data_licence'))}"),
        _row("Scores", ", ".join(f"{k} {_number(v)}" for k, v in scores.items()) or "not recorded"),
        _row("Licence", licence or "not stated: ask the author before you use it"),
        _row("Adapter", adapter),
    ]
    rest = ((key, value) for key, value in sorted(metadata.items()) if key not in KNOWN)
    lines += [_row(key, value if isinstance(value, str) else json.dumps(value)) for key, value in rest]
    return "\n".join([*lines, "", *usage, ""])


def card_on_hub(text: str, settings: Mapping[str, Any], base: str, repo_id: str) -> str:
    """The card of `model_card` with the hub's names in place of the paths: of the base and of the adapter."""
    before = text.partition("## Use")[0]
    return before + "\n".join([*_code(settings, json.dumps(base), json.dumps(repo_id)), ""])


def merged_card(class_name: str, base: str, metadata: Mapping[str, Any], ranks: Sequence[int]) -> str:
    """The card of a whole model whose adapters are merged; see `write_card`."""
    ending = next((e for e in _PIPELINES if class_name.endswith(e)), None)
    adapter = f"LoRA of rank {' and '.join(map(str, ranks))}, merged into the weights"
    if ending is None:
        code = [f"from transformers import {class_name}", "", f'model = {class_name}.from_pretrained("PATH")']
    else:
        code = ["from transformers import pipeline", "", f'answer = pipeline("{_PIPELINES[ending]}", "PATH")']
    usage = ["## Use", "", "```python", *code, "```", "", "`PATH` is this folder, wherever it is."]
    return write_card(base, metadata, adapter, usage, "transformers")


def _usage(settings: Mapping[str, Any], shipped: bool, base: str) -> list[str]:
    lines = _code(settings, '"PATH/base"' if shipped else json.dumps(base or "BASE"), '"PATH"')
    lines += ["", "`PATH` is this folder, wherever it is."]
    if shipped:
        lines += [
            "",
            "The base is in `base/`. `AutoPeftModel...` and `pipeline` look for it where "
            "`base_model_name_or_path` in `adapter_config.json` says, an absolute path: if the folder has "
            "moved since it was written, load as above, or put the new place there (`relocate_peft` of "
            "lora-tutorial does).",
        ]
    elif settings["task_type"] in ("SEQ_CLS", "TOKEN_CLS"):
        lines += [
            "",
            "The number of labels is not in the adapter: pass `num_labels` to the base if it is not 2.",
        ]
    return lines


def _code(settings: Mapping[str, Any], base: str, adapter: str) -> list[str]:
    auto = _AUTO.get(settings.get("task_type"), "AutoModel")
    lines = ["## Use", "", "```python", "from peft import PeftModel", f"from transformers import {auto}", ""]
    kind = ', dtype="float32"' if settings.get("task_type") == "CAUSAL_LM" else ""  # as load_lm has it
    lines += [f"base = {auto}.from_pretrained({base}{kind})"]
    return [*lines, f"model = PeftModel.from_pretrained(base, {adapter}).eval()", "```"]


def _adapter(settings: Mapping[str, Any]) -> str:
    scale = "lora_alpha / sqrt(r)" if settings["use_rslora"] else "lora_alpha / r"
    r, alpha, bias = settings["r"], settings["lora_alpha"], settings["bias"]
    return f"r = {r}, lora_alpha = {alpha} (scale {scale}), bias = {bias}"


def _licence(licence: object) -> str:
    return f" ({licence})" if licence else ""


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _row(name: str, value: object) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return f"| {name} | {text} |"
