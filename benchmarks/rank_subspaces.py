"""The measures of the LoRA paper's section 7, layer by layer, for the weights of ``benchmarks/ranks.py``.

Run it from the repository after that script: ``python benchmarks/rank_subspaces.py``. It compares LoRA at
r = 8 and r = 64 with full fine-tuning, and two seeds with each other (other sentences, another order, another
start), and writes ``benchmarks/results/ranks/subspaces.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ranks import RATES, RESULTS, SCALE, WORK, Run, best_rate
from torch import Tensor

from lora_tutorial.analysis.subspaces import amplification, directions, projected_norm, similarity_grid
from lora_tutorial.lora.layers import lora_delta
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.training.records import RunRecord, describe_hardware, load_record

KINDS = {"r8": ("lora", 8), "r64": ("lora", 64), "full": ("full", 8)}
COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)  # the j of phi(i, j); i goes from 1 to 8
PAIRS = {
    "r8 and r64": (("r8", 0), ("r64", 1)),
    "r8, two seeds": (("r8", 0), ("r8", 1)),
    "r64, two seeds": (("r64", 0), ("r64", 1)),
    "full, two seeds": (("full", 0), ("full", 1)),
    "r8 and full": (("r8", 0), ("full", 1)),
    "r8 and random": (("r8", 0), ("random", 0)),
}
RANDOM_DRAWS = 20

Key = tuple[str, int]


def rounded(values: Tensor) -> Any:
    """As JSON, to five significant digits."""
    return [rounded(v) for v in values] if values.ndim else float(f"{values.item():.5g}")


def grid(first: Tensor, second: Tensor) -> Any:
    """phi(i, j) for i up to 8 and j in `COLUMNS`, as far as there are directions."""
    found = similarity_grid(first[:, :8], second[:, :64])
    return rounded(found[:, [j - 1 for j in COLUMNS if j <= found.shape[1]]])


def moved(tensors: dict[str, Tensor], name: str) -> float:
    """How far a tensor went, relative to its norm at the start."""
    start = tensors[f"start.{name}"]
    return rounded((tensors[name] - start).norm() / start.norm())


def look_at(layer: str, weight: Tensor, files: dict[Key, dict[str, Tensor]]) -> dict[str, Any]:
    """Everything that is stored of one adapted weight."""
    updates: dict[Key, Tensor] = {}
    for (kind, seed), tensors in files.items():
        if kind == "full":
            name = f"{layer}.weight"
            updates[kind, seed] = tensors[name].double() - tensors[f"start.{name}"].double()
        else:
            A, B = (tensors[f"{layer}.lora_{k}"].double() for k in "AB")
            updates[kind, seed] = lora_delta(A, B, SCALE)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(RANDOM_DRAWS, *weight.shape, generator=draw, dtype=torch.float64)
    updates["random", 0] = noise[0]
    values = {kind: torch.linalg.svdvals(updates[kind, 0]) for kind in KINDS}
    result: dict[str, Any] = {
        "norms": {"weight": rounded(weight.double().norm())},
        "singular_values": {kind: rounded(v[:64] if kind != "r8" else v[:8]) for kind, v in values.items()},
        "directions_for_90_percent": {
            kind: int((v.square().cumsum(0) < 0.9 * v.square().sum()).sum()) + 1 for kind, v in values.items()
        },
        "moved": {k: moved(files[k, 0], f"{layer}.lora_A") for k in ("r8", "r64")},
        "amplification": {},
        "similarity": {},
    }
    result["moved"]["full"] = moved(files["full", 0], f"{layer}.weight")
    for kind in KINDS:
        result["norms"][kind] = rounded(updates[kind, 0].norm())
        for r in (8, 64) if kind != "r8" else (8,):
            found = amplification(weight, updates[kind, 0], r)
            result["amplification"][f"{kind}, {r} directions"] = float(f"{found.before:.5g}")
    for r in (8, 64):
        own = projected_norm(weight, weight, r)
        random = sum(projected_norm(weight, matrix, r) for matrix in noise) / RANDOM_DRAWS
        result["amplification"][f"weight, {r} directions"] = float(f"{own:.5g}")
        result["amplification"][f"random, {r} directions"] = float(f"{random:.5g}")
    for side in ("right", "left"):
        of = {key: directions(update, side) for key, update in updates.items()}
        for pair, (a, b) in PAIRS.items():
            result["similarity"][f"{pair}, {side}"] = grid(of[a], of[b])
    for when, prefix in (("lora_A, r8 and r64", ""), ("lora_A at the start, r8 and r64", "start.")):
        name = f"{prefix}{layer}.lora_A"
        a, b = (directions(files[key][name]) for key in (("r8", 0), ("r64", 1)))
        result["similarity"][when] = grid(a, b)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Read the weights, compare, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args(arguments)
    started, runs = time.monotonic(), {}
    for kind, (method, r) in KINDS.items():
        tried = [options.out / f"{Run(method, rate).name}.json" for rate in RATES[method]]
        rate = best_rate([load_record(path) for path in tried if path.is_file()])
        runs |= {(kind, seed): Run(method, rate, seed, r=r) for seed in (0, 1)}
    files, hashes = {}, {}
    for key, run in runs.items():
        path = options.work / f"{run.name}.safetensors"
        if not path.is_file():
            raise SystemExit(f"{path} is not there: python benchmarks/ranks.py makes it.")
        files[key] = safetensors.torch.load_file(path)
        hashes[run.name] = load_record(options.out / f"{run.name}.json").extra["trained_sha256"]
    base = load_encoder("minilm").model
    layers = [
        n for n, _ in base.named_modules() if n.endswith(("attention.self.query", "attention.self.value"))
    ]
    record = RunRecord(
        {"kind": "subspaces", "runs": hashes}, runs["r8", 0].recipe().to_dict(), 0, status="finished"
    )
    record.extra = {
        "columns": list(COLUMNS),
        "layers": {n: look_at(n, base.get_submodule(n).weight.detach(), files) for n in layers},
    }
    record.hardware, record.main_score = describe_hardware(torch.get_num_threads()), "accuracy"
    record.wall_seconds = time.monotonic() - started
    print(record.save(options.out / "subspaces.json").name)


if __name__ == "__main__":
    main()
