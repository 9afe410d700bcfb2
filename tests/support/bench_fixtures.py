"""The grid runner's fixtures, for the test files that name this module as a plugin."""

import pytest
from bench_rows import BAD, BRIEF, GOOD, write
from tiny_checkpoint import make_checkpoint

from lora_tutorial.experiments.bench import run_grid
from lora_tutorial.experiments.grid import Grid
from lora_tutorial.training import trainer as training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2's and STS-B's schema with sentences of our own."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 5), ("validation", 3)):
        single = [
            {"sentence": f"{text}, {'very ' * (i + label)}{split}", "label": label}
            for i in range(count)
            for label, texts in enumerate((BAD, GOOD))
            for text in texts
        ]
        write(folder / "sst2", split, single)
        pairs = [
            {"sentence1": a, "sentence2": f"{b} {i}", "label": 5.0 if a == b else 1.25}
            for i in range(count)
            for a in GOOD
            for b in (a, BAD[i % 4])
        ]
        write(folder / "stsb", split, pairs)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("encoder") / "tiny", GOOD + BAD))


@pytest.fixture
def plan(data, encoder):
    """A small grid; keyword arguments replace its parts."""

    def make(**changes):
        parts = {"tasks": ("sst2",), "methods": ("lora",), "seeds": (0,), "changes": BRIEF}
        return Grid(**{**parts, "encoder": encoder, "source": str(data), **changes})

    return make


@pytest.fixture
def go(tmp_path):
    """Run a grid in this test's folders, quietly; returns the lines it said."""

    def run(plan, **options):
        lines = []
        options = {"progress": False, "cpu": True} | options
        run_grid(plan, tmp_path / "results", tmp_path / "work", say=lines.append, **options)
        return lines

    return run


@pytest.fixture
def updates(monkeypatch):
    """Counts optimiser steps; `updates.stop_at` interrupts one as Ctrl-C does."""
    original = training.Trainer.update

    class Updates(list):
        stop_at = None

    seen = Updates()

    def counted(run, batch):
        if len(seen) == seen.stop_at:
            raise KeyboardInterrupt
        seen.append(run.step)
        return original(run, batch)

    monkeypatch.setattr(training.Trainer, "update", counted)
    return seen
