"""Put a finished run's adapter among those that come with the book: what it must prove, and its card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_tutorial.adapters.card import write_card
from lora_tutorial.adapters.files import SETTINGS, TENSORS, read_adapter
from lora_tutorial.data.tasks import DATA, DataOrigin
from lora_tutorial.lm.basics import is_lm_adapter
from lora_tutorial.lm.models import SMOLLM2
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.storage.files import LIMIT, LM_LIMIT, atomic_folder, atomic_write_bytes, sha256_of
from lora_tutorial.training.records import RunRecord, load_record

CARD = "README.md"
#: What a base that has a short name of ours has read of a task's texts.
READ: dict[str, Callable[[DataOrigin], str]] = {
    "minilm": lambda origin: origin.read_by_minilm,
    SMOLLM2: lambda _: "web text and public code; whether the scored functions are in it is not said",
}


def ship_adapter(
    run: str | os.PathLike[str], record: str | os.PathLike[str], into: str | os.PathLike[str]
) -> Path:
    """Copy a finished run's adapter into ``into/<task>``, with a card written from its record.

    Parameters
    ----------
    run
        The run's folder, as ``lora-tutorial bench`` leaves it; the adapter is in ``run/adapter``.
    record
        The run's record.
    into
        Folder of all adapters. An adapter of the same task that is in it is replaced in one step.

    Returns
    -------
    Path
        ``into/<task>``.

    Raises
    ------
    FileNotFoundError
        If adapter or record is missing.
    ValueError
        If the record is unfinished or a sweep's, the adapter is not the one that the record scored, its base
        is a folder that nobody else has, the task's data have no row in ``data.tasks``, or the whole is not
        under ``LIMIT`` (``LM_LIMIT`` for a language model's). Nothing is written then.
    """
    source, record = Path(run) / "adapter", Path(record)
    found = load_record(record)
    if found.status != "finished" or "sweep" in found.extra:
        kind = "a sweep's" if "sweep" in found.extra else found.status
        raise ValueError(f"{record.name} is {kind}, and only a finished run's adapter is shipped.")
    settings, _ = read_adapter(source)
    task = found.config["task"]
    _check(source, settings, found, record.name)
    if task not in DATA:
        raise ValueError(f"Say in data/tasks.py where the data of {task!r} come from, and ship it then.")
    where = record.name if record.parent.name == "results" else f"{record.parent.name}/{record.name}"
    card = _card(settings, found, where).encode()
    size = len(card) + sum((source / name).stat().st_size for name in (SETTINGS, TENSORS))
    limit = LM_LIMIT if is_lm_adapter(settings) else LIMIT
    if size >= limit:
        raise ValueError(f"The adapter of {task!r} with its card has {size:,} bytes, not under {limit:,}.")
    with atomic_folder(Path(into) / task) as new:
        for name in (SETTINGS, TENSORS):
            shutil.copyfile(source / name, new / name)
        atomic_write_bytes(new / CARD, card)
    return Path(into) / task


def _check(source: Path, settings: dict[str, Any], record: RunRecord, name: str) -> None:
    """Refuse an adapter that is not the one the record speaks of, or whose base cannot be had elsewhere."""
    digest, expected = sha256_of(source / TENSORS), record.extra.get("adapter_sha256")
    if digest != expected:
        raise ValueError(f"{source} has SHA-256 {digest[:12]}..., and {name} scored {str(expected)[:12]}...")
    about = settings["metadata"]
    said = {
        "task": record.config["task"],
        "data_sha256": record.config["data_sha256"],
        "scored_on": record.extra["scored_on"],
        "scores": record.extra["scores"]["trained"],
    }
    for key, value in said.items():
        if about.get(key) != value:
            raise ValueError(f"{source} says {key} {about.get(key)!r}, and {name} says {value!r}.")
    base = settings["base"]["name"]
    if Path(base).is_absolute() or (base not in READ and Path(base).is_dir()):
        raise ValueError(
            f"The base of {source} is a folder, {base}: ship adapters of 'minilm' or of the hub."
        )


def _card(settings: dict[str, Any], record: RunRecord, name: str) -> str:
    config, recipe, origin = record.config, record.recipe, DATA[record.config["task"]]
    split = record.extra["scored_on"]
    base, lora = settings["base"]["name"], LoraConfig.from_dict(config["lora"])
    kept = "best" if recipe.get("keep_best") else "last"
    unit = "windows" if "context" in settings["metadata"]["columns"] else "examples"
    read = READ.get(base, lambda _: "not looked up for this base")(origin)
    head = "" if is_lm_adapter(settings) else " with the head"
    metadata = {
        "title": f"LoRA adapter for {config['task']}",
        "data": origin.name,
        "data_licence": origin.licence,
        "scores": record.extra["scores"]["trained"],
        "licence": "MIT",
        "Scored on": f"{split}, {record.extra['splits'][split]['rows']:,} rows, after the {kept} epoch",
        "Method": f"{config['method']}, {record.trainable_parameters:,} parameters{head}",
        "Recipe": ", ".join(f"{key} {value}" for key, value in recipe.items()) + f"; seed {record.seed}",
        "Trained on": f"{record.identity['examples']:,} {unit} of the training split",
        "Record": f"benchmarks/results/{name}",
        "Contamination": f"The base's own training data, by its model card: {read}. {origin.overlap}".strip(),
        "Terms of the data": "They may bind whoever uses what was trained on them; see the licence above.",
    }
    rule = "lora_alpha / sqrt(r)" if lora.use_rslora else "lora_alpha / r"
    scale = f"r = {lora.r}, lora_alpha = {lora.lora_alpha:g} (scale {rule})"
    return write_card(
        base, metadata, f"{scale}, {settings['parameters']:,} numbers", _usage(settings["metadata"])
    )


def _usage(about: dict[str, Any]) -> list[str]:
    code = [
        "from lora_tutorial import load_adapter, stored_adapter",
        "",
    ]
    code += [f'model = load_adapter(stored_adapter("{about["task"]}"))']
    lines = ["## Use", "", "```python", *code, "```"]
    if "messages" in about["columns"]:
        return [*lines, "", f'At the terminal: `lora-tutorial generate {about["task"]} "a request"`.']
    if "context" not in about["columns"]:
        texts = " ".join(f'"{column}"' for column in about["columns"])
        lines += ["", f"On the command line: `lora-tutorial predict {about['task']} {texts}`."]
    return lines
