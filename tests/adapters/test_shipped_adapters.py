"""Every adapter that comes with the book: small, described, and as good as its record says."""

import json
import os
import random
import re
from pathlib import Path

import pytest
import torch

from lora_tutorial import load_adapter
from lora_tutorial.adapters.files import TENSORS, read_adapter, stored_adapters
from lora_tutorial.adapters.shelf import AdapterShelf
from lora_tutorial.data.batches import tokenize
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import DATA, LoadedTask, get_task
from lora_tutorial.experiments.evaluate import RowEvaluator, predictions_hash
from lora_tutorial.experiments.inputs import EVALUATION_BATCH, OVERLAP, data_hash
from lora_tutorial.experiments.ship import CARD, READ
from lora_tutorial.lm.models import LANGUAGE_MODELS
from lora_tutorial.models.encoders import ENCODERS, load_tokenizer
from lora_tutorial.squad.evaluator import Reader
from lora_tutorial.storage.files import LIMIT, LM_LIMIT, sha256_of
from lora_tutorial.training.records import load_record

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = stored_adapters()
ON_SHELF = stored_adapters("minilm")
TABLES = [task for task in ON_SHELF if not get_task(task).extractive]
READERS = [task for task in SHIPPED if get_task(task).extractive]
PREDICTED = json.loads(Path(__file__).with_name("shipped_predictions.json").read_text())
ROWS, QUESTIONS = 64, 300


def test_on_a_shelf_each_gives_the_bits_that_it_gives_alone():
    shelf, tokenizer = AdapterShelf("minilm"), load_tokenizer("minilm")
    batch = tokenizer(["A short one.", "Is this sentence longer than it?"], padding=True, return_tensors="pt")
    for task, folder in ON_SHELF.items():
        shelf.add(task, folder)
    for task, folder in ON_SHELF.items():
        with torch.no_grad():
            found, expected = shelf.use(task)(**batch), load_adapter(folder)(**batch)
        for name, value in expected.items():
            assert torch.equal(found[name], value), (task, name)


def card_of(folder):
    return (folder / CARD).read_text(encoding="utf-8")


def record_of(folder):
    (name,) = re.findall(r"\| Record \| benchmarks/results/([\w+./-]+\.json) \|", card_of(folder))
    return load_record(ROOT / "benchmarks" / "results" / name)


def data_of(task, folder):
    """The task from the folder of real data, or a skip that says what is not there."""
    try:
        return load_task(task, folder)
    except FileNotFoundError as error:
        if os.environ.get("LORA_TUTORIAL_REQUIRE_DATA"):
            raise
        pytest.skip(f"{task}: {error}")


@pytest.mark.parametrize("task", SHIPPED)
def test_it_is_small_and_its_card_says_what_its_record_does(task):
    folder = SHIPPED[task]
    assert sorted(p.name for p in folder.iterdir()) == [CARD, "adapter.json", "adapter.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < (LIMIT if task in ON_SHELF else LM_LIMIT)
    record, card, (settings, _) = record_of(folder), card_of(folder), read_adapter(folder)
    assert record.status == "finished" and record.config["task"] == task == settings["metadata"]["task"]
    assert sha256_of(folder / TENSORS) == record.extra["adapter_sha256"]
    origin = (ENCODERS | LANGUAGE_MODELS)[settings["base"]["name"]]
    for part in (
        f"| Base | {origin.name} ({origin.licence}) |",
        f"| Data | {DATA[task].name} ({DATA[task].licence}) |",
        READ[settings["base"]["name"]](DATA[task]),
        DATA[task].overlap,
    ):
        assert part in card, part
    (scores,) = re.findall(r"\| Scores \| (.*) \|", card)
    trained = record.extra["scores"]["trained"]
    assert scores == ", ".join(f"{name} {value:.4f}" for name, value in trained.items())
    assert settings["metadata"]["scores"] == trained
    assert f"| Scored on | {record.extra['scored_on']}, " in card
    described = json.dumps(settings) + card
    assert not re.search(r"(/\w+){2,}/|[A-Z]:\\", described.replace("benchmarks/results/", ""))


def opened(task, data_folder):
    """What scoring a shipped adapter takes: its data (the record's own), record, tokenizer, length."""
    loaded, record = data_of(task, data_folder), record_of(SHIPPED[task])
    assert data_hash(loaded.data) == record.config["data_sha256"], "other data than the record's"
    settings, _ = read_adapter(SHIPPED[task])
    tokenizer = load_tokenizer(settings["base"]["name"])
    return loaded, record, tokenizer, settings["metadata"]["max_length"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TABLES)
def test_it_predicts_what_its_record_says(task, data_folder):
    """What is stored is what the record was made of; on a sample of the rows the adapter gives it again."""
    loaded, record, tokenizer, max_length = opened(task, data_folder)
    rows, stored = loaded.data["validation"], [float(value) for value in PREDICTED[task]]
    expected = record.extra["splits"]["validation"]
    assert len(rows) == len(stored) == expected["rows"]
    scores = load_metric(loaded.task.metric).compute(predictions=stored, references=rows["label"])
    assert scores == pytest.approx(expected["scores"], abs=1e-4)
    if not loaded.task.regression:  # whose fourth decimal may be another on another machine
        assert predictions_hash(stored) == expected["predictions_sha256"]
    places = random.Random(0).sample(range(len(rows)), ROWS)
    sample = LoadedTask(loaded.task, type(loaded.data)(validation=rows.select(places)))
    tokens = tokenize(sample, tokenizer, max_length)["validation"]
    found = RowEvaluator(loaded.task.metric, tokens, tokenizer).evaluate(load_adapter(SHIPPED[task]))
    assert found.predictions == pytest.approx([stored[place] for place in places], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", READERS)
def test_it_answers_some_hundred_questions_about_as_well_as_its_record_says(task, data_folder):
    loaded, record, tokenizer, max_length = opened(task, data_folder)
    rows = loaded.data["validation"].shuffle(seed=0).select(range(QUESTIONS))
    expected = record.extra["splits"]["validation"]["scores"]
    reader = Reader(rows, tokenizer, max_length, OVERLAP, EVALUATION_BATCH)
    answers = reader(load_adapter(SHIPPED[task]))
    predictions = [{"id": answer.id, "prediction_text": answer.text()} for answer in answers]
    options = {}
    if "threshold" in expected:
        for prediction, answer in zip(predictions, answers, strict=True):
            prediction["no_answer_probability"] = answer.doubt
        options = {"no_answer_threshold": expected["threshold"]}
    references = [{"id": row["id"], "answers": row["answers"]} for row in rows]
    scores = load_metric(loaded.task.metric).compute(
        predictions=predictions, references=references, **options
    )
    # A mean over 300 questions has a standard error below 100 * 0.5 / sqrt(300) = 2.9 points.
    assert scores["f1"] == pytest.approx(expected["f1"], abs=3 * 2.9)
    refused = [answer.text(expected.get("threshold", float("inf"))) for answer in answers].count("")
    share = record.extra["splits"]["validation"]["refused"] / record.extra["splits"]["validation"]["rows"]
    # ... and their number that are refused one below sqrt(300) / 2 = 8.7
    assert refused == pytest.approx(QUESTIONS * share, abs=3 * 8.7)
