"""The whole run and not the step: `lora-tutorial train` beside transformers' Trainer with PEFT, in turns.

    python benchmarks/speed/whole_run.py reviews --rounds 5      # two quiet cores: about 3 minutes a round
    python benchmarks/speed/whole_run.py docstrings
    python benchmarks/speed/whole_run.py squad --source FOLDER   # parquet files, as for the command

Each turn is a new process that imports, loads, tokenises, trains one epoch and scores. Both sides train LoRA
of rank 8 on the same rows, by the same rates, and score the same rows; all else is what each does when
nothing else is asked for. The command also scores what it compares a run with, which Trainer does not. So it
runs twice: as it is, and with ``--no-baselines``, which is the same work as Trainer's. The record goes to
``results/speed/whole-run-TASK.json``.
"""

from __future__ import annotations

import argparse
import json
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_with_peft import ALPHA, RATE, REVIEWS, R

from lora_tutorial.analysis.speed import FORMAT
from lora_tutorial.data.sources import load_task
from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.records import describe_hardware, load_record, package_versions

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "speed"
AS_IS, SAME_WORK, TRAINER = "lora-tutorial train", "lora-tutorial train --no-baselines", "Trainer with PEFT"
CHATS, QUESTIONS = 80, {"train": 200, "validation": 100}  # what two cores do in a minute or two


def prepare(task: str, folder: Path, source: str) -> tuple[list[str], list[str]]:
    """What the command and the other script are told of the data, after writing what is cut to size."""
    if task == "reviews":
        return ["reviews", "--head=roberta", f"--max-examples={REVIEWS}"], []
    if task == "squad":
        rows = load_task("squad", source).data
        (folder / "squad").mkdir()
        for part, number in QUESTIONS.items():
            chosen = rows[part].shuffle(seed=0).select(range(number))
            chosen.to_parquet(folder / "squad" / f"{part}.parquet")
        return ["squad", f"--source={folder}"], [str(folder)]
    file = folder / "functions.jsonl"
    chats = load_task("docstrings").data["train"].shuffle(seed=0).select(range(CHATS))["messages"]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    return [str(file)], [str(file)]


def ours(told: list[str], folder: Path, baselines: bool, under: Sequence[str] = ()) -> dict[str, float]:
    """Run the command, and read the scores from its record."""
    command = [sys.executable, *under, "-m", "lora_tutorial", "train", *told, f"--out={folder / 'run'}"]
    command += ["--method=lora", f"--rank={R}", f"--lora-alpha={ALPHA}", f"--learning-rate={RATE}"]
    command += [] if baselines else ["--no-baselines"]
    run(command)
    record = load_record(folder / "run" / "record.json")
    scores = {"validation": record.last["scores"][record.main_score]}
    final = record.extra["scored_on"]
    scores[final] = record.extra["splits"][final]["scores"][record.main_score]
    return scores | ({"chrf": record.extra["written"]["chrf"]} if "written" in record.extra else {})


def theirs(task: str, told: list[str], folder: Path) -> dict[str, float]:
    """Run the other script, which prints its scores last."""
    command = [sys.executable, str(HERE / "trainer_with_peft.py"), task, str(folder / "theirs"), *told]
    scores: dict[str, float] = json.loads(run(command).splitlines()[-1])
    return scores


def run(command: list[str]) -> str:
    """What a command prints; where it fails, say with which words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def measure(task: str, rounds: int, source: str) -> dict[str, Any]:
    """Take turns, in random order within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in (AS_IS, SAME_WORK, TRAINER)}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in seconds}
    with tempfile.TemporaryDirectory() as data:
        told, told_theirs = prepare(task, Path(data), source)
        for _ in range(rounds):
            for name in random.sample(list(seconds), len(seconds)):
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    if name == TRAINER:
                        scores[name].append(theirs(task, told_theirs, Path(folder)))
                    else:
                        scores[name].append(ours(told, Path(folder), baselines=name == AS_IS))
                    seconds[name].append(round(time.perf_counter() - start, 2))
            print({name: values[-1] for name, values in seconds.items()}, flush=True)
    return {"seconds": seconds, "scores": scores}


#: Where the command's time goes: file and function whose calls, and all that they call, are one part.
PARTS = {
    "importing": ("<frozen importlib._bootstrap>", "_find_and_load"),
    "loading and tokenising": ("experiments/run.py", "prepare"),
    "building the model": ("experiments/run.py", "_model_of"),
    "baselines": ("experiments/run.py", "_baselines"),
    "training steps": ("training/trainer.py", "update"),
    "scoring": ("experiments/evaluate.py", "evaluate"),
    "writing answers": ("experiments/evaluate.py", "written"),
}


def profile(task: str, source: str) -> dict[str, float]:
    """Seconds of each part of one more run, under Python's profiler, which slows it a little."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        told, _ = prepare(task, Path(folder) / "data", source)
        stored = Path(folder) / "profile"
        ours(told, Path(folder), True, ["-m", "cProfile", "-o", str(stored)])
        stats = pstats.Stats(str(stored))
    found = dict.fromkeys(PARTS, 0.0)
    for (file, _, function), (*_, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        for part, (where, name) in PARTS.items():
            if function == name and file.endswith(where):
                found[part] += cumulative
    return {part: round(value, 2) for part, value in found.items()} | {"all": round(stats.total_tt, 2)}


def ratio(seconds: dict[str, list[float]], name: str) -> list[float]:
    """Quartiles of a side's time over Trainer's, round by round."""
    each = [a / b for a, b in zip(seconds[name], seconds[TRAINER], strict=True)]
    return [
        round(value, 3) for value in statistics.quantiles(each * (1 + (len(each) < 2)), method="inclusive")
    ]


def main() -> None:
    """Measure one task, and store what each side took and scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=["reviews", "docstrings", "squad"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", default="auto", help="where SQuAD lies, as for the command")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    measured = measure(asked.task, asked.rounds, asked.source)
    setting = {"task": asked.task, "learning_rate": RATE, "r": R, "lora_alpha": ALPHA, "device": "cpu"}
    record: dict[str, Any] = {"format": FORMAT, "kind": "whole-run", "setting": setting}
    record |= measured | {"profile": profile(asked.task, asked.source)}
    record["ratio"] = {name: ratio(measured["seconds"], name) for name in (AS_IS, SAME_WORK)}
    record |= {"versions": package_versions(), "hardware": describe_hardware()}
    asked.out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(
        asked.out / f"whole-run-{asked.task}.json", (json.dumps(record, indent=1) + "\n").encode()
    )
    print("quartiles of the ratio:", record["ratio"])
    print("scores:", {name: each[-1] for name, each in measured["scores"].items()})


if __name__ == "__main__":
    main()
