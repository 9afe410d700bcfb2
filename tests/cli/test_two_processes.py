"""``train --shard`` on two processes: they share the weights, and the main one prints and writes for both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_rows import BAD, GOOD
from command_line import environment
from tiny_checkpoint import make_checkpoint
from tiny_llama import make_tiny_lm

from lora_tutorial.adapters.files import load_adapter
from lora_tutorial.lora.merge import factor_names
from lora_tutorial.training.records import load_record

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "two_commands.py"
KINDS = ("encoder", "lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What an encoder's command and a language model's left behind."""
    folder = tmp_path_factory.mktemp("two")
    rows = [f"{text} {i},{kind}" for i in range(20) for kind, four in enumerate((BAD, GOOD)) for text in four]
    (folder / "films.csv").write_text("\n".join(["text,label", *rows]))
    talks = [json.dumps({"instruction": f"What is {i}?", "output": "It is four."}) for i in range(24)]
    (folder / "talks.jsonl").write_text("\n".join(talks))
    made = {
        "encoder": ["films.csv", "--encoder", make_checkpoint(folder / "base", GOOD + BAD)],
        "lm": ["talks.jsonl", "--encoder", make_tiny_lm(folder / "writer")],
    }
    commands = {
        kind: ["train", *map(str, given), "--shard", "--out", f"{kind}/run"] for kind, given in made.items()
    }
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(commands)]
    alone = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=alone)
    said = "".join(file.read_text() for file in folder.glob("*/remarked-*"))
    assert done.returncode == 0, done.stderr + said
    return folder


def read(folder, name):
    return (folder / name).read_text() if (folder / name).exists() else ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_process_prints_and_writes_for_both(folder, kind):
    shown = read(folder / kind, "printed-0")
    assert "Fine-tuning" in shown and f"Adapter: {kind}/run/adapter" in shown
    assert read(folder / kind, "printed-1") == ""
    mine, theirs = (read(folder / kind, f"done-{rank}").splitlines() for rank in (0, 1))
    assert f"{kind}/run/record.json" in mine and any(name.endswith("run/adapter") for name in mine)
    assert not [name for name in theirs if f"{kind}{os.sep}run" in name]
    assert "sharded" in mine and "sharded" in theirs


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_leaves_is_one_whole_run(folder, kind, monkeypatch):
    monkeypatch.chdir(folder)
    record = load_record(f"{kind}/run/record.json")
    assert (record.status, record.processes) == ("finished", 2)
    assert record.extra["splits"]["test"]["rows"] > 0 and record.extra["scores"]["trained"]
    model = load_adapter(f"{kind}/run/adapter")
    moved = {name for name in factor_names(model) if model.get_parameter(name).any()}
    assert moved == factor_names(model), "no factor is empty, and every B has left zero"
