"""Two processes learn what one learns, with a copy of the model each (DDP) or a half of it each (FSDP2)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "sharded_runs.py"
KINDS = ("encoder-float32", "encoder-bfloat16", "lm-float32", "lm-bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process, and two together, left of the same runs."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=SCRIPT.parents[3])
    assert done.returncode == 0, done.stderr
    return folder


def told(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def distance(folder, *names):
    """The largest difference between two runs' trained weights, of which none may be missing or empty."""
    first, second = (load_file(folder / f"{name}.safetensors") for name in names)
    assert first.keys() == second.keys() and len(first) >= 8
    assert all(first[name].shape == second[name].shape and first[name].numel() for name in first)
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("way", ["copies", "shards"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does_that_reads_the_same_halves(folder, kind, way):
    """Rows differ in length, so the halves of a language model's batch differ in tokens."""
    assert distance(folder, f"{kind}-halves", f"{kind}-{way}") <= 1e-6
    for series in ("loss", "grad_norm"):
        expected = told(folder, f"{kind}-halves")["steps"][series]
        assert told(folder, f"{kind}-{way}")["steps"][series] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("way", ["copies", "shards"])
@pytest.mark.parametrize("kind", ["encoder-float32", "lm-float32"])
def test_two_processes_learn_what_one_does_with_whole_batches(folder, kind, way):
    assert distance(folder, f"{kind}-one", f"{kind}-{way}") <= 1e-6


@pytest.mark.parametrize("kind", ["encoder-bfloat16", "lm-bfloat16"])
def test_in_two_bytes_half_a_batch_rounds_otherwise_than_a_whole_one(folder, kind):
    """That is the arithmetic's, not the processes': one process by itself shows it."""
    assert distance(folder, f"{kind}-one", f"{kind}-halves") > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_model_comes_back_whole_with_its_own_parameters_classes_and_hooks(folder, kind):
    shards, copies = told(folder, f"{kind}-shards"), told(folder, f"{kind}-copies")
    assert shards["whole"] and shards["hooks"] == copies["hooks"]
    logits = (torch.tensor(found["logits"]) for found in (shards, copies))
    assert torch.allclose(*logits, atol=1e-6), "the frozen weights are whole again too"


def test_one_resumes_what_two_began_and_two_what_one_began(folder):
    assert (folder / "begun-by-two" / "checkpoints").is_dir() and (folder / "begun-by-one").is_dir()
    for name, processes in (("resumed-by-one", 1), ("resumed-by-two", 2)):
        assert distance(folder, name, "lm-float32-one") <= 1e-6
        found = told(folder, name)
        assert found["processes"] == processes and len(found["steps"]["loss"]) == 8


def test_the_best_epochs_weights_are_put_back_and_the_next_run_is_not_sharded(folder):
    after = told(folder, "after")
    assert after["best"] == [True, True]
    assert distance(folder, "after", "lm-float32-copies") <= 1e-6


def test_what_cannot_be_sharded_is_refused(folder):
    coded, mixed = told(folder, "refused")["told"]
    assert "codes is stored as uint8, and quantised weights cannot be sharded" in coded
    assert "of types bfloat16, float32, and sharding takes one" in mixed


@pytest.mark.skipif(sys.platform != "linux", reason="the system counts bytes on Linux only")
def test_copies_send_gradients_and_shards_send_weights_too(folder):
    """Both send the weights once, to begin with. FSDP sends the frozen ones again in every step."""
    for kind in KINDS:
        sent = {way: told(folder, f"{kind}-{way}")["bytes"] for way in ("copies", "shards")}
        assert sent["shards"] > 2 * sent["copies"]
    of_base = {kind: told(folder, f"{kind}-shards")["bytes"] for kind in KINDS}
    assert of_base["lm-bfloat16"] < 0.8 * of_base["lm-float32"], "two bytes a weight instead of four"
