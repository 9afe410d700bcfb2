"""The grid runner on data of a few dozen rows: complete records, skipping, resuming, the command."""

import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from lora_tutorial import load_adapter
from lora_tutorial.cli.main import app
from lora_tutorial.data.batches import make_loader, tokenize
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments import bench, grid
from lora_tutorial.experiments.bench import time_to_go
from lora_tutorial.experiments.evaluate import score_split
from lora_tutorial.experiments.run import encoder_hash
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.training.checks import peak_memory
from lora_tutorial.training.records import load_record, load_records

pytest_plugins = ["bench_fixtures"]


@pytest.mark.slow
def test_a_grid_leaves_one_complete_record_for_each_run(plan, go, tmp_path, encoder, monkeypatch):
    tokenized = []
    original = grid.tokenize_rows
    monkeypatch.setattr(grid, "tokenize_rows", lambda *a: tokenized.append(a) or original(*a))
    lines = go(plan(tasks=("sst2", "stsb"), methods=("head", "lora", "full")))
    assert len(tokenized) == 2, "each task is tokenised once"
    names = sorted(path.stem for path in (tmp_path / "results").iterdir())
    assert len(names) == 6 == len(lines) and "sst2-tiny-lora-cpu-seed0" in names
    assert "min to go" in lines[0] and lines[0].startswith("[1/6] sst2-tiny-head-cpu-seed0: accuracy ")
    base = encoder_hash(load_encoder(encoder).model)
    for name, record in zip(names, load_records(tmp_path / "results"), strict=True):
        assert record.status == "finished" and record.error is None and len(record.epochs) == 2
        assert record.config["base_sha256"] == base, "adapters and a full run start from one base"
        assert len(record.config["data_sha256"]) == 64 and record.config["encoder"] == "tiny"
        split = record.extra["splits"]["validation"]
        assert split["scores"] == record.last["scores"] and split["rows"] == 24
        assert record.best["scores"][record.main_score] >= record.last["scores"][record.main_score]
        assert record.trainable_parameters and record.wall_seconds and record.peak_memory_bytes
        assert record.device == "cpu" and record.versions["torch"] and record.hardware["cores"]
        assert record.extra["learning_rate"] == {"from": "recipe, unswept", "sweep": {}}
        assert record.extra["adapter_bytes"] > 4 * record.trainable_parameters
        text = (tmp_path / "results" / f"{name}.json").read_text()
        assert str(tmp_path) not in text and encoder not in text
        assert not (tmp_path / "work" / name / "checkpoints").exists()
    sizes = {r.config["method"]: r.trainable_parameters for r in load_records(tmp_path / "results")}
    assert sizes["head"] < sizes["lora"] < sizes["full"]


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_records_adapter_gives_its_score_and_its_predictions(plan, go, tmp_path, data, encoder, task):
    go(plan(tasks=(task,)))
    (record,) = load_records(tmp_path / "results")
    folder = next((tmp_path / "work").iterdir()) / "adapter"
    file = (folder / "adapter.safetensors").read_bytes()
    assert record.extra["adapter_bytes"] == len(file)
    assert record.extra["adapter_sha256"] == hashlib.sha256(file).hexdigest()
    model, tokenizer, loaded = load_adapter(folder), load_tokenizer(encoder), load_task(task, data)
    answers = []
    for row in loaded.data["validation"]:  # one by one, in the file's order, without padding
        batch = tokenizer(*(row[column] for column in loaded.task.columns), return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits[0]
        answers.append(float(logits.argmax()) if task == "sst2" else logits.item())
    split = record.extra["splits"]["validation"]
    if task == "sst2":
        digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
        assert split["predictions_sha256"] == digest
        right = sum(a == b for a, b in zip(answers, loaded.data["validation"]["label"], strict=True))
        assert split["scores"]["accuracy"] == pytest.approx(right / 24)
    else:
        gold = torch.tensor(loaded.data["validation"]["label"])
        pearson = torch.corrcoef(torch.stack([torch.tensor(answers), gold.float()]))[0, 1].item()
        assert split["scores"]["pearson"] == pytest.approx(pearson, abs=1e-3)


class OddLengths(torch.nn.Module):
    """Class 1 for an input of an odd number of tokens."""

    def forward(self, attention_mask, **rest):
        odd = attention_mask.sum(1) % 2
        return SimpleNamespace(logits=torch.nn.functional.one_hot(odd, 2).float())  # (batch, 2)


def test_predictions_are_hashed_in_the_order_of_the_rows(data, encoder):
    loaded, tokenizer = load_task("sst2", data), load_tokenizer(encoder)
    tokens = tokenize(loaded, tokenizer, 64)["validation"]
    lengths = [len(ids) for ids in tokens["input_ids"]]
    assert lengths != sorted(lengths) and len({length % 2 for length in lengths}) == 2
    loader = make_loader(tokens, tokenizer, 5, sort_by_length=True)
    found = score_split(OddLengths(), loader, load_metric("accuracy"), lengths)
    expected = [float(length % 2) for length in lengths]
    assert found["predictions_sha256"] == hashlib.sha256(json.dumps(expected).encode()).hexdigest()


def test_finished_runs_are_skipped_and_left_as_they_are(plan, go, tmp_path, updates):
    go(plan())
    (path,) = (tmp_path / "results").iterdir()
    before, done = path.read_bytes(), len(updates)
    lines = go(plan(seeds=(0, 1)))
    assert "here already, accuracy" in lines[0] and "to go" not in lines[1]
    assert len(updates) == 2 * done and path.read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(plan, go, tmp_path, updates):
    updates.stop_at = 7  # of 10 steps; the first epoch has 5
    with pytest.raises(KeyboardInterrupt):
        go(plan())
    assert not (tmp_path / "results").exists() and any((tmp_path / "work").glob("*/checkpoints/step-*"))
    updates.stop_at = None
    go(plan())
    assert updates[7:] == [5, 6, 7, 8, 9], "only what was lost is done again"
    (resumed,) = load_records(tmp_path / "results")
    (path,) = (tmp_path / "results").iterdir()
    path.unlink()
    go(plan())
    assert len(updates) == 12 + 10, "without a record and checkpoints it starts anew"
    whole = load_record(path)
    assert resumed.steps == whole.steps and resumed.last == whole.last
    for key in ("splits", "adapter_sha256"):
        assert resumed.extra[key] == whole.extra[key]


def test_time_to_go_is_the_pace_of_the_same_task_and_method_where_known(plan, tmp_path):
    jobs = grid.plan_jobs(plan(methods=("head", "lora"), seeds=(0, 1)), tmp_path, tmp_path, False, None)
    records = dict.fromkeys(job.name for job in jobs)
    assert time_to_go(jobs, records) is None
    for job, seconds in ((jobs[0], 8.0), (jobs[2], 80.0)):
        done = bench._blank(job, "")
        done.status, done.wall_seconds, done.identity = "finished", seconds, {"examples": 40}
        records[job.name] = done
    assert time_to_go(jobs, records) == pytest.approx(8 + 80)
    assert time_to_go(jobs[3:], records) == pytest.approx(80)
    del records[jobs[2].name]
    records[jobs[2].name] = None
    assert time_to_go(jobs[3:], records) == pytest.approx(8), "any pace is better than none"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_a_run_reports_its_own_peak_of_memory():
    block = torch.ones(64 << 20)  # 256 MiB
    high = peak_memory(torch.device("cpu"))
    del block
    bench._count_memory_anew()
    assert peak_memory(torch.device("cpu")) < high - (200 << 20)


def test_the_command_runs_a_grid_with_a_tracker_and_fails_at_the_end_if_a_run_did(
    plan, data, encoder, tmp_path
):
    def command(*more):
        arguments = ["bench", "--tasks", "sst2", "--seeds", "0", "--encoder", encoder, "--source", data]
        arguments += ["--epochs", "1", "--out", tmp_path / "r", "--work", tmp_path / "w", *more]
        return CliRunner().invoke(app, [str(a) for a in arguments])

    result = command("--methods", "head, lora", "--log-with", "tensorboard", "--max-examples", 16)
    assert result.exit_code == 0, result.output
    assert "[2/2] sst2-tiny-lora-cpu-seed0" in result.output and "2 finished, 0 failed" in result.output
    assert list((tmp_path / "w").glob("*-lora-*/logs/**/events*"))
    result = command("--methods", "full", "--learning-rate", "1e30")
    assert result.exit_code == 1 and "0 finished, 1 failed" in result.output
