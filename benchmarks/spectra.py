"""The updates that arms of the film reviews' grids learnt, one matrix beside the other, for chapter 15.

``python benchmarks/spectra.py`` takes each arm of `ARMS` at the rate that its search chose, all three seeds;
their folders must be in ``runs``. It writes ``results/updates/spectra.json``. Of each matrix of query and
value it has

- ``length``, the norm of an update over that of the pretrained weight; ``ninety``, the number of singular
  values that hold 90 % of its squared norm; ``intruders``, see there: a list with a number for each seed;
- ``singular_values``, the first 64 of the first seed's update, over the largest;
- ``phi``, how far the first directions of two updates agree, see ``similarity_grid``; two arms are compared
  across two seeds, so that nothing they drew is the same;
- ``amplification`` and ``inside``, of the first seed's update in its first eight directions, see there.

``share`` says which part of an update's squared norm lies in query and value, for arms that train more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from updates import linears, merged, trained_model

from lora_tutorial.analysis.search import chosen_runs
from lora_tutorial.analysis.subspaces import (
    amplification,
    directions,
    intruders,
    projected_norm,
    similarity_grid,
)
from lora_tutorial.models.encoders import load_encoder, quiet
from lora_tutorial.training.records import RunRecord, load_record

HERE = Path(__file__).resolve().parent
ARMS = {
    "qv-8": "reviews",
    "qv-64": "placement",
    "all-8": "placement",
    "full-qv": "controls",
    "full": "reviews",
}
PAIRS = (
    ("qv-8", "qv-8"),
    ("qv-8", "qv-64"),
    ("qv-8", "full-qv"),
    ("qv-8", "full"),
    ("full-qv", "full-qv"),
    ("full-qv", "full"),
    ("full", "full"),
)
KEPT, TOP = 64, 8  # singular values; directions of a pair
Weights = dict[str, Tensor]


def main() -> None:
    """Read every run, measure, and store."""
    with quiet():
        before = linears(load_encoder("minilm").model)
        runs = {arm: seeds(arm, grid) for arm, grid in ARMS.items()}
        after = {arm: [weights(name, record) for name, record in found] for arm, found in runs.items()}
    updates = {arm: [{k: w[k] - before[k] for k in w} for w in found] for arm, found in after.items()}
    shown = [name for name in before if name.endswith(("query.weight", "value.weight"))]
    layers = {}
    for name in shown:
        own = {arm: [update[name] for update in found] for arm, found in updates.items()}
        tuned = {arm: [weight[name] for weight in found] for arm, found in after.items()}
        layers[name.removesuffix(".weight")] = one_matrix(before[name], own, tuned)
    share = {arm: [round(part(update, shown), 4) for update in found] for arm, found in updates.items()}
    about = {
        "kind": "spectra",
        "task": "reviews",
        "runs": {name: r.extra["trained_sha256"] for found in runs.values() for name, r in found},
    }
    record = RunRecord(about, runs["full"][0][1].recipe, 0, extra={"layers": layers, "share": share})
    record.status = "finished"
    record.save(HERE / "results" / "updates" / "spectra.json")


def seeds(arm: str, grid: str) -> list[tuple[str, RunRecord]]:
    """Name and record of an arm's runs at its chosen rate, by seed."""
    paths = sorted((HERE / "results" / grid).glob(f"reviews-{arm}-lr*.json"))
    chosen = chosen_runs([load_record(path) for path in paths])[arm]
    rate, chosen = chosen[0].recipe["learning_rate"], sorted(chosen, key=lambda record: record.seed)
    return [(f"{grid}/reviews-{arm}-lr{rate:g}-seed{record.seed}", record) for record in chosen]


def weights(name: str, record: RunRecord) -> Weights:
    """The linear layers' weights after a run."""
    return merged(name) if record.config["method"] == "lora" else linears(trained_model(name, record).model)


def one_matrix(before: Tensor, updates: dict[str, list[Tensor]], tuned: dict[str, list[Tensor]]) -> Any:
    """What is kept of one matrix."""
    length = torch.linalg.norm(before.double())
    values = {arm: [torch.linalg.svdvals(u.double()) for u in found] for arm, found in updates.items()}
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(TOP, before.shape[1], generator=generator)  # the rows of a random A
    phi = {f"{a} and {b}": overlap(updates[a][0], updates[b][1]) for a, b in PAIRS}
    phi["qv-8 and random"] = overlap(updates["qv-8"][0], random)
    made = torch.randn(len(before), TOP, generator=generator) @ random
    firsts = {arm: amplification(before, found[0], TOP) for arm, found in updates.items()}
    inside = {arm: found.before for arm, found in firsts.items()}
    inside |= {"weight": projected_norm(before, before, TOP), "random": projected_norm(before, made, TOP)}
    first = {arm: found[0] / found[0][0] for arm, found in values.items()}
    return {
        "length": {arm: [rounded(s.norm() / length) for s in found] for arm, found in values.items()},
        "ninety": {arm: [ninety(s) for s in found] for arm, found in values.items()},
        "intruders": {arm: [intruders(before, w) for w in found] for arm, found in tuned.items()},
        "singular_values": {arm: [rounded(v) for v in s[:KEPT] if v > 1e-6] for arm, s in first.items()},
        "phi": phi,
        "amplification": {arm: rounded(found.factor) for arm, found in firsts.items()},
        "inside": {name: rounded(value) for name, value in inside.items()},
    }


def overlap(first: Tensor, second: Tensor) -> list[list[float]]:
    """phi(i, j) of two updates' input directions, up to `TOP` of each."""
    grid = similarity_grid(directions(first)[:, :TOP], directions(second)[:, :TOP])
    return [[rounded(value) for value in row] for row in grid]


def ninety(values: Tensor) -> int:
    """How many singular values hold 90 % of the squared norm."""
    held = values.square().cumsum(0)
    return int((held < 0.9 * held[-1]).sum()) + 1


def part(update: Weights, names: list[str]) -> float:
    """Which part of an update's squared norm lies in some of its matrices."""
    squares = {name: float(u.double().square().sum()) for name, u in update.items()}
    return sum(squares[name] for name in names) / sum(squares.values())


def rounded(value: Any) -> float:
    """Five significant digits."""
    return float(f"{float(value):.5g}")


if __name__ == "__main__":
    main()
