"""LoRA, LoRA+, DoRA, PiSSA at rank 8, LoRA and rsLoRA at rank 64: a rate for each, then three seeds.

Run it from the repository: ``python benchmarks/variants.py``. Equal for all are the data, steps, batches and
head, no weight decay, the scale s = 2 at rank 8, and three trial rates, each one training of half the size,
scored on training rows that it did not see. Where the grid's end is best, up to two more rates follow. Test
sentences are scored once, after training at the rate chosen.

Each run writes one record into ``benchmarks/results/variants``; a run whose record is there is skipped, so it
may be stopped at any time.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import DatasetDict
from found import found_record
from torch import nn
from transformers import RobertaForSequenceClassification

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.experiments.evaluate import make_loaders
from lora_tutorial.experiments.run import data_hash, encoder_hash
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.variants import VARIANTS, inject_variant
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.training.recipes import Recipe, load_recipe
from lora_tutorial.training.records import RunRecord, describe_hardware
from lora_tutorial.training.trainer import evaluate_model, seed_everything

RESULTS = Path(__file__).parent / "results" / "variants"
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
HELD_OUT = 5  # every fifth training row is for choosing the rate
SCALE = 2.0  # alpha / r at rank 8; rank 64 keeps alpha, so that only the rule of the scale differs


class Arm(NamedTuple):
    """One row of the comparison."""

    variant: str
    r: int

    def config(self) -> LoraConfig:
        """The same effective scale at rank 8 whatever the rule, and the same alpha at rank 64."""
        alpha = SCALE * (math.sqrt(8) if self.variant == "rslora" else 8)
        settings = VARIANTS[self.variant].settings
        return LoraConfig(r=self.r, lora_alpha=alpha, modules_to_save=("classifier",), **settings)


ARMS = {f"{v}-{r}": Arm(v, r) for v, r in [(v, 8) for v in VARIANTS if v != "rslora"]}
ARMS |= {"lora-64": Arm("lora", 64), "rslora-64": Arm("rslora", 64)}


def build(arm: Arm, seed: int) -> tuple[nn.Module, str]:
    """A classifier on MiniLM with the arm's adapter, and the hash of its encoder before that."""
    seed_everything(seed)
    model = load_encoder("minilm", model_class=RobertaForSequenceClassification, num_labels=2).model
    digest = encoder_hash(model.roberta)
    return inject_variant(model, arm.config(), arm.variant), digest


def train(model: nn.Module, loader: Any, variant: str, recipe: Recipe) -> dict[str, list[float]]:
    """The recipe's steps, with the groups that the variant asks for; returns loss, rate and gradient norm."""
    groups = VARIANTS[variant].groups(model, recipe.learning_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.factor(step, steps))
    trained = [p for group in groups for p in group["params"]]
    series: dict[str, list[float]] = {"loss": [], "learning_rate": [], "grad_norm": []}
    model.train()
    for _ in range(recipe.epochs):
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm or math.inf)
            series["loss"].append(loss.item())
            series["learning_rate"].append(schedule.get_last_lr()[0])
            series["grad_norm"].append(norm.item())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return series


def run(
    path: Path, name: str, loaded: LoadedTask, recipe: Recipe, seed: int, scored: tuple[str, ...]
) -> RunRecord:
    """Train and score one model, or read the record of the time it was done."""
    arm, digest = ARMS[name], data_hash(loaded.data)
    config = {"task": "reviews", "encoder": "minilm", "arm": name, "variant": arm.variant}
    config |= {"lora": arm.config().to_dict(), "weight_decay": 0.0, "data_sha256": digest}
    if record := found_record(path, config, recipe, seed):
        return record
    started = time.monotonic()
    model, config["base_sha256"] = build(arm, seed)
    metric = load_metric(loaded.task.metric)
    loaders = make_loaders(loaded, load_tokenizer("minilm"), recipe, seed)
    steps = train(model, loaders.train, arm.variant, recipe)
    if not all(map(math.isfinite, steps["loss"])):
        scores = {split: {metric.main_score: 0.0} for split in scored}  # so high a rate scores nothing
    else:
        scores = {split: evaluate_model(model, loaders.scored[split], metric) for split in scored}
    record = RunRecord(
        config,
        recipe.to_dict(),
        seed,
        status="finished",
        steps=steps,
        main_score=metric.main_score,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=sum(p.numel() for p in model.parameters()),
        wall_seconds=time.monotonic() - started,
        hardware=describe_hardware(torch.get_num_threads()),
        extra={"scores": scores},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    record.save(path)
    print(path.name, scores, f"{record.wall_seconds:.0f} s", flush=True)
    return record


def held_out(loaded: LoadedTask) -> LoadedTask:
    """The training rows alone, every `HELD_OUT`-th of them kept apart as the validation split."""
    rows = loaded.data["train"]
    apart = set(range(0, len(rows), HELD_OUT))
    split = {
        "train": rows.select([i for i in range(len(rows)) if i not in apart]),
        "validation": rows.select(sorted(apart)),
    }
    return LoadedTask(loaded.task, DatasetDict(split))


def choose_rate(name: str, loaded: LoadedTask, recipe: Recipe, rates: tuple[float, ...], out: Path) -> float:
    """The rate with the best score on held-out training rows; the grid grows where its end is the best."""
    part = held_out(loaded)
    small = replace(recipe, max_examples=max(1, (recipe.max_examples or len(part.data["train"])) // 2))
    scores: dict[float, float] = {}
    todo, extensions = list(rates), 2 if len(rates) > 1 else 0
    while todo:
        for rate in todo:
            path = out / f"{name}-sweep-lr{rate:.0e}.json"
            record = run(path, name, part, replace(small, learning_rate=rate), 0, ("validation",))
            scores[rate] = record.extra["scores"]["validation"][record.main_score]
        best, todo = max(scores, key=scores.__getitem__), []
        if extensions and best in (min(scores), max(scores)):
            todo = [float(f"{best / 3 if best == min(scores) else best * 3:.0e}")]
            extensions -= 1
    return best


def main(arguments: list[str] | None = None) -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two steps, one rate, one seed: does it run?")
    options = parser.parse_args(arguments)
    recipe = load_recipe("quick", weight_decay=0.0, max_examples=64 if options.quick else 3000)
    rates, seeds = (RATES[1:2], SEEDS[:1]) if options.quick else (RATES, SEEDS)
    loaded = load_task("reviews")
    if options.quick:
        loaded = LoadedTask(
            loaded.task, DatasetDict({s: d.select(range(80)) for s, d in loaded.data.items()})
        )
    for name in options.arms:
        rate = choose_rate(name, loaded, recipe, rates, options.out)
        for seed in seeds:
            path = options.out / f"{name}-seed{seed}.json"
            run(path, name, loaded, replace(recipe, learning_rate=rate), seed, ("validation", "test"))


if __name__ == "__main__":
    main()
