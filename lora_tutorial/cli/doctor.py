"""What ``lora-tutorial doctor`` looks at: versions, device, hub, encoders and data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from lora_tutorial.cli.screen import console
from lora_tutorial.models import minilm
from lora_tutorial.storage import downloads, hub

#: Package to what it is for; the first five are needed, the rest for the chapter or command named.
PACKAGES = {
    "torch": "everything",
    "transformers": "encoders",
    "datasets": "data",
    "accelerate": "training",
    "evaluate": "scores",
    "peft": "the chapter on PEFT: pip install peft",
    "bitsandbytes": "the chapters on quantisation: pip install bitsandbytes",
    "matplotlib": "the figures: pip install matplotlib",
}


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    ok: bool
    found: str
    advice: str


def diagnose() -> Iterator[Finding]:
    """Look at one thing after the other; nothing is downloaded and nothing is changed."""
    for package, purpose in PACKAGES.items():
        try:
            yield Finding(package, True, metadata.version(package), "")
        except metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f"needed for {purpose}")
    yield _device()
    reachable = hub.is_reachable()
    offline = "Everything embedded works without it; roberta-base and GLUE from the hub do not."
    yield Finding("model hub", reachable, "reachable" if reachable else "not reachable", offline)
    cached = downloads.cache_folder()
    there = minilm.target_folder().is_dir()
    fetched = "in the cache" if there else "not fetched yet"
    yield Finding(
        "encoder minilm", there, fetched, "Fetched by pip at first use (84 MB), into " + str(cached)
    )
    base = hub.cached_checkpoint("roberta-base") is not None
    advice = "Downloaded at first use." if reachable else "Use minilm, or a folder with the checkpoint."
    yield Finding("encoder roberta-base", base, "in the hub's cache" if base else "not here", advice)
    hutto = downloads.is_cached("hutto")
    found = "in the cache" if hutto else "not fetched yet"
    yield Finding("reviews and three more", hutto, found, "Fetched by pip at first use (2.5 MB).")
    yield _folder()


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding("device", True, torch.cuda.get_device_name(0), "")
    if torch.backends.mps.is_available():
        return Finding("device", True, "Apple GPU (mps)", "")
    return Finding("device", True, f"CPU, {torch.get_num_threads()} threads", "")


def _folder() -> Finding:
    folder = os.environ.get("LORA_TUTORIAL_DATA")
    if not folder:
        advice = (
            "Optional: a folder of parquet files in the hub's schema, for GLUE and SQuAD without the hub."
        )
        return Finding("LORA_TUTORIAL_DATA", False, "not set", advice)
    tasks = sorted(path.parent.name for path in Path(folder).glob("*/validation*.parquet"))
    return Finding(
        "LORA_TUTORIAL_DATA", bool(tasks), ", ".join(tasks) or "no task", f"Nothing to read in {folder}."
    )


def report() -> None:
    """Print the table."""
    table = Table("", "what", "found", "what to do", show_lines=False)
    for finding in diagnose():
        mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
        table.add_row(mark, finding.what, finding.found, "" if finding.ok else finding.advice)
    console.print(table)
