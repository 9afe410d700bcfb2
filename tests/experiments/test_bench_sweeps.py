"""The grid runner's sweep of learning rates: the rows it reads, and the rate a run takes from it."""

import pytest
from bench_rows import BRIEF, write
from datasets import Dataset

from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments.grid import best_rate, held_out_split
from lora_tutorial.training.records import load_record, load_records

pytest_plugins = ["bench_fixtures"]


@pytest.mark.slow
def test_a_sweep_reads_training_rows_only_and_a_run_takes_its_best_rate(plan, go, tmp_path, data):
    lines = go(plan(methods=("head", "lora")), sweep=True, rates=(1e-2, 1e-9))
    sweeps = tmp_path / "results" / "sweeps"
    assert len(list(sweeps.iterdir())) == 4
    assert lines[5].startswith("sst2-tiny-lora-cpu: best rate ") and "of 1e-09: 0." in lines[5]
    winner = load_record(sweeps / "sst2-tiny-lora-cpu-lr0.01.json")
    winner.epochs[-1]["scores"]["accuracy"] = 0.9
    winner.save(sweeps / "sst2-tiny-lora-cpu-lr0.01.json")
    first = {path.name: path.read_bytes() for path in sweeps.iterdir()}
    for record in load_records(sweeps):
        assert record.identity["examples"] == 32 and record.extra["splits"]["validation"]["rows"] == 8
        assert record.extra["sweep"] == {"held_out": 0.2, "of": "train"} and record.steps["loss"] == []
    elsewhere = tmp_path / data.name
    write(elsewhere / "sst2", "train", list(Dataset.from_parquet(str(data / "sst2" / "train.parquet"))))
    write(elsewhere / "sst2", "validation", [{"sentence": "other rows", "label": 1}])
    lines = go(plan(methods=("lora",), source=str(elsewhere)), sweep=True, rates=(1e-2, 1e-9))
    assert all("here already" in line for line in lines[:2]), "other validation rows make no difference"
    assert "best rate 0.01 of" in lines[2] and "at the edge" in lines[2]
    go(plan(methods=("lora", "bitfit")))
    bitfit, lora = load_records(tmp_path / "results")
    assert lora.recipe["learning_rate"] == 1e-2 and lora.extra["learning_rate"]["from"] == "sweep"
    assert set(lora.extra["learning_rate"]["sweep"]) == {"0.01", "1e-09"}
    assert bitfit.recipe["learning_rate"] == 5e-4, "the recipe's"
    assert bitfit.extra["learning_rate"]["from"] == "recipe, unswept"
    assert {path.name: path.read_bytes() for path in sweeps.iterdir()} == first


def test_the_held_out_rows_are_a_fifth_of_those_a_run_would_train_on(plan, data):
    small = plan(changes=BRIEF | {"max_examples": 20})
    loaded, recipe = load_task("sst2", data), small.recipe_for("sst2")
    parts = held_out_split(loaded, recipe).data
    train, held = set(parts["train"]["sentence"]), set(parts["validation"]["sentence"])
    capped = loaded.data["train"].select(recipe.subset(40))["sentence"]
    assert (
        len(train) == 16
        and len(held) == 4
        and train | held == set(capped)
        and set(parts)
        == {
            "train",
            "validation",
        }
    )


def test_the_lowest_of_equal_rates_wins_and_failed_ones_do_not_count(plan, go, tmp_path):
    go(plan(methods=("head",)), sweep=True, rates=(3e-9, 1e-9))
    best, scores = best_rate(tmp_path / "results", "sst2-tiny-head-cpu")
    assert best == 1e-9 and len(set(scores.values())) == 1
    path = tmp_path / "results" / "sweeps" / "sst2-tiny-head-cpu-lr3e-09.json"
    record = load_record(path)
    record.epochs[0]["scores"]["accuracy"] = 1.0  # best, not last
    record.save(path)
    assert best_rate(tmp_path / "results", "sst2-tiny-head-cpu")[0] == 1e-9
    path = tmp_path / "results" / "sweeps" / "sst2-tiny-head-cpu-lr1e-09.json"
    record = load_record(path)
    record.status = "failed"
    record.save(path)
    assert best_rate(tmp_path / "results", "sst2-tiny-head-cpu")[0] == 3e-9
    assert best_rate(tmp_path / "results", "sst2-tiny-lora-cpu") == (None, {})
