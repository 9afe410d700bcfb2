"""Train a language model through the run path; kill it with SIGKILL inside two writes, and let it go on.

Usage: killed_lm.py CONVERSATIONS CHECKPOINT FOLDER

Prints as JSON what an uninterrupted run and each interrupted one left behind. The imports are done once, and
each attempt is a fork.
"""

import json
import os
import sys
from pathlib import Path

from killed_runs import Killer
from two_processes import forked

from lora_tutorial.experiments.experiment import Experiment
from lora_tutorial.experiments.run import run_experiment, save_run_adapter
from lora_tutorial.lm.models import LM_LORA
from lora_tutorial.storage.files import sha256_of
from lora_tutorial.training.recipes import load_recipe

PLANS = {"half a file of tensors": ("save", 2), "before a rename": ("replace", 6)}


def train(file: str, encoder: str, folder: Path, plan: tuple[str, int]) -> None:
    experiment = Experiment(load_recipe("chat", epochs=2), file, encoder, "lora", lora=LM_LORA)
    Killer(plan).arm()
    result = run_experiment(experiment, folder, resume=True, checkpoint_every=2, cpu=True, progress=False)
    save_run_adapter(result, folder / "adapter")


def attempt(*arguments: object) -> int:
    """The status with which a fork ended: a signal's number if one killed it."""
    return os.waitpid(forked(train, *arguments), 0)[1]


def outcome(folder: Path) -> dict:
    record = json.loads((folder / "record.json").read_text())
    return {
        "adapter": sha256_of(folder / "adapter" / "adapter.safetensors"),
        "loss": record["steps"]["loss"],
        "scores": record["extra"]["scores"]["trained"],
        "answers": record["extra"]["written"]["answers"],
    }


def main() -> None:
    file, encoder, base = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    ended = attempt(file, encoder, base / "whole", ("none", 0))
    told = {"whole": outcome(base / "whole"), "ended": ended, "runs": {}}
    for name, plan in PLANS.items():
        folder = base / plan[0]
        killed = attempt(file, encoder, folder, plan)
        kept = len(list(folder.glob("checkpoints/step-*")))
        again = attempt(file, encoder, folder, ("none", 0))
        told["runs"][name] = {"killed": killed, "kept": kept, "again": again, "end": outcome(folder)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
