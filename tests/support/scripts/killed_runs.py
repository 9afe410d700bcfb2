"""Train in two processes, then kill training with SIGKILL at seeded moments and resume it; print all as JSON.

Usage: killed_runs.py FOLDER KILLS SEED

The imports cost seconds and a run milliseconds, so they are done once and each attempt is a fork. An attempt
kills itself either at the k-th call of a function that a checkpoint is written with, or at the k-th call of
any function at all; both are counted in the uninterrupted run first.
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import safetensors.torch
import tiny
import torch
from two_processes import forked, one_process, spread

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.storage.files import sha256_of
from lora_tutorial.training.records import load_record
from lora_tutorial.training.trainer import train

EVERY = 3
WRITERS = {"fsync": (os, "fsync"), "replace": (os, "replace"), "rmtree": (shutil, "rmtree")}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Counts the calls of each kind and dies at the planned one."""

    def __init__(self, plan: tuple[str, int] | None) -> None:
        self.plan, self.counts = plan, dict.fromkeys([*WRITERS, "save", "any"], 0)

    def reached(self, kind: str) -> bool:
        self.counts[kind] += 1
        return self.plan == (kind, self.counts[kind])

    def arm(self) -> None:
        for kind, (owner, name) in WRITERS.items():
            setattr(owner, name, self._dying(kind, getattr(owner, name)))
        safetensors.torch.save_file = self._half_written(safetensors.torch.save_file)
        if self.plan is None or self.plan[0] == "any":
            sys.setprofile(lambda frame, event, argument: self.reached("any") and die())

    def _dying(self, kind, function):
        def wrapped(*arguments, **options):
            if self.reached(kind):
                die()
            return function(*arguments, **options)

        return wrapped

    def _half_written(self, function):
        def wrapped(tensors, path):
            function(tensors, path)
            if self.reached("save"):
                os.truncate(path, path.stat().st_size // 2)
                die()

        return wrapped


def train_until_killed(folder: Path, plan: tuple[str, int] | None) -> None:
    count_steps(folder.with_suffix(".steps"))
    model, loaders, metric, killer = tiny.model(), tiny.loaders(), load_metric("accuracy"), Killer(plan)
    killer.arm()
    recipe, options = tiny.recipe(patience=2, keep_best=True), {"checkpoint_every": EVERY, "cpu": True}
    train(model, *loaders, metric, recipe, folder, resume=True, **options)
    sys.setprofile(None)
    folder.with_suffix(".counts").write_text(json.dumps(killer.counts))


def attempt(folder: Path, plan: tuple[str, int] | None) -> int:
    """One fork that trains in ``folder``, resuming; returns the signal that ended it, or 0."""
    _, status = os.waitpid(forked(train_until_killed, folder, plan), 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"an attempt failed in {folder}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def count_steps(path: Path) -> None:
    """Leave one byte in ``path`` for each optimiser step, which outlives a kill."""
    log, step = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), torch.optim.AdamW.step

    def counted(self, closure=None):
        step(self, closure)
        os.write(log, b".")

    torch.optim.AdamW.step = counted


def outcome(folder: Path) -> dict:
    record = load_record(folder / "record.json")
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return {
        # weights, moments and every generator's state
        "state": sha256_of(last / "tensors.safetensors"),
        "steps": record.steps,
        "scores": [epoch["scores"] for epoch in record.epochs],
        "status": record.status,
        "done": folder.with_suffix(".steps").stat().st_size,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def main() -> None:
    base, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (base / "two").mkdir()
    spread(one_process, base / "two")
    attempt(base / "whole", None)
    counts = json.loads((base / "whole.counts").read_text())
    draw, runs = random.Random(seed), []
    for number in range(kills):
        # every second one in the middle of a write; the kinds take turns
        kind = [*WRITERS, "save"][number // 2 % 4] if number % 2 else "any"
        most = counts[kind] if kind != "any" else counts[kind] * 9 // 10
        plan = (kind, draw.randint(1, most))
        folder = base / f"killed-{number}"
        ended = attempt(folder, plan)
        done = folder.with_suffix(".steps").stat().st_size
        left = [path.name for path in folder.rglob(".*")] if folder.exists() else []
        again = attempt(folder, ("none", 0))
        end = outcome(folder)
        runs.append({"plan": plan, "signal": ended, "done": done, "left": left, "again": again, "end": end})
    print(json.dumps({"whole": outcome(base / "whole"), "counts": counts, "runs": runs}))


if __name__ == "__main__":
    main()
