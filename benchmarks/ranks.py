"""Rank, scale, placement and little data: seeded runs of LoRA and full fine-tuning on the film reviews.

Run it from the repository: ``OMP_NUM_THREADS=1 python benchmarks/ranks.py``. Every run takes about as many
optimiser steps, whatever the number of sentences (`EPOCHS`). A seed decides which sentences are drawn, their
order, the head's and the adapter's start. Learning rates are chosen on the validation sentences, at 1,000
sentences and seed 0, for LoRA (r = 8) and for full fine-tuning; the test sentences are not looked at.

Each run writes one record into ``benchmarks/results/ranks``; a run whose record is there is skipped, so it
may be stopped at any time. Some leave their weights in ``--work``, for ``benchmarks/rank_subspaces.py``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from datasets import DatasetDict
from found import found_record
from torch import Tensor, nn

from lora_tutorial.data.batches import make_loader, tokenize
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.experiments.evaluate import EVALUATION_BATCH
from lora_tutorial.experiments.run import build_model, data_hash, encoder_hash
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import inject_lora
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.recipes import Recipe, load_recipe
from lora_tutorial.training.records import RunRecord, describe_hardware
from lora_tutorial.training.trainer import NonFiniteLossError, evaluate_model, train

RESULTS = Path(__file__).parent / "results" / "ranks"
WORK = Path(__file__).parent.parent / "runs" / "ranks"
SEEDS = (0, 1, 2)
RANKS = (1, 2, 4, 8, 16, 64)
EPOCHS = {100: 18, 300: 7, 1000: 2, 3000: 1}  # 126, 133, 126 and 188 steps of 16 sentences
RATES = {"lora": (1e-3 / 3, 1e-3, 3e-3, 9e-3), "full": (1e-4 / 3, 1e-4, 3e-4, 9e-4)}
SCALE = 2.0
PREFIX = r"encoder\.layer\.\d+\."
PLACES: dict[str, tuple[str, ...] | str] = {
    "query+value": ("query", "value"),
    "attention": PREFIX + r"attention\.(self\.(query|key|value)|output\.dense)",
    "mlp": PREFIX + r"(intermediate|output)\.dense",
    "all-linear": PREFIX
    + r"(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",
}
MATCHED = {"query+value": 18, "attention": 9, "mlp": 7, "all-linear": 4}  # 161,280 or 165,888 values each
TRAIN_SAMPLE = 1000  # training sentences that are scored, at most


class Run(NamedTuple):
    """One run; its fields are its identity and its file name."""

    method: str
    rate: float
    seed: int = 0
    rows: int = 1000
    r: int = 8
    scale: float = SCALE
    rule: str = "plain"
    place: str = "query+value"

    @property
    def name(self) -> str:
        tail = f"lr{self.rate:.1e}-n{self.rows}-seed{self.seed}"
        if self.method == "full":
            return f"full-{tail}"
        rule = "" if self.rule == "plain" else f"-{self.rule}"
        return f"lora-{self.place}-r{self.r}-s{self.scale:.2g}{rule}-{tail}"

    def lora(self) -> LoraConfig | None:
        """The adapter: alpha follows from the scale, so that the rule alone differs between two runs."""
        if self.method == "full":
            return None
        root = self.rule == "rslora"
        alpha = self.scale * (math.sqrt(self.r) if root else self.r)
        return LoraConfig(self.r, alpha, target_modules=PLACES[self.place], use_rslora=root)

    def recipe(self, limit: int | None = None) -> Recipe:
        changes = {"epochs": EPOCHS[self.rows], "learning_rate": self.rate, "max_examples": self.rows}
        if limit:
            changes |= {"epochs": 1, "max_examples": limit}
        return load_recipe("quick", weight_decay=0.0, group_by_length=True, **changes)

    @property
    def settled(self) -> bool:
        """Whether it is LoRA as in most chapters, or full fine-tuning: these are scored on training rows."""
        plain = (self.r, self.scale, self.rule, self.place) == (8, SCALE, "plain", "query+value")
        return self.method == "full" or plain

    @property
    def kept(self) -> bool:
        """Whether its weights stay for the look at subspaces."""
        usual = (self.scale, self.rule, self.place) == (SCALE, "plain", "query+value")
        return (
            self.rows == 1000 and self.seed < 2 and (self.method == "full" or (usual and self.r in (8, 64)))
        )


class Data(NamedTuple):
    """The task as text and as tokens, row for row."""

    loaded: LoadedTask
    tokens: DatasetDict

    def hash_of(self, chosen: list[int]) -> str:
        rows = self.loaded.data
        return data_hash({"train": rows["train"].select(chosen), "validation": rows["validation"]})


def build(run: Run) -> nn.Module:
    """A classifier on MiniLM whose start depends on the seed and the adapter alone; the pooler is frozen."""
    task = load_task("reviews").task
    model = build_model(task, "full" if run.method == "full" else "head", "minilm", run.seed)
    if config := run.lora():
        inject_lora(model.model, config)
    return model


def adapted_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what the subspaces are computed from: the factors, or the weights of query and value."""
    layers = dict(lora_modules(model.model))
    if layers:
        return {
            f"{name}.{factor}": getattr(layer, factor).detach().clone()
            for name, layer in layers.items()
            for factor in ("lora_A", "lora_B")
        }
    named = model.model.named_parameters()
    return {n: t.detach().clone() for n, t in named if n.endswith(("query.weight", "value.weight"))}


def do(run: Run, data: Data, out: Path, work: Path, limit: int | None = None) -> RunRecord:
    """Train and score one model, or read the record of the time it was done."""
    recipe, path, weights = run.recipe(limit), out / f"{run.name}.json", work / f"{run.name}.safetensors"
    chosen = recipe.subset(len(data.tokens["train"]), run.seed)
    lora = run.lora()
    config: dict[str, Any] = {"task": "reviews", "encoder": "minilm", **run._asdict(), "head": "tutorial"}
    config |= {"lora": lora.to_dict() if lora else None, "data_sha256": data.hash_of(chosen)}
    record = found_record(path, config, recipe, run.seed, finished=False)
    if record and (weights.is_file() or not run.kept or record.status == "failed"):
        return record
    started = time.monotonic()
    model, metric = build(run), load_metric("accuracy")
    config["base_sha256"] = encoder_hash(model.model)
    before = adapted_weights(model) if run.kept else {}
    tokenizer, rows = load_tokenizer("minilm"), data.tokens["train"].select(chosen)
    grouped = {"shuffle": True, "seed": run.seed, "group_by_length": True}
    loader = make_loader(rows, tokenizer, recipe.batch_size, **grouped)
    splits = {"validation": data.tokens["validation"]}
    if run.settled:
        splits["train"] = rows.select(range(min(len(rows), TRAIN_SAMPLE)))
    try:
        record = train(
            model, loader, None, metric, recipe, seed=run.seed, progress=False, config=config, cpu=True
        )
    except NonFiniteLossError as error:  # a rate this high is a result too
        threads = torch.get_num_threads()
        record = RunRecord(config, recipe.to_dict(), run.seed, status="failed", error=str(error))
        record.hardware = describe_hardware(threads)
        scores = {split: {metric.main_score: 0.0} for split in splits}
    else:
        scores = {
            split: evaluate_model(
                model, make_loader(part, tokenizer, EVALUATION_BATCH, sort_by_length=True), metric
            )
            for split, part in splits.items()
        }
        if run.kept:
            tensors = {f"start.{n}": t for n, t in before.items()} | adapted_weights(model)
            atomic_write_bytes(weights, safetensors.torch.save(tensors))
    record.main_score, record.wall_seconds = metric.main_score, time.monotonic() - started
    record.extra = {"scores": scores, "scaling": lora.scaling if lora else None}
    record.extra |= {"rows_scored": {split: len(part) for split, part in splits.items()}}
    record.extra["trained_sha256"] = parameters_hash(model)
    out.mkdir(parents=True, exist_ok=True)
    record.save(path)
    short = " ".join(f"{split} {score[metric.main_score]:.4f}" for split, score in scores.items())
    print(f"{run.name} {short} {record.wall_seconds:.0f} s", flush=True)
    return record


def best_rate(records: Iterable[RunRecord]) -> float:
    """The rate with the highest validation score, the lower one of equals."""
    scored = [(r.extra["scores"]["validation"]["accuracy"], -r.config["rate"]) for r in records]
    return -max(scored)[1]


def plan(lora: float, full: float) -> list[Run]:
    """Every run at the rates chosen, in order of importance; the third seed of each comes last."""

    def repeated(seed: int) -> list[Run]:
        little = [Run(m, rate, seed, n) for n in EPOCHS for m, rate in (("lora", lora), ("full", full))]
        ranks = [Run("lora", lora, seed, r=r) for r in RANKS]
        return ranks + [Run("lora", lora, seed, r=r, place=p) for p, r in MATCHED.items()] + little

    rules = [Run("lora", lora, r=r, rule="rslora") for r in (8, 64)]
    low, middle, high, highest = RATES["lora"]
    points = [(8, SCALE / 3, high), (8, SCALE / 3, highest), (8, SCALE * 3, middle), (8, SCALE * 3, low)]
    points += [(64, SCALE / 3, high), (64, SCALE, middle)]
    grid = [Run("lora", rate, r=r, scale=scale) for r, scale, rate in points]
    first, second, third = map(repeated, SEEDS)
    return list(dict.fromkeys([*first, *second, *rules, *grid, *third]))


def main(arguments: list[str] | None = None) -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--quick", action="store_true", help="two steps, a few runs: does it work?")
    options = parser.parse_args(arguments)
    loaded = load_task("reviews")
    if options.quick:
        cut = DatasetDict({split: rows.select(range(80)) for split, rows in loaded.data.items()})
        loaded = LoadedTask(loaded.task, cut)
    data = Data(loaded, tokenize(loaded, load_tokenizer("minilm")))
    limit = 32 if options.quick else None
    best = {}
    for method, rates in RATES.items():
        todo, records = list(rates[1:2] if options.quick else rates), []
        while todo:
            records += [do(Run(method, rate), data, options.out, options.work, limit) for rate in todo]
            best[method], tried = best_rate(records), sorted(r.config["rate"] for r in records)
            at_an_end = best[method] in (tried[0], tried[-1]) and 1 < len(tried) < 6
            todo = [best[method] * (3 if best[method] == tried[-1] else 1 / 3)] if at_an_end else []
    runs = plan(best["lora"], best["full"])
    if options.quick:
        runs = [run for run in runs if run.seed == 0 and run.rows == 1000 and run.rate == best["lora"]]
    for run in runs:
        do(run, data, options.out, options.work, limit)


if __name__ == "__main__":
    main()
