"""A language model takes the same path as an encoder: one run, and a grid with prompts and trained arms."""

import json

import pytest
from datasets import Dataset, DatasetDict

from lora_tutorial.experiments import evaluate
from lora_tutorial.experiments.bench import run_grid
from lora_tutorial.experiments.experiment import Experiment
from lora_tutorial.experiments.grid import Arm, Grid, Search
from lora_tutorial.experiments.run import run_experiment, save_run_adapter
from lora_tutorial.lm.models import LM_LORA
from lora_tutorial.training.recipes import load_recipe

QUICK = {"batch_size": 4, "max_length": 120, "learning_rate": 5e-3}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few answers and texts: a run is about the path here, and not about the scores."""
    for name, value in (("ANSWERED", 2), ("MOST_NEW", 4), ("OTHER_TEXTS", 3)):
        monkeypatch.setattr(evaluate, name, value)


def chats(number):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"It is {'even' if n % 2 == 0 else 'odd'}."},
            ]
        }
        for n in range(number)
    ]


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chats(60)))
    return str(path)


def test_a_run_learns_and_its_record_says_what_was_written_and_forgotten(own_file, tiny_folder, tmp_path):
    recipe = load_recipe("chat", epochs=3, **QUICK)
    experiment = Experiment(recipe, own_file, str(tiny_folder), "lora", lora=LM_LORA)
    result = run_experiment(
        experiment, tmp_path / "run", baselines=True, keep_predictions=True, progress=False
    )
    before, after = result.scores["before training"], result.scores["trained"]
    assert after["log_likelihood"] > before["log_likelihood"] + 1
    record = result.record
    assert record.main_score == "log_likelihood"
    assert record.extra["written"]["rows"] == 2 and len(record.extra["written"]["answers"]) == 2
    assert len(record.extra["other_text"]["sums"]) == 3
    about = record.extra["splits"]["test"]
    assert sum(about["predictions"]) / sum(map(float, about["labels"])) == pytest.approx(
        -after["log_likelihood"], abs=1e-4
    )
    assert record.config["task"] == "own" and record.config["lora"]["target_modules"] == "all-linear"
    assert save_run_adapter(result, tmp_path / "run" / "adapter") > 0


def test_the_same_seed_gives_the_same_run_and_another_another(own_file, tiny_folder):
    def losses(seed):
        experiment = Experiment(load_recipe("chat", **QUICK), own_file, str(tiny_folder), "lora", seed=seed)
        record = run_experiment(experiment, progress=False).record
        assert "written" in record.extra and "other_text" not in record.extra  # which is for comparisons
        return record.steps["loss"]

    assert losses(0) == losses(0) != losses(1)


def test_a_grid_searches_every_arm_and_asks_the_untrained_model_too(tiny_folder, tmp_path, monkeypatch):
    rows = chats(60)
    data = DatasetDict(
        train=Dataset.from_list(rows[:40]),
        validation=Dataset.from_list(rows[40:50]),
        test=Dataset.from_list(rows[50:]),
    )
    monkeypatch.setattr("lora_tutorial.data.sources.load_docstrings", lambda: data)
    arms = (
        Arm("base", "probe"),
        Arm("shots", "probe", shots=2),
        Arm("all", "lora", lora=LM_LORA, rates=(1e-3, 4e-3)),
        Arm("full", "full", rates=(1e-3,)),
    )
    grid = Grid(
        ("docstrings",),
        arms,
        (0, 1),
        str(tiny_folder),
        recipe="chat",
        changes=QUICK,
        search=Search(0.2, most=2),
    )
    records = run_grid(grid, tmp_path / "records", tmp_path / "work", say=lambda line: None, progress=False)
    by_arm = {}
    for record in records:
        assert record.status == "finished", record.error
        by_arm.setdefault(record.config["arm"], []).append(record)
    assert {arm: len(found) for arm, found in by_arm.items()} == {"base": 1, "shots": 1, "all": 3, "full": 3}
    base = by_arm["base"][0].extra["splits"]["test"]
    assert len(base["predictions"]) == 10 and by_arm["base"][0].config["method"] == "probe"
    assert by_arm["shots"][0].extra["shots"] == 2
    assert by_arm["shots"][0].extra["splits"]["test"]["predictions"] != base["predictions"]
    assert (
        by_arm["shots"][0].extra["splits"]["test"]["labels"] == base["labels"]
    )  # the same tokens are scored


def test_an_encoder_and_a_language_model_need_a_grid_each():
    with pytest.raises(ValueError, match="a grid each"):
        Grid(("docstrings", "cola"))


def test_examples_are_for_an_untrained_model():
    with pytest.raises(ValueError, match="shots=2 is for method 'probe'"):
        Arm("all", "lora", shots=2)


def test_without_torchmetrics_a_run_stops_before_it_trains(own_file, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_tutorial.lm.basics.find_spec", lambda name: None)
    experiment = Experiment(load_recipe("chat", **QUICK), own_file, str(tiny_folder), "lora")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lora-tutorial\[lm\]'"):
        run_experiment(experiment, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
