"""Two processes with half a batch each learn what one process learns."""

import json
import os
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

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "two_processes.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment,
        cwd=SCRIPT.parents[3],
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "told.json").read_text()), done.stderr


@pytest.fixture(scope="module")
def one():
    model = tiny.model(dropout=0.0)
    return train(model, *tiny.loaders(), load_metric("accuracy"), tiny.recipe(), cpu=True), model


@pytest.mark.slow
def test_weights_after_two_processes_are_those_of_one(two, one):
    """The other process starts from other weights: it must receive the first one's before it trains."""
    folder, told, _ = two
    record, model = one
    weights = load_file(folder / "weights.safetensors")
    for name, value in model.named_parameters():
        assert (weights[name] - value).abs().max() <= 1e-6, name
    assert not torch.equal(weights["head.weight"], tiny.model().head.weight)
    for series in ("loss", "grad_norm", "learning_rate"):
        assert told["record"]["steps"][series] == pytest.approx(record.steps[series], abs=1e-5), series


@pytest.mark.slow
def test_a_batch_sampler_of_the_callers_gets_its_epoch_on_every_process(two):
    record = train(tiny.model(dropout=0.0), *tiny.own_loaders(), None, tiny.recipe(), cpu=True)
    assert two[1]["own"]["loss"] == pytest.approx(record.steps["loss"], abs=1e-5)


@pytest.mark.slow
def test_scores_of_two_processes_count_every_example_once(two, one):
    found = RunRecord.from_dict(two[1]["record"])
    assert found.processes == 2 and len(tiny.loaders()[1].dataset) % 8 != 0
    assert [epoch["scores"] for epoch in found.epochs] == [epoch["scores"] for epoch in one[0].epochs]


@pytest.mark.slow
def test_a_run_on_two_processes_resumes_to_the_same_bits(two):
    assert two[1]["resumed"] == [True, True]
    assert (two[0] / "part" / "record.json").exists()


@pytest.mark.slow
def test_a_batch_that_does_not_split_is_refused(two):
    assert "A batch of 9 cannot be split over 2 processes" in two[1]["refusal"]
