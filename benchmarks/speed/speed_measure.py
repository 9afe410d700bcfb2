"""Time the variants of one setting in rounds of random order, and sum the rounds up."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from speed_settings import Setting
from speed_variants import Bench, build
from torch import Tensor, nn

PHASES = ("forward", "backward", "optimizer")
QUARTILES = (25, 50, 75)
WARM_UP = {"cpu": 1, "cuda": 3}  # steps
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class OutOfTimeError(Exception):
    """The time for all settings together is over."""


class Deadline:
    """The end of the time that all settings have together; ``None`` is for ever."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.end = math.inf if seconds is None else now() + seconds

    def share(self, settings: int) -> float:
        """Seconds for the rounds of one setting, if so many are to come, this one included."""
        return max(0.0, self.end - self.now()) / settings

    def check(self) -> None:
        """Raise `OutOfTimeError` once the time is over."""
        if self.now() >= self.end:
            raise OutOfTimeError


class Stopwatch:
    """Marks on a time line, and the seconds between them; on a GPU the line is that of its work, not ours."""

    def __init__(self, device: str, clock: str = "wall") -> None:
        self.cuda, self.now = device == "cuda", CLOCKS[clock]
        self.laps: list[list[Any]] = []

    def start(self) -> None:
        """Begin a lap: one step."""
        self.laps.append([])
        self.mark()

    def mark(self) -> None:
        """Note the present moment."""
        if self.cuda:
            self.laps[-1].append(torch.cuda.Event(enable_timing=True))
            self.laps[-1][-1].record()
        else:
            self.laps[-1].append(self.now())

    def seconds(self) -> list[list[float]]:
        """For each lap the time from each mark to the next; forgets the laps.

        A GPU is waited for here only, so that during several laps it gets its work ahead of time, as in
        training.
        """
        laps, self.laps = [list(itertools.pairwise(lap)) for lap in self.laps], []
        if self.cuda:
            torch.cuda.synchronize()
            return [[a.elapsed_time(b) / 1000 for a, b in lap] for lap in laps]
        return [[b - a for a, b in lap] for lap in laps]


class Trainer:
    """One variant with its optimiser, ready to step."""

    def __init__(self, bench: Bench, variant: str, clock: str = "wall") -> None:
        self.bench, self.variant, self.setting = bench, variant, bench.setting
        self.model = build(bench, variant)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # A rate so small that a thousand steps leave the weights, and so the work, as they are.
        adamw = functools.partial(torch.optim.AdamW, lr=1e-9, fused=self.setting.device == "cuda")
        self.optimizer = adamw(self.parameters) if self.parameters else None
        self.watch = Stopwatch(self.setting.device, clock)

    def loss(self) -> Tensor:
        """The forward pass."""
        with _precision(self.setting):
            out = self.model(**self.bench.batch)
        return out if isinstance(out, Tensor) else out.loss

    def step(self) -> None:
        """One training step, or one forward pass without gradients, with marks between its phases."""
        self.watch.start()
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
        self.forget_gradients()
        self.watch.mark()

    def forget_gradients(self) -> None:
        """Those of the parameters, and of the input of a single layer."""
        for tensor in (*self.parameters, self.bench.batch.get("x")):
            if tensor is not None:
                tensor.grad = None

    def timed(self, steps: int) -> dict[str, float]:
        """Mean seconds of each phase over ``steps`` steps in a row."""
        sums: dict[str, float] = {}
        self.watch.laps.clear()
        for _ in range(steps):
            self.step()
        for lap in self.watch.seconds():
            for phase, seconds in zip(PHASES, lap, strict=False):
                sums[phase] = sums.get(phase, 0.0) + seconds / steps
        return sums


def first_pass(trainer: Trainer) -> tuple[float, float | None]:
    """The loss before any step and, in training, the norm of what trains' gradient.

    With the generator reset, so that LoRA's dropout draws the same for all; and with gradients, as the steps
    that are timed: without them a fast layer computes as the plain one does.
    """
    torch.manual_seed(1)
    if trainer.setting.phase == "infer":
        with torch.no_grad():
            return float(trainer.loss()), None
    loss = trainer.loss()
    loss.backward()
    norms = [p.grad.float().norm() for p in trainer.parameters if p.grad is not None]
    trainer.forget_gradients()
    return float(loss.detach()), float(torch.stack(norms).norm()) if norms else None


@contextlib.contextmanager
def _precision(setting: Setting) -> Iterator[None]:
    with torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "autocast"):
        yield


def prepare(
    bench: Bench, variants: list[str], clock: str = "wall", deadline: Deadline | None = None
) -> tuple[dict[str, Trainer], dict[str, dict[str, float | None]]]:
    """Make every variant ready to step, and say what its first pass gave: ``losses`` and ``gradients``.

    Whatever a first step costs (the optimiser's state, compiling, on a GPU the choice of kernels) is paid
    here. Raises `OutOfTimeError` if the ``deadline`` is over before all are ready.
    """
    deadline = deadline or Deadline(None)
    trainers: dict[str, Trainer] = {}
    first: dict[str, dict[str, float | None]] = {"losses": {}, "gradients": {}}
    for variant in variants:
        deadline.check()
        trainers[variant] = Trainer(bench, variant, clock)
        first["losses"][variant], first["gradients"][variant] = first_pass(trainers[variant])
        trainers[variant].timed(WARM_UP[bench.setting.device])
    return trainers, first


def measure(
    trainers: dict[str, Trainer],
    rounds: int,
    seed: int = 0,
    shortest: float = 0.05,
    budget: float | None = None,
) -> dict[str, Any]:
    """Time every variant once a round, in an order drawn anew for each round.

    Parameters
    ----------
    trainers
        What to time, as `prepare` makes them.
    rounds
        How many rounds; fewer, but at least 3, if ``budget`` seconds are over before.
    shortest
        One sample lasts at least this many seconds: quick steps are repeated and averaged.

    Returns
    -------
    dict
        ``trainable`` (counts), ``steps`` (a sample's) and ``seconds``: variant, phase, one number a round.
    """
    quickest = min(sum(trainer.timed(1).values()) for trainer in trainers.values())
    steps = max(1, min(200, math.ceil(shortest / max(quickest, 1e-6))))
    order, draw = list(trainers), random.Random(seed)
    seconds: dict[str, dict[str, list[float]]] = {variant: {} for variant in trainers}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds):
            if budget is not None and done >= 3 and time.perf_counter() - start > budget:
                break
            draw.shuffle(order)
            for variant in order:
                for phase, value in trainers[variant].timed(steps).items():
                    seconds[variant].setdefault(phase, []).append(float(f"{value:.6g}"))
    finally:
        gc.enable()
    counts = {variant: sum(p.numel() for p in t.parameters) for variant, t in trainers.items()}
    return {"trainable": counts, "steps": steps, "seconds": seconds}


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
