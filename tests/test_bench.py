"""The grid runner on data of a few dozen rows: complete records, skipping, resuming, failing, sweeping."""

import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny_checkpoint import make_checkpoint
from typer.testing import CliRunner

from lora_tutorial import bench, grid, load_adapter, training
from lora_tutorial.bench import run_grid, time_to_go
from lora_tutorial.cli import app
from lora_tutorial.encoders import load_encoder, load_tokenizer
from lora_tutorial.experiments import encoder_hash
from lora_tutorial.grid import Grid, best_rate, held_out_split
from lora_tutorial.metrics import load_metric
from lora_tutorial.outcome import score_split
from lora_tutorial.preparation import peak_memory
from lora_tutorial.results import load_record, load_records
from lora_tutorial.tasks import load_task, make_loader, tokenize

GOOD = ["a bright day", "a warm and lovely walk", "we laughed all evening", "what a fine meal it was"]
BAD = ["a grey day", "a cold and dull walk", "we waited all evening", "what a poor meal it was"]
BRIEF = {"epochs": 2, "batch_size": 8}


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2's and STS-B's schema with sentences of our own."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 5), ("validation", 3)):
        single = [
            {"sentence": f"{text}, {'very ' * (i + label)}{split}", "label": label}
            for i in range(count)
            for label, texts in enumerate((BAD, GOOD))
            for text in texts
        ]
        write(folder / "sst2", split, single)
        pairs = [
            {"sentence1": a, "sentence2": f"{b} {i}", "label": 5.0 if a == b else 1.25}
            for i in range(count)
            for a in GOOD
            for b in (a, BAD[i % 4])
        ]
        write(folder / "stsb", split, pairs)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("encoder") / "tiny", GOOD + BAD))


@pytest.fixture
def plan(data, encoder):
    """A small grid; keyword arguments replace its parts."""

    def make(**changes):
        parts = {"tasks": ("sst2",), "methods": ("lora",), "seeds": (0,), "changes": BRIEF}
        return Grid(**{**parts, "encoder": encoder, "source": str(data), **changes})

    return make


@pytest.fixture
def go(tmp_path):
    """Run a grid in this test's folders, quietly; returns the lines it said."""

    def run(plan, **options):
        lines = []
        options = {"progress": False, "cpu": True} | options
        run_grid(plan, tmp_path / "results", tmp_path / "work", say=lines.append, **options)
        return lines

    return run


@pytest.fixture
def updates(monkeypatch):
    """Counts optimiser steps; `updates.stop_at` interrupts one as Ctrl-C does."""
    original = training._update

    class Updates(list):
        stop_at = None

    seen = Updates()

    def counted(run, batch):
        if len(seen) == seen.stop_at:
            raise KeyboardInterrupt
        seen.append(run.step)
        return original(run, batch)

    monkeypatch.setattr(training, "_update", counted)
    return seen


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


def test_time_to_go_is_the_pace_of_the_same_task_and_method_where_known(plan, tmp_path):
    jobs = grid.plan_jobs(plan(methods=("head", "lora"), seeds=(0, 1)), tmp_path, False, None)
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("squad",)}, "'squad' answers with spans"),
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


def test_the_papers_recipe_starts_from_the_bare_encoder_and_its_record_says_so(plan):
    assert plan(recipe="paper", tasks=("mrpc",), changes={}).recipe_for("mrpc").start_from is None
