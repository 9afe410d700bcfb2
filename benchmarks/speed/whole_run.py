"""The whole run and not the step: `lora-tutorial train` beside transformers' Trainer with PEFT, in turns.

    python benchmarks/speed/whole_run.py --rounds 7      # about six minutes on two quiet cores

Each turn is a new process that imports, loads the film reviews, tokenises them, trains one epoch on 1,500 of
them and scores the validation and test rows. Both train LoRA of rank 8 on query and value of the same encoder
with RoBERTa's classifier, by the same rates. Everything else is what each does when nothing else is asked
for. The record goes to ``results/whole-run/reviews.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.records import describe_hardware, load_record, package_versions, score_of

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "whole-run" / "reviews.json"
EXAMPLES, RATE, R, ALPHA = 1500, 1e-3, 8, 16


def ours(folder: Path) -> dict[str, float]:
    """Run the command, and read the scores from its record."""
    options = {"method": "lora", "head": "roberta", "rank": R, "lora-alpha": ALPHA, "learning-rate": RATE}
    options |= {"max-examples": EXAMPLES, "out": folder}
    command = [sys.executable, "-m", "lora_tutorial", "train", "reviews"]
    command += [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.rglob("record.json")
    record = load_record(path)
    return {"validation": record.last["scores"]["accuracy"], "test": score_of(record, "test")}


def theirs(folder: Path) -> dict[str, float]:
    """Run this file as the other side's script, which prints its scores last."""
    command = [sys.executable, __file__, "--theirs", str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scores: dict[str, float] = json.loads(said.splitlines()[-1])
    return scores


def trainer_with_peft(folder: str) -> None:
    """What a user of transformers and PEFT writes; prints the accuracies."""
    import numpy as np
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import DataCollatorWithPadding, RobertaForSequenceClassification, Trainer
    from transformers import TrainingArguments as Arguments

    from lora_tutorial.data.sources import load_task
    from lora_tutorial.models.encoders import load_encoder
    from lora_tutorial.training.recipes import load_recipe

    recipe = load_recipe("quick")
    encoder, tokenizer = load_encoder("minilm")
    model: Any = RobertaForSequenceClassification(encoder.config)
    model.roberta.load_state_dict(encoder.state_dict(), strict=False)  # it has no pooler
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=R, lora_alpha=ALPHA, target_modules=["query", "value"])
    model = get_peft_model(model, config)
    rows = load_task("reviews").data.remove_columns(["rating"])
    rows = rows.map(lambda part: tokenizer(part["text"], truncation=True), batched=True)
    arguments = Arguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=RATE,
        weight_decay=recipe.weight_decay,
        warmup_steps=round(recipe.warmup * (EXAMPLES / recipe.batch_size)),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"].shuffle(seed=0).select(range(EXAMPLES)),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
    )
    trainer.train()
    parts = ("validation", "test")
    print(json.dumps({part: trainer.evaluate(rows[part])["eval_accuracy"] for part in parts}))


def main() -> None:
    """Take turns, in random order within a round, and store what each took and scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--theirs", metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.theirs:
        trainer_with_peft(asked.theirs)
        return
    sides = {"lora-tutorial train": ours, "Trainer with PEFT": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name in random.sample(list(sides), len(sides)):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                scores[name].append(sides[name](Path(folder)))
                seconds[name].append(round(time.perf_counter() - start, 2))
        print({name: values[-1] for name, values in seconds.items()}, flush=True)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    record = {
        "kind": "whole-run",
        "examples": EXAMPLES,
        "seconds": seconds,
        "scores": scores,
        "ratio": [round(value, 3) for value in statistics.quantiles(ratios, method="inclusive")],
        "versions": package_versions(),
        "hardware": describe_hardware(),
    }
    atomic_write_bytes(asked.out, (json.dumps(record, indent=1) + "\n").encode())
    print("ours / theirs, quartiles:", record["ratio"], "scores:", {n: s[-1] for n, s in scores.items()})


if __name__ == "__main__":
    main()
