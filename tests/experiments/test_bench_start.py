"""Runs that begin with another task's adapter, as the LoRA paper's MRPC, RTE and STS-B begin with MNLI's."""

import pytest
import torch
from bench_rows import BAD, GOOD
from tiny_checkpoint import make_checkpoint

from lora_tutorial.adapters.files import TENSORS, load_adapter, save_adapter, start_from_adapter
from lora_tutorial.data.tasks import get_task
from lora_tutorial.experiments.run import Experiment, build_model, run_experiment
from lora_tutorial.storage.files import sha256_of
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import load_record

pytest_plugins = ["bench_fixtures"]


@pytest.fixture
def other(encoder, tmp_path):
    """A two-class adapter whose factors are not those of a fresh model."""
    model = build_model(get_task("sst2"), "lora", encoder, seed=5)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.fill_(0.01 * (number + 1))
    save_adapter(model, tmp_path / "other", {"task": "sst2"})
    return tmp_path / "other"


def test_a_start_brings_the_factors_and_leaves_the_head(other, encoder):
    model = build_model(get_task("stsb"), "lora", encoder)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    start_from_adapter(model, other)
    theirs = dict(load_adapter(other).named_parameters())
    for name, value in model.named_parameters():
        if "lora" in name:
            assert torch.equal(value, theirs[name]) and not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
        assert value.requires_grad == ("lora" in name or name.startswith("finetune_head_"))


def test_what_cannot_be_a_start_is_refused_and_nothing_changes(other, encoder, tmp_path):
    fresh = build_model(get_task("stsb"), "lora", encoder, lora_rank=4)
    before = [value.detach().clone() for value in fresh.parameters()]
    with pytest.raises(ValueError, match=r"is \(8, 24\) in the adapter but \(4, 24\)"):
        start_from_adapter(fresh, other)
    assert all(map(torch.equal, before, fresh.parameters()))
    with pytest.raises(ValueError, match="trained other parameters.*same method"):
        start_from_adapter(build_model(get_task("stsb"), "lora+bias+norm", encoder), other)
    elsewhere = str(make_checkpoint(tmp_path / "elsewhere" / "tiny", GOOD + BAD, seed=1))
    with pytest.raises(ValueError, match="another base"):
        start_from_adapter(build_model(get_task("stsb"), "lora", elsewhere), other)
    with pytest.raises(FileNotFoundError, match="no adapter folder"):
        start_from_adapter(fresh, tmp_path / "absent")


def test_a_grid_starts_each_seed_of_lora_from_the_earlier_tasks_adapter(plan, go, tmp_path):
    changes = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "start_from": "sst2"}
    go(plan(tasks=("sst2", "stsb"), methods=("lora", "head"), seeds=(0, 1), changes=changes))
    names = sorted(path.stem for path in (tmp_path / "results").glob("stsb*.json"))
    assert names == [
        "stsb-tiny-head-cpu-seed0",
        "stsb-tiny-head-cpu-seed1",
        "stsb-tiny-lora-cpu-from-sst2-seed0",
        "stsb-tiny-lora-cpu-from-sst2-seed1",
    ]
    for name in names:
        record = load_record(tmp_path / "results" / f"{name}.json")
        assert record.status == "finished", record.error
        lora = "lora" in name
        assert record.recipe["start_from"] == ("sst2" if lora else None)
        if lora:
            first = tmp_path / "work" / f"sst2-tiny-lora-cpu-seed{name[-1]}" / "adapter"
            assert record.extra["start_sha256"] == sha256_of(first / TENSORS)
    assert load_record(tmp_path / "results" / "sst2-tiny-lora-cpu-seed0.json").recipe["start_from"] is None
    go(plan(tasks=("stsb",), changes=changes | {"start_from": None}))
    cold, warm = (
        load_record(tmp_path / "results" / f"stsb-tiny-lora-cpu{start}-seed0.json").steps["loss"]
        for start in ("", "-from-sst2")
    )
    assert cold[0] != warm[0], "the start makes a difference from the first step on"


def test_a_start_that_is_not_there_is_said_before_any_work(plan, go, updates, tmp_path):
    changes = {"epochs": 1, "batch_size": 8, "start_from": "sst2"}
    with pytest.raises(FileNotFoundError, match="stsb starts from the adapter of sst2.*--start-from none"):
        go(plan(tasks=("stsb",), changes=changes))
    with pytest.raises(FileNotFoundError, match="mrpc starts from the adapter of mnli"):
        plan(recipe="paper", tasks=("mrpc",), changes={}).start("mrpc", "lora", 0, tmp_path)
    assert not updates


def test_a_recipe_with_a_start_and_a_run_without_is_refused(encoder):
    experiment = Experiment(load_recipe("paper", "mrpc"), "mrpc", encoder, "lora")
    with pytest.raises(ValueError, match="starts from 'mnli' and start=None.*or neither"):
        run_experiment(experiment)
