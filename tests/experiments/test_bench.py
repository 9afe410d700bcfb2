"""Grids on data of a few dozen rows: complete records, skipping, resuming, breaking, sharing, the command."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from bench_rows import BAD, BRIEF, GOOD, write
from scipy.stats import spearmanr
from tiny_checkpoint import make_checkpoint
from typer.testing import CliRunner

from lora_tutorial import load_adapter
from lora_tutorial.cli.main import app
from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments import bench, run
from lora_tutorial.experiments.bench import diverged, run_grid
from lora_tutorial.experiments.grid import Arm, Search, read_grid, time_to_go
from lora_tutorial.experiments.grid import plan as planned
from lora_tutorial.experiments.run import TRAINED, encoder_hash
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.training.records import RunRecord, load_record, load_records
from lora_tutorial.training.setup import peak_memory

pytest_plugins = ["bench_fixtures"]


@pytest.mark.slow
def test_a_grid_leaves_one_complete_record_for_each_run(plan, go, tmp_path, encoder, monkeypatch):
    tokenized = []
    original = run.tokenize_rows
    monkeypatch.setattr(run, "tokenize_rows", lambda *a: tokenized.append(a) or original(*a))
    lines = go(plan(tasks=("sst2", "stsb"), methods=("head", "lora", "full", "probe")))
    assert len(tokenized) == 2, "each task is tokenised once"
    names = sorted(path.stem for path in (tmp_path / "results").iterdir())
    assert len(names) == 8 == len(lines) and "sst2-lora-seed0" in names
    assert "min to go" in lines[0] and lines[0].startswith("sst2-head-seed0: accuracy validation 0.")
    base = encoder_hash(load_encoder(encoder).model)
    for name, record in zip(names, load_records(tmp_path / "results"), strict=True):
        assert record.status == "finished" and record.error is None
        assert record.config["base_sha256"] == base, "adapters and a full run start from one base"
        assert len(record.config["data_sha256"]) == 64 and record.config["encoder"] == "tiny"
        assert record.config["arm"] == record.config["method"] == name.split("-")[1]
        split = record.extra["splits"]["validation"]
        assert split["rows"] == 24 == len(split["predictions"])
        text = (tmp_path / "results" / f"{name}.json").read_text()
        assert str(tmp_path) not in text and encoder not in text
        if "probe" in name:
            continue
        assert split["scores"] == record.last["scores"] and len(record.epochs) == 2
        assert record.trainable_parameters and record.wall_seconds and record.peak_memory_bytes
        assert record.device == "cpu" and record.versions["torch"] and record.hardware["cores"]
        assert record.extra["trained_bytes"] > 4 * record.trainable_parameters
        assert record.steps["loss"] == [] and not (tmp_path / "work" / name / "checkpoints").exists()
    sizes = {r.config["method"]: r.trainable_parameters for r in load_records(tmp_path / "results")}
    assert sizes["probe"] < sizes["head"] < sizes["lora"] < sizes["full"]


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_records_adapter_gives_its_score_and_its_predictions(plan, go, tmp_path, data, encoder, task):
    go(plan(tasks=(task,)))
    (record,) = load_records(tmp_path / "results")
    folder = tmp_path / "work" / f"{task}-lora-seed0" / "adapter"
    file = (folder / "adapter.safetensors").read_bytes()
    assert record.extra["adapter_sha256"] == hashlib.sha256(file).hexdigest()
    trained = (folder.parent / TRAINED).read_bytes()
    assert record.extra["trained_sha256"] == hashlib.sha256(trained).hexdigest()
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
        assert split["predictions"] == "".join(str(int(answer)) for answer in answers)
        right = sum(a == b for a, b in zip(answers, loaded.data["validation"]["label"], strict=True))
        assert split["scores"]["accuracy"] == pytest.approx(right / 24)
    else:
        assert split["predictions"] == pytest.approx(answers, abs=1e-3)
        gold = torch.tensor(loaded.data["validation"]["label"])
        pearson = torch.corrcoef(torch.stack([torch.tensor(answers), gold.float()]))[0, 1].item()
        assert split["scores"]["pearson"] == pytest.approx(pearson, abs=1e-3)


# in four bits the base is another, and PiSSA takes its base apart: the hash is still that of what was given
@pytest.mark.parametrize("arm", [{}, {"bits": 4}, {"variant": "pissa"}], ids=["plain", "four bits", "pissa"])
def test_finished_runs_are_skipped_and_left_as_they_are(plan, go, tmp_path, updates, arm):
    go(plan(arm=arm))
    (path,) = (tmp_path / "results").iterdir()
    before, done = path.read_bytes(), len(updates)
    lines = go(plan(arm=arm, seeds=(0, 1)))
    assert "here already, accuracy" in lines[0] and "to go" not in lines[1]
    assert len(updates) == 2 * done and path.read_bytes() == before


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(plan, go, tmp_path, updates):
    updates.stop_at = 7  # of 10 steps; the first epoch has 5
    with pytest.raises(KeyboardInterrupt):
        go(plan(), keep_steps=True)
    assert not (tmp_path / "results").exists() and any((tmp_path / "work").glob("*/checkpoints/step-*"))
    updates.stop_at = None
    go(plan(), keep_steps=True)
    assert updates[7:] == [5, 6, 7, 8, 9], "only what was lost is done again"
    (resumed,) = load_records(tmp_path / "results")
    (path,) = (tmp_path / "results").iterdir()
    path.unlink()
    go(plan(), keep_steps=True)
    assert len(updates) == 12 + 10, "without a record and checkpoints it starts anew"
    whole = load_record(path)
    assert resumed.steps == whole.steps and len(whole.steps["loss"]) == 10 and resumed.last == whole.last
    for key in ("splits", "adapter_sha256", "trained_sha256"):
        assert resumed.extra[key] == whole.extra[key]


SEARCH = Search(held_out=0.2, factor=10, most=4)


@pytest.mark.slow
def test_a_search_goes_by_held_out_rows_and_the_other_seeds_take_its_best_rate(plan, go, tmp_path, data):
    def searched(source=None):
        more = {"changes": BRIEF | {"epochs": 1}} | ({"source": str(source)} if source else {})
        return plan(arm={"rates": (1e-9, 1e-2)}, seeds=(0, 1), search=SEARCH, **more)

    lines = go(searched())
    records = {path.stem: load_record(path) for path in (tmp_path / "results").iterdir()}
    rates = {record.recipe["learning_rate"] for record in records.values()}
    assert {1e-9, 1e-2} <= rates and len(rates) <= 4
    for record in records.values():
        assert record.identity["examples"] == 32 and record.extra["splits"]["held_out"]["rows"] == 8
        assert record.last["scores"] == record.extra["splits"]["held_out"]["scores"]
    seconds = [record for record in records.values() if record.seed == 1]
    (told,) = [line for line in lines if "best rate" in line]
    assert [f"best rate {r.recipe['learning_rate']} of" in told for r in seconds] == [True]
    # The validation rows decide nothing: with others in their place the same rates are tried and chosen.
    elsewhere = tmp_path / data.name
    for split in ("train", "validation"):
        rows = list(load_task("sst2", data).data[split])
        rows = rows if split == "train" else [{"sentence": "other rows", "label": 1}]
        write(elsewhere / "sst2", split, rows)
    run_grid(searched(elsewhere), tmp_path / "r", tmp_path / "w", lambda line: None, progress=False, cpu=True)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {f"{name}.json" for name in records}


@pytest.mark.slow
def test_a_grid_begins_each_run_with_the_same_arms_run_on_the_earlier_task(plan, go, tmp_path):
    methods, brief = ("lora", "full"), BRIEF | {"epochs": 1}
    begun = {"of_task": {"stsb": {"start_from": "sst2"}}, "tasks": ("sst2", "stsb"), "seeds": (0, 1)}
    begun["changes"] = brief
    go(plan(methods, **begun), keep_steps=True)
    names = sorted(path.stem for path in (tmp_path / "results").glob("stsb*.json"))
    assert names == sorted(f"stsb-from-sst2-{method}-seed{seed}" for method in methods for seed in (0, 1))
    for name in names:
        record = load_record(tmp_path / "results" / f"{name}.json")
        assert record.status == "finished", record.error
        assert record.recipe["start_from"] == "sst2"
        first = load_record(tmp_path / "results" / f"sst2-{name.removeprefix('stsb-from-sst2-')}.json")
        assert record.extra["start_sha256"] == first.extra["trained_sha256"]
    go(plan(("lora",), tasks=("stsb",), changes=brief), keep_steps=True)
    cold, warm = (
        load_record(tmp_path / "results" / f"stsb{start}-lora-seed0.json").steps["loss"]
        for start in ("", "-from-sst2")
    )
    assert cold[0] != warm[0], "the start makes a difference from the first step on"
    # Where the weights of the start are gone, they are made again, and nothing else changes.
    (tmp_path / "work" / "sst2-lora-seed0" / TRAINED).unlink()
    (tmp_path / "work" / "sst2-lora-seed0" / "record.json").unlink()
    path = tmp_path / "results" / "stsb-from-sst2-lora-seed0.json"
    before = load_record(path)
    path.unlink()
    (tmp_path / "work" / "stsb-from-sst2-lora-seed0" / "record.json").unlink()
    go(plan(("lora",), **begun), keep_steps=True)
    assert (
        load_record(path).steps == before.steps
        and load_record(path).extra["splits"] == before.extra["splits"]
    )


@pytest.mark.slow
def test_questions_have_the_same_path(plan, go, tmp_path, data, encoder, questions, question_encoder):
    changes = {**BRIEF, "max_length": 384, "learning_rate": 1e-2}
    tasks = {"tasks": ("squad", "squad_v2-articles"), "source": str(questions), "encoder": question_encoder}
    go(plan(("lora", "full"), seeds=(0,), changes=changes, **tasks))
    for task, scores in (("squad", {"exact_match", "f1"}), ("squad_v2-articles", {"f1", "threshold"})):
        record = load_record(tmp_path / "results" / f"{task}-lora-seed0.json")
        assert record.status == "finished", record.error
        assert record.main_score == "f1" and scores <= set(record.last["scores"])
        split = record.extra["splits"]["validation"]
        assert split["scores"] == record.last["scores"]
        assert len(split["exact"]) == len(split["f1"]) == split["rows"]
        exact = record.last["scores"].get("exact_match", record.last["scores"].get("exact"))
        assert 100 * split["exact"].count("1") / split["rows"] == pytest.approx(exact)
        other = load_record(tmp_path / "results" / f"{task}-full-seed0.json").extra["splits"]["validation"]
        assert other["predictions_sha256"] != split["predictions_sha256"]
    searched = plan(tasks=("squad",), source=tasks["source"], encoder=question_encoder, changes=changes)
    searched = dataclasses.replace(
        searched, search=Search(0.3, most=1), arms=(Arm("h", "head", rates=(1e-3,)),)
    )
    run_grid(searched, tmp_path / "r", tmp_path / "w", lambda line: None, progress=False, cpu=True)
    (record,) = load_records(tmp_path / "r")
    assert set(record.extra["splits"]) == {"held_out", "validation"}


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
    assert lora.config["method"] == "lora" and lora.last is None and not diverged(lora)
    monkeypatch.setattr(bench, "run_experiment", original)
    lines = go(plan(methods=("lora", "head")))
    assert "here already" in lines[0] and "here already" not in lines[1]
    assert load_records(tmp_path / "results")[1].status == "finished"


def test_a_rate_that_diverges_is_a_result_and_the_search_goes_on(plan, go, tmp_path, updates):
    wild = {"changes": BRIEF | {"max_grad_norm": None}, "search": SEARCH, "seeds": (0, 1)}
    lines = go(plan(("full",), arm={"rates": (1e-4, 1e-3, 1e30)}, **wild))
    record = load_record(tmp_path / "results" / "sst2-full-lr1e+30-seed0.json")
    assert diverged(record) and record.error in "".join(lines)
    assert any("best rate" in line and "1e+30: -inf" in line for line in lines)
    done = len(updates)
    assert "here already" in go(plan(("full",), arm={"rates": (1e-4, 1e-3, 1e30)}, **wild))[0]
    assert len(updates) == done, "a run that diverged is not tried again"


def test_a_record_of_another_configuration_is_refused_before_any_work(plan, go, tmp_path, data, updates):
    go(plan())
    (path,) = (tmp_path / "results").iterdir()
    before, done = path.read_bytes(), len(updates)
    for split in ("train", "validation"):
        write(tmp_path / data.name / "sst2", split, [{"sentence": text, "label": 0} for text in GOOD])
    other_encoder = make_checkpoint(tmp_path / "other" / "tiny", GOOD + BAD, seed=1)
    for changes, words in (
        ({"changes": BRIEF | {"epochs": 3}}, "recipe.epochs is 2 there, 3 here"),
        ({"source": str(tmp_path / data.name)}, "config.data_sha256 is "),
        ({"encoder": str(other_encoder)}, "config.base_sha256 is "),
        ({"arm": {"lora": LoraConfig(r=4)}}, "config.lora.r is 8 there, 4 here"),
        ({"arm": {"pooling": "mean"}}, "config.pooling is 'first' there"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            go(plan(seeds=(1, 0), **changes))
        assert path.name in str(refused.value) or "record.json" in str(refused.value)
        assert path.read_bytes() == before and len(updates) == done and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "./absent"}, "no folder ./absent"),
        ({"source": "./absent"}, "absent"),
        ({"changes": {"max_length": 200}}, "max_length=200 is not from 3 to 128"),
        ({"arm": {"variant": "lroa"}}, "variant must be one of lora"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(plan, go, tmp_path, changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        go(plan(**changes))
    assert not (tmp_path / "results").exists() and not (tmp_path / "work").exists()


def test_an_unknown_tracker_is_said_before_any_work(plan, go, tmp_path):
    with pytest.raises(ValueError, match="Tracker 'tensorbored' is unknown"):
        go(plan(), log_with=["tensorbored"])
    assert not (tmp_path / "work").exists()


OTHER = """
import sys
from pathlib import Path
from lora_tutorial.experiments.grid import read_grid
from lora_tutorial.experiments.bench import run_grid
print("ready", flush=True)
sys.stdin.readline()
run_grid(read_grid(Path("grid.toml")), Path("r"), Path("w"), print, progress=False, cpu=True)
"""


@pytest.mark.slow
def test_two_processes_share_a_grid_and_leave_what_one_does(tmp_path, data, encoder):
    """One of them is this; the other has its imports behind it when both begin."""
    (tmp_path / "grid.toml").write_text(
        f"tasks = ['sst2']\nseeds = [0, 1]\nencoder = '{encoder}'\nsource = '{data}'\n"
        "[recipe]\nname = 'cpu'\nepochs = 1\nbatch_size = 8\n[search]\nheld_out = 0.2\nmost = 3\n"
        "[[arm]]\nname = 'a'\nmethod = 'lora'\nrates = [1e-3, 1e-2]\n[[arm]]\nname = 'b'\nmethod = 'head'\n"
        "rates = [1e-3, 1e-2]\n"
    )
    command, pipe, told = [sys.executable, "-c", OTHER], subprocess.PIPE, []
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        grid, options = read_grid(tmp_path / "grid.toml"), {"progress": False, "cpu": True}
        run_grid(grid, tmp_path / "r", tmp_path / "w", told.append, **options)
        said = other.communicate(timeout=300)[0]
        assert other.returncode == 0, said
    run_grid(grid, tmp_path / "alone" / "r", tmp_path / "alone" / "w", lambda line: None, **options)
    both, alone = (
        {path.name: load_record(path).extra["splits"] for path in folder.iterdir()}
        for folder in (tmp_path / "r", tmp_path / "alone" / "r")
    )
    assert both == alone and len(both) >= 6
    made = {line.partition(":")[0] for line in [*told, *said.splitlines()] if line.startswith("sst2-")}
    assert {f"{name}.json" for name in made} == both.keys(), "one of the two told of each run"


def test_time_to_go_is_the_pace_of_the_same_task_and_arm_where_known(plan, tmp_path):
    jobs = planned(plan(("head", "lora"), seeds=(0, 1)), tmp_path, {})
    records = dict.fromkeys(job.name for job in jobs)
    assert time_to_go(jobs, records) is None

    def took(seconds):
        return RunRecord({}, {}, 0, status="finished", wall_seconds=seconds)

    records |= {jobs[0].name: took(8.0), jobs[2].name: took(80.0)}
    assert time_to_go(jobs, records) == pytest.approx(8 + 80)
    records[jobs[2].name] = None
    assert time_to_go(jobs, records) == pytest.approx(8 + 8 + 8), "any pace is better than none"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_a_run_reports_its_own_peak_of_memory(plan, go, tmp_path):
    block = torch.ones(96 << 20)  # 384 MiB
    high = peak_memory(torch.device("cpu"))
    del block
    go(plan(("head",), changes={"epochs": 1, "batch_size": 8}))
    (record,) = load_records(tmp_path / "results")
    assert record.peak_memory_bytes < high - (100 << 20)


def test_the_command_runs_a_grid_with_a_tracker_and_fails_at_the_end_if_a_run_did(data, encoder, tmp_path):
    def command(*more):
        arguments = ["bench", "--out", tmp_path / "r", "--work", tmp_path / "w", *more]
        return CliRunner().invoke(app, [str(a) for a in arguments])

    flags = ["--tasks", "sst2", "--seeds", "0", "--encoder", encoder, "--source", data, "--epochs", "1"]
    result = command(*flags, "--methods", "head, lora", "--log-with", "tensorboard", "--max-examples", 16)
    assert result.exit_code == 0, result.output
    assert "sst2-lora-seed0: accuracy" in result.output and "2 finished, 0 failed" in result.output
    assert list((tmp_path / "w").glob("*-lora-*/logs/**/events*"))
    result = command(*flags, "--methods", "full", "--learning-rate", "1e30")
    assert result.exit_code == 1 and "0 finished, 1 failed" in result.output
    grid = tmp_path / "small.toml"
    grid.write_text(
        f"tasks = ['sst2']\nseeds = [0]\nencoder = '{encoder}'\nsource = '{data}'\n"
        "[recipe]\nname = 'cpu'\nepochs = 1\n[[arm]]\nname = 'dora-4'\nmethod = 'lora'\nvariant = 'dora'\n"
        "lora = {r = 4, lora_alpha = 8, target_modules = 'all-linear'}\n"
    )
    result = command("--grid", grid)
    assert result.exit_code == 0 and "sst2-dora-4-seed0: accuracy" in result.output, result.output
    assert load_record(tmp_path / "r" / "sst2-dora-4-seed0.json").config["lora"]["r"] == 4


def test_a_record_says_what_became_of_the_encoders_own_skill(plan, go, tmp_path, data, encoder):
    rows = [{"sentence1": a, "sentence2": b} for a in GOOD for b in BAD]
    source = shutil.copytree(data, tmp_path / "data")
    write(source / "stsb", "validation", [{**row, "label": 0.25 * i} for i, row in enumerate(rows[:20])])
    grid = plan(tasks=("sst2",), methods=("probe", "head", "full"))
    go(dataclasses.replace(grid, source=str(source), similarity=16))
    skill = {r.config["method"]: r.extra["similarity"] for r in load_records(tmp_path / "results")}
    assert skill["probe"] == skill["head"] != skill["full"], "only full fine-tuning changes the encoder"
    model, tokenizer = load_encoder(encoder).model.eval(), load_tokenizer(encoder)
    cosines = []
    for row in rows[:16]:  # one sentence at a time, so without padding
        with torch.no_grad():
            one, other = (
                model(**tokenizer(row[side], return_tensors="pt")).last_hidden_state.mean(1)
                for side in ("sentence1", "sentence2")
            )
        cosines.append(torch.cosine_similarity(one, other).item())
    assert skill["probe"] == pytest.approx(spearmanr(cosines, range(16)).statistic, abs=1e-4)


def test_a_grid_without_the_pairs_it_asks_for_is_refused_before_any_run(plan, go, tmp_path, data):
    source = shutil.copytree(data / "sst2", tmp_path / "data" / "sst2").parent
    grid = dataclasses.replace(plan(tasks=("sst2",), methods=("head",)), source=str(source), similarity=16)
    with pytest.raises(FileNotFoundError, match="stsb"):
        go(grid)
    assert not (tmp_path / "results").exists()
