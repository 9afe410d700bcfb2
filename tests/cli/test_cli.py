"""The command line as a user meets it: a small real run, and errors in one sentence."""

import json

import pytest
from command_line import fails, run
from datasets import Dataset

from lora_tutorial import load_adapter
from lora_tutorial.training.records import load_record

PRAISE = [
    "a joy from start to end",
    "warm and very funny",
    "the best film of the year",
    "moving, bright and clever",
]
BLAME = [
    "a dull and lazy film",
    "boring from start to end",
    "the worst film of the year",
    "noisy, empty and cheap",
]


@pytest.fixture
def films(tmp_path):
    """Sentences of our own in the hub's schema of SST-2."""
    rows = [
        {"sentence": f"{text} {i}", "label": label}
        for i in range(6)
        for label, texts in enumerate((BLAME, PRAISE))
        for text in texts
    ]
    for split, part in (("train", rows), ("validation", rows[:16])):
        (tmp_path / "data" / "sst2").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(part).to_parquet(tmp_path / "data" / "sst2" / f"{split}.parquet")
    return tmp_path / "data"


def test_train_predict_and_what_is_left_behind(films, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = [
        "train",
        "--task",
        "sst2",
        "--source",
        films,
        "--out",
        out,
        "--epochs",
        3,
        "--learning-rate",
        "3e-3",
    ]
    output = run(*arguments)
    assert (
        "majority class" in output and "frozen encoder, trained head" in output and "lora+bias+norm" in output
    )
    record = load_record(out / "record.json")
    assert record.status == "finished" and record.extra["scored_on"] == "validation"
    assert record.extra["scores"]["majority class"]["accuracy"] == 0.5
    assert record.extra["scores"]["trained"]["accuracy"] > 0.8
    adapter = out / "adapter"
    assert sum(f.stat().st_size for f in adapter.iterdir()) < 1_000_000
    assert str(tmp_path) not in (adapter / "adapter.json").read_text() + (out / "record.json").read_text()
    lines = run("predict", adapter, "a lazy film, dull and empty", "funny, warm and clever").splitlines()
    assert "negative" in lines[0] and "positive" in lines[1]
    assert load_adapter(adapter).adapter_metadata["labels"] == ["negative", "positive"]
    assert "--resume" in fails(monkeypatch, capsys, *arguments)
    before = (adapter / "adapter.safetensors").read_bytes()
    run(*arguments, "--resume")  # finished already: nothing is trained again, the same adapter comes out
    assert (adapter / "adapter.safetensors").read_bytes() == before


def test_params_prints_the_table():
    output = run("params", "roberta-base")
    for number in ("294,912", "420,098", "124,943,618", "1.68", "0.34 %"):
        assert number in output


def test_doctor_says_what_is_missing_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    output = run("doctor")
    assert "torch" in output and "not reachable" in output
    assert "not fetched yet" in output and "Fetched by pip at first use" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--task", "sst3"], "There is no task 'sst3'"),
        (["train", "--method", "lroa"], "method must be one of head, bitfit"),
        (["train", "--recipe", "fast"], "Unknown recipe 'fast'"),
        (["train", "--head", "odd"], "head must be one of tutorial, roberta; got 'odd'"),
        (["train", "--rank", "0"], "r must be the rank, a positive integer; got 0"),
        (["train", "--source", "no/such/folder", "--task", "cola"], "no/such/folder"),
        (["predict", "no/such/adapter", "text"], "no adapter folder"),
        (["params", "roberta-huge"], "roberta-huge"),
    ],
)
def test_errors_are_one_sentence_and_come_before_any_work(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert words in fails(monkeypatch, capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_predict_refuses_an_adapter_that_does_not_say_its_task(tiny_roberta, tmp_path, monkeypatch, capsys):
    from lora_tutorial import LoraWrapperRoberta, save_adapter

    save_adapter(LoraWrapperRoberta("glue", 2, model_id=tiny_roberta, lora_rank=2), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["metadata"] == {}
    assert "load_adapter" in fails(monkeypatch, capsys, "predict", tmp_path / "a", "text")
