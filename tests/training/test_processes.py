"""Two processes with half a batch each learn what one learns; a killed run ends as if it had not been."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.training.records import RunRecord
from lora_tutorial.training.trainer import train

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "killed_runs.py"


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """The folder of what one process did in forks of itself, and what it said of ten kills."""
    folder = tmp_path_factory.mktemp("forked")
    command = [sys.executable, str(SCRIPT), str(folder), "10", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=SCRIPT.parents[3])
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two(forked):
    folder = forked[0] / "two"
    return folder, json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="module")
def one():
    model = tiny.model(dropout=0.0)
    return train(model, *tiny.loaders(), load_metric("accuracy"), tiny.recipe(), cpu=True), model


def test_weights_after_two_processes_are_those_of_one(two, one):
    """The other process starts from other weights: it must receive the first one's before it trains."""
    folder, told = two
    record, model = one
    weights = load_file(folder / "weights.safetensors")
    for name, value in model.named_parameters():
        assert (weights[name] - value).abs().max() <= 1e-6, name
    assert not torch.equal(weights["head.weight"], tiny.model().head.weight)
    for series in ("loss", "grad_norm", "learning_rate"):
        assert told["record"]["steps"][series] == pytest.approx(record.steps[series], abs=1e-5), series


def test_a_batch_sampler_of_the_callers_gets_its_epoch_on_every_process(two):
    record = train(tiny.model(dropout=0.0), *tiny.own_loaders(), None, tiny.recipe(), cpu=True)
    assert two[1]["own"]["loss"] == pytest.approx(record.steps["loss"], abs=1e-5)


def test_scores_of_two_processes_count_every_example_once(two, one):
    found = RunRecord.from_dict(two[1]["record"])
    assert found.processes == 2 and len(tiny.loaders()[1].dataset) % 8 != 0
    assert [epoch["scores"] for epoch in found.epochs] == [epoch["scores"] for epoch in one[0].epochs]


def test_a_run_on_two_processes_resumes_to_the_same_bits(two):
    assert two[1]["resumed"] == [True, True]
    assert (two[0] / "part" / "record.json").exists()


def test_a_batch_that_does_not_split_is_refused(two):
    assert "A batch of 9 cannot be split over 2 processes" in two[1]["refusal"]


def test_torchrun_sets_what_the_two_were_given():
    shown = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [sys.executable, *command, "sh", "-c", shown]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ranks = sorted(line.rpartition(" ")[0] for line in done.stdout.splitlines())
    assert ranks == ["0 0 2 2", "1 1 2 2"], done.stderr
    assert all(re.search(r" [\w.-]+:\d+$", line) for line in done.stdout.splitlines())


def test_ten_kills_at_seeded_moments_end_in_the_same_bits(forked):
    """kill -9 at any call at all, and inside a write: with half a tensor file, before an fsync or rename."""
    whole, runs = forked[1]["whole"], forked[1]["runs"]
    assert whole["done"] == 24 and whole["status"] == "finished"
    assert len(runs) == 10 and {run["signal"] for run in runs} == {signal.SIGKILL}
    assert sum(any(name.startswith(".step-") for name in run["left"]) for run in runs) >= 3, (
        "none died in a write"
    )
    assert sum(0 < run["done"] < 24 for run in runs) >= 7
    for run in runs:
        end = run["end"]
        assert run["again"] == 0, run["plan"]
        for key in ("state", "steps", "scores", "status", "files"):
            assert end[key] == whole[key], (run["plan"], key)
        # A checkpoint every three steps: no more than these, and the one in progress, are done again.
        assert 0 <= end["done"] - 24 <= 3, run["plan"]
