"""The grid runner's fixtures, for the test files that name this module as a plugin."""

import dataclasses

import pytest
from bench_rows import BAD, BRIEF, GOOD, write
from squad_rows import row
from tiny_checkpoint import make_checkpoint

from lora_tutorial.data import tasks
from lora_tutorial.experiments.bench import run_grid
from lora_tutorial.experiments.grid import Arm, Grid
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


TITLES = ("Rain", "Snow", "Wind", "Sun", "Fog", "Hail")


def article(title, number, unanswered):
    """Questions on one article; every third has no answer in v2."""
    rows = []
    for i in range(number):
        long = 70 if i == 0 else 3
        context = f"People like {title.lower()} very much in place {i}. " + "It is so. " * long
        answer = None if unanswered and i % 3 == 2 else f"place {i}"
        rows.append(row(context, answer, f"{title}{i}", f"Where do people like {title}?", title=title))
    return rows


@pytest.fixture(scope="module")
def article_files(tmp_path_factory):
    """SQuAD's schema with articles of our own."""
    folder = tmp_path_factory.mktemp("squad-data")
    write(folder / "squad", "train", [r for title in TITLES for r in article(title, 6, False)])
    write(folder / "squad", "validation", article("Ice", 8, False))
    write(folder / "squad_v2", "validation", [r for title in TITLES for r in article(title, 6, True)])
    return folder


@pytest.fixture
def questions(article_files, monkeypatch):
    """The same, and the article-wise task with the first four of them for training."""
    task = tasks.TASKS["squad_v2-articles"]
    own = dataclasses.replace(task, train_articles=frozenset(TITLES[:4]))
    monkeypatch.setitem(tasks.TASKS, "squad_v2-articles", own)
    return article_files


@pytest.fixture(scope="module")
def question_encoder(tmp_path_factory):
    texts = [r["context"] + r["question"] for title in (*TITLES, "Ice") for r in article(title, 2, False)]
    return str(make_checkpoint(tmp_path_factory.mktemp("encoder") / "tiny", texts, max_length=384))


@pytest.fixture
def plan(data, encoder):
    """A small grid; keyword arguments replace its parts."""

    def make(methods=("lora",), arm=None, **changes):
        arms = tuple(Arm(method, method, **(arm or {})) for method in methods)
        parts = {"tasks": ("sst2",), "seeds": (0,), "changes": BRIEF, "arms": arms}
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
