"""The grid runner where something is wrong: runs that fail, records of other runs, bad settings."""

import pytest
from bench_rows import BAD, BRIEF, GOOD, write
from tiny_checkpoint import make_checkpoint

from lora_tutorial.experiments import bench, grid
from lora_tutorial.training.records import load_records

pytest_plugins = ["bench_fixtures"]


def test_a_broken_run_is_recorded_and_does_not_stop_the_grid(plan, go, tmp_path, monkeypatch):
    original = bench.run_experiment

    def broken(experiment, *arguments, **options):
        if experiment.method == "lora":
            raise RuntimeError("no memory\n  left")
        return original(experiment, *arguments, **options)

    monkeypatch.setattr(bench, "run_experiment", broken)
    lines = go(plan(methods=("lora", "head")))
    assert "RuntimeError: no memory left" in lines[0]
    head, lora = load_records(tmp_path / "results")
    assert (head.status, lora.status, lora.error) == ("finished", "failed", "RuntimeError: no memory left")
    assert lora.config["method"] == "lora" and lora.last is None
    monkeypatch.setattr(bench, "run_experiment", original)
    lines = go(plan(methods=("lora", "head")))
    assert "here already" in lines[1] and "here already" not in lines[0]
    assert load_records(tmp_path / "results")[1].status == "finished"


def test_a_loss_that_is_not_finite_ends_one_run_and_is_in_its_record(plan, go, tmp_path):
    wild = plan(changes=BRIEF | {"learning_rate": 1e30, "max_grad_norm": None}, methods=("full",))
    lines = go(wild)
    (record,) = load_records(tmp_path / "results")
    assert record.status == "failed" and record.error.startswith("NonFiniteLossError: ")
    assert record.error in lines[0] and record.config["method"] == "full"
    assert record.extra["learning_rate"]["from"] == "given"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"changes": BRIEF | {"epochs": 3}}, "recipe.epochs is 2 there, 3 here"),
        ({"source": "elsewhere"}, "config.data_sha256 is "),
        ({"encoder": "elsewhere"}, "config.base_sha256 is "),
    ],
)
def test_a_record_of_another_configuration_is_refused_before_any_work(
    plan, go, tmp_path, data, updates, changes, words
):
    go(plan())
    (path,) = (tmp_path / "results").iterdir()
    before, done = path.read_bytes(), len(updates)
    if "source" in changes:
        rows = [{"sentence": text, "label": 0} for text in GOOD]
        for split in ("train", "validation"):
            write(tmp_path / data.name / "sst2", split, rows)
        changes = {"source": str(tmp_path / data.name)}
    if "encoder" in changes:
        changes = {"encoder": str(make_checkpoint(tmp_path / "other" / "tiny", GOOD + BAD, seed=1))}
    with pytest.raises(ValueError, match=words) as refused:
        go(plan(seeds=(1, 0), **changes))
    assert path.name in str(refused.value) or "record.json" in str(refused.value)
    assert path.read_bytes() == before and len(updates) == done and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("sst3",)}, "no task 'sst3'"),
        ({"tasks": ()}, r"tasks=\(\): give at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"methods": ("lroa",)}, "method must be one of head"),
        ({"recipe": "fast"}, "Unknown recipe 'fast'"),
        ({"changes": {"epochs": 0}}, "epochs=0"),
        ({"encoder": "./absent"}, "no folder ./absent"),
        ({"source": "./absent"}, "absent/sst2 has no parquet"),
        ({"changes": {"max_length": 200}}, "max_length=200 is not from 3 to 128"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(plan, go, tmp_path, changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        go(plan(**changes))
    assert not (tmp_path / "results").exists() and not (tmp_path / "work").exists()


def test_an_unknown_tracker_or_an_unreadable_list_is_said_before_any_work(plan, go, tmp_path):
    with pytest.raises(ValueError, match="Tracker 'tensorbored' is unknown"):
        go(plan(), log_with=["tensorbored"])
    assert not (tmp_path / "work").exists()
    with pytest.raises(ValueError, match="seeds='0,one': give int values"):
        grid.parse_list("seeds", "0,one", int)
