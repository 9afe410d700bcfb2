"""Time the variants of one setting in rounds of random order, and sum the rounds up."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from speed_settings import Setting
from speed_variants import Bench, build
from torch import Tensor, nn

PHASES = ("forward", "backward", "optimizer")
QUARTILES = (25, 50, 75)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Stopwatch:
    """Marks on a time line, and the seconds between them; on a GPU the line is that of its work, not ours."""

    def __init__(self, device: str, clock: str = "wall") -> None:
        self.cuda, self.now = device == "cuda", CLOCKS[clock]
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Note the present moment."""
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(self.now())

    def seconds(self) -> list[float]:
        """The time from each mark to the next; forgets the marks."""
        marks, self.marks = self.marks, []
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
        return [b - a for a, b in itertools.pairwise(marks)]


class Trainer:
    """One variant with its optimiser, ready to step."""

    def __init__(self, bench: Bench, variant: str, clock: str = "wall") -> None:
        self.bench, self.variant, self.setting = bench, variant, bench.setting
        self.model = build(bench, variant)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # A rate so small that a thousand steps leave the weights, and so the work, as they are.
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-9) if self.parameters else None
        self.watch = Stopwatch(self.setting.device, clock)

    def loss(self) -> Tensor:
        """The forward pass."""
        with _precision(self.setting):
            out = self.model(**self.bench.batch)
        return out if isinstance(out, Tensor) else out.loss

    def step(self) -> None:
        """One training step, or one forward pass without gradients, with marks between its phases."""
        self.watch.mark()
        if self.setting.phase == "infer":
            with torch.no_grad():
                self.loss()
            self.watch.mark()
            return
        loss = self.loss()
        self.watch.mark()
        loss.backward()
        self.watch.mark()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if "x" in self.bench.batch:
            self.bench.batch["x"].grad = None
        self.watch.mark()

    def timed(self, steps: int) -> dict[str, float]:
        """Mean seconds of each phase over ``steps`` steps in a row."""
        sums: dict[str, float] = {}
        for _ in range(steps):
            self.step()
            for phase, seconds in zip(PHASES, self.watch.seconds(), strict=False):
                sums[phase] = sums.get(phase, 0.0) + seconds / steps
        return sums


def first_loss(trainer: Trainer) -> float:
    """The loss before any step, with the generator reset, so that LoRA's dropout draws the same for all."""
    torch.manual_seed(1)
    with torch.no_grad():
        return float(trainer.loss())


@contextlib.contextmanager
def _precision(setting: Setting) -> Iterator[None]:
    with torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "autocast"):
        yield


def measure(
    bench: Bench,
    variants: list[str],
    rounds: int,
    clock: str = "wall",
    seed: int = 0,
    shortest: float = 0.05,
    budget: float | None = None,
) -> dict[str, Any]:
    """Time every variant once a round, in an order drawn anew for each round.

    Parameters
    ----------
    bench, variants
        What to time.
    rounds
        How many rounds; fewer, but at least 3, if ``budget`` seconds are over before.
    clock
        ``"wall"``, or ``"cpu"`` for the processor time of this process on a machine that is busy with others.
    shortest
        One sample lasts at least this many seconds: quick steps are repeated and averaged.

    Returns
    -------
    dict
        ``losses``, ``trainable`` (counts), ``steps`` (a sample's) and ``seconds``: variant, phase, one number
        a round.
    """
    trainers = {variant: Trainer(bench, variant, clock) for variant in variants}
    losses = {variant: first_loss(trainer) for variant, trainer in trainers.items()}
    for trainer in trainers.values():  # the first step makes the optimiser's state, and compiles
        trainer.timed(1)
    quickest = min(sum(trainer.timed(1).values()) for trainer in trainers.values())
    steps = max(1, min(200, math.ceil(shortest / max(quickest, 1e-6))))
    order, draw = list(trainers), random.Random(seed)
    seconds: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds):
            if budget and done >= 3 and time.perf_counter() - start > budget:
                break
            draw.shuffle(order)
            for variant in order:
                for phase, value in trainers[variant].timed(steps).items():
                    seconds[variant].setdefault(phase, []).append(float(f"{value:.6g}"))
    finally:
        gc.enable()
    counts = {variant: sum(p.numel() for p in t.parameters) for variant, t in trainers.items()}
    return {"losses": losses, "trainable": counts, "steps": steps, "seconds": seconds}


def summarise(seconds: dict[str, dict[str, list[float]]], seed: int = 0) -> dict[str, Any]:
    """Medians and quartiles of times, of ratios within the round, and of what an adapter itself costs.

    Parameters
    ----------
    seconds
        As `measure` gives them.

    Returns
    -------
    dict
        For each variant, as [lower quartile, median, upper quartile]: ``seconds`` by phase and in
        ``total``; ``to_peft``, the ratio of its total to PEFT's in the same round; ``own``, its forward and
        backward pass less the floor's (the base's, without gradients) in the same round;
        ``own_with_optimizer``, the same with the optimiser's step; and ``own_to_peft`` and
        ``own_with_optimizer_to_peft``, the ratios of their medians to PEFT's, with quartiles over 2,000
        redrawn sets of rounds. What needs a variant that was not timed is left out, and a ratio of own costs
        is ``None`` where PEFT's was lost in the noise.
    """
    steps = {v: np.sum(list(phases.values()), axis=0) for v, phases in seconds.items()}
    passes = {v: np.sum([t for p, t in ph.items() if p != "optimizer"], axis=0) for v, ph in seconds.items()}
    floor = "floor" if "floor" in seconds else "base"
    summary: dict[str, Any] = {}
    for variant, phases in seconds.items():
        row: dict[str, Any] = {"seconds": {p: _quartiles(v) for p, v in phases.items()}}
        row["seconds"]["total"] = _quartiles(steps[variant])
        if "peft" in seconds:
            row["to_peft"] = _quartiles(steps[variant] / steps["peft"])
        if floor in seconds and variant != floor:
            for name, times in (("own", passes), ("own_with_optimizer", steps)):
                own = times[variant] - times[floor]
                row[name] = _quartiles(own)
                if "peft" in seconds:
                    row[f"{name}_to_peft"] = _ratio_of_medians(own, times["peft"] - times[floor], seed)
        summary[variant] = row
    return summary


def _quartiles(values: Any) -> list[float]:
    return [float(f"{q:.6g}") for q in np.percentile(values, QUARTILES)]


def _ratio_of_medians(own: np.ndarray, reference: np.ndarray, seed: int) -> list[float] | None:
    """Medians first: in one round the difference of two long times may well be negative."""
    chosen = np.random.default_rng(seed).integers(0, len(own), (2000, len(own)))  # (draws, rounds)
    below = np.median(reference[chosen], axis=1)  # (draws,)
    if np.median(reference) <= 0 or np.mean(below <= 0) > 0.05:
        return None
    good = below > 0
    low, _, high = np.percentile(np.median(own[chosen], axis=1)[good] / below[good], QUARTILES)
    return [float(f"{q:.6g}") for q in (low, np.median(own) / np.median(reference), high)]


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the weights of a model, each storage once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()
    }
    return sum(storages.values())
