"""A run record says the same after a round trip, and a broken one is refused by name."""

import json
import math

import pytest

from lora_tutorial.training.records import (
    HELD_OUT,
    RunRecord,
    best_rate,
    describe_hardware,
    held_out_score,
    load_record,
    load_records,
    package_versions,
)


def record(scores=(0.5, 0.75, 0.625), **changes):
    fields = {"config": {"model": "minilm"}, "recipe": {"epochs": 3}, "seed": 1, "main_score": "accuracy"}
    made = RunRecord(**fields | changes)
    for number, score in enumerate(scores, start=1):
        made.add_step(1 / number, 0.1, None if number == 2 else 2.0)
        epoch = {"epoch": number, "step": number, "train_loss": 1 / number, "seconds": 0.5}
        made.epochs.append({**epoch, "scores": {"f1": 1 - score, "accuracy": score}})
    return made


def test_a_search_takes_the_best_held_out_score_the_lowest_of_equal_rates_and_none_that_diverged():
    splits = {HELD_OUT: {"scores": {"f1": 0.9, "accuracy": 0.4}}, "validation": {"scores": {"accuracy": 0.8}}}
    assert held_out_score(record(status="finished", extra={"splits": splits})) == 0.4
    diverged = held_out_score(record(status="failed"))
    assert best_rate({1e-3: 0.5, 2e-3: 0.7, 4e-3: 0.7, 8e-3: diverged}) == 2e-3
    assert best_rate({1e-3: diverged, 2e-3: diverged}) is None and best_rate({}) is None


def test_last_and_best_are_both_named_and_best_follows_the_main_score():
    made = record()
    assert made.last == {"epoch": 3, "step": 3, "scores": {"f1": 0.375, "accuracy": 0.625}}
    assert made.best == {"epoch": 2, "step": 2, "scores": {"f1": 0.25, "accuracy": 0.75}}
    assert record((0.5, 0.5)).best["epoch"] == 1, "the earliest of equals"
    assert record(()).last is record(()).best is None


def test_round_trip_through_a_file(tmp_path):
    made = record(status="finished", extra={"adapter_bytes": 12}, config={"name": "élan"})
    path = made.save(tmp_path / "deep" / "run.json")
    assert load_record(path) == made
    assert load_records(tmp_path / "deep") == [made]
    on_disk = json.loads(path.read_text(encoding="utf-8"))
    assert on_disk["last"] == made.last and on_disk["best"] == made.best
    assert "élan" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["run.json"]


def test_steps_keep_single_precision_and_a_skipped_step_has_no_norm():
    made = RunRecord(config={}, recipe={}, seed=0)
    made.add_step(0.123456789, 5e-4, None)
    assert made.steps == {"loss": [0.1234568], "learning_rate": [5e-4], "grad_norm": [None]}


def test_nan_is_never_written(tmp_path):
    made = record()
    made.steps["loss"][0] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        made.save(tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=2), "format 1"),
        (lambda d: d.pop("seed"), r"missing fields \['seed'\]"),
        (lambda d: d.pop("best"), r"missing fields \['best'\]"),
        (lambda d: d.update(colour="red"), r"unknown fields \['colour'\]"),
        (lambda d: d.update(status="done"), "status 'done': expected one of running, finished, failed"),
        (lambda d: d.update(seed="1"), "seed '1'"),
        (lambda d: d["steps"]["loss"].pop(), "differ in length"),
        (lambda d: d["epochs"].pop(0), "epoch 1 is missing"),
        (lambda d: d.update(main_score="recall"), "main score 'recall' is not in epoch 1"),
        (lambda d: d["best"]["scores"].update(accuracy=0.99), "'best' does not follow"),
        (lambda d: d.update(last=None), "'last' does not follow"),
    ],
)
def test_a_broken_record_is_refused_by_file_and_field(tmp_path, change, said):
    values = record().to_dict()
    change(values)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as refused:
        load_record(path)
    assert str(path) in str(refused.value)


def test_absent_and_unreadable_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="No run record"):
        load_record(tmp_path / "run.json")
    with pytest.raises(FileNotFoundError, match="No folder"):
        load_records(tmp_path / "none")
    (tmp_path / "run.json").write_text('{"format": 1', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json"):
        load_record(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="found 'list'"):
        load_record(tmp_path / "run.json")


def test_versions_and_hardware_say_where_a_number_comes_from():
    versions = package_versions()
    assert versions["python"].startswith("3.") and {"torch", "transformers", "accelerate"} <= set(versions)
    hardware = describe_hardware(threads=2)
    assert hardware["threads"] == 2 and hardware["cores"] >= 1 and hardware["cpu"]
