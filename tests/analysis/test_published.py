"""What is said of other people's data and papers: counts against the real files, sources against the book."""

import re
from pathlib import Path

import numpy as np
import pytest

from lora_tutorial.analysis.published import GLUE, GLUE_LORA_SPREAD, PUBLISHED_GLUE, WNLI_COUNTS
from lora_tutorial.data.tasks import TASKS

BOOK = Path(__file__).resolve().parents[2] / "book"


def test_glue_is_nine_rows_of_the_registry():
    assert len(GLUE) == 9
    assert all(TASKS[name].path == "nyu-mll/glue" for name in GLUE)
    for name, facts in GLUE.items():
        classes = facts.validation_classes
        assert classes is None or len(classes) == max(1, len(TASKS[name].labels)), name
        assert facts.overlap in ("seen", "partly", "not listed")


def test_published_scores_have_names_of_the_tasks_metrics_and_a_source():
    entries = set(re.findall(r"@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8")))
    known = {
        "accuracy": {"accuracy", "accuracy mismatched"},
        "accuracy_f1": {"accuracy", "f1"},
        "matthews": {"matthews"},
        "pearson_spearman": {"pearson", "spearman"},
    }
    for row in PUBLISHED_GLUE.values():
        assert row.citation in entries
        for task, scores in row.scores.items():
            assert set(scores) <= known[TASKS[task].metric]
            assert all(30 < value < 100 for value in scores.values()), "percent, not shares"
    assert set(GLUE_LORA_SPREAD) == set(PUBLISHED_GLUE["paper LoRA"].scores)


def test_the_papers_rows_have_the_papers_averages():
    """Table 2 prints an average beside each row: a typing error in one figure would show here."""
    for name, average in {"paper full*": 86.4, "paper BitFit*": 85.2, "paper LoRA": 87.2}.items():
        scores = [next(iter(s.values())) for s in PUBLISHED_GLUE[name].scores.values()]
        assert len(scores) == 8 and abs(np.mean(scores) - average) < 0.051, name


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "mnli", "qnli", "rte", "wnli"])
def test_counts_are_those_of_the_real_files(name, data_folder):
    from lora_tutorial.data.sources import load_task

    task, data = load_task(name, data_folder)
    labels = data["validation"]["label"]
    counted = (len(labels),) if task.regression else tuple(np.bincount(labels))
    assert counted == GLUE[name].validation_classes
    if "train" in data:
        assert len(data["train"]) == GLUE[name].train_rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli", "qnli", "rte", "wnli"])
def test_mean_lengths_are_those_of_the_real_files(name, data_folder, wordpiece):
    from lora_tutorial.data.sources import load_task

    task, data = load_task(name, data_folder)
    rows = data["train"] if "train" in data else data["validation"]
    rows = rows.select(range(min(6000, len(rows))))
    columns = [list(rows[column]) for column in task.columns]
    ids = wordpiece(*columns, truncation=True, max_length=128)["input_ids"]
    assert abs(np.mean([len(row) for row in ids]) - GLUE[name].tokens) < 0.06


def test_wnli_counts_are_those_of_the_real_files(data_folder):
    from lora_tutorial.data.sources import load_task

    data = load_task("wnli", data_folder).data

    def words(row):
        return set(f"{row['sentence1']} {row['sentence2']}".lower().split())

    train = [(row, words(row)) for row in data["train"]]
    firsts = {row["sentence1"] for row, _ in train}
    same = 0
    for row in data["validation"]:
        own = words(row)
        nearest, _ = max(train, key=lambda pair: len(own & pair[1]) / len(own | pair[1]))
        same += nearest["label"] == row["label"]
    assert {
        "validation rows": len(data["validation"]),
        "first sentence is in training too": sum(r["sentence1"] in firsts for r in data["validation"]),
        "nearest training row has the same label": same,
    } == WNLI_COUNTS
