"""The figures of the benchmark chapter. They take a scoreboard of run records, never a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from lora_tutorial.pages.style import AXIS, CYCLE, OKABE_ITO, ROLES
from lora_tutorial.training.records import best_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lora_tutorial.analysis.scoreboard import Board
    from lora_tutorial.training.records import RunRecord

__all__ = [
    "STYLES",
    "forest",
    "learning_curves",
    "run_curves",
    "score_against_parameters",
    "search_curves",
    "spread_apart",
]

# A method's colour, marker and line: no reader depends on the colour alone.
STYLES: dict[str, tuple[str, str, Any]] = {
    "head": (ROLES["head"], "s", ":"),
    "bitfit": (ROLES["bitfit"], "^", "-."),
    "lora": (ROLES["lora"], "o", "-"),
    "lora+bias+norm": (OKABE_ITO["purple"], "P", "-"),
    "full": (ROLES["full"], "D", "--"),
}


def _legend(fig: Figure, methods: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=STYLES[m][0], marker=STYLES[m][1], linestyle=STYLES[m][2], label=m)
        for m in methods
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.6)


def _methods(board: Board) -> list[str]:
    return [method for method in STYLES if any(method in cells for cells in board.values())]


def spread_apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights for labels, in the order given, at least ``least`` apart and as near to their own as can be.

    Labels that would touch form a block around their common mean.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # each label's height, less its place in the column
    for place, label in enumerate(order):
        blocks.append([heights[label] - place * least])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    columns = [_mean(block) for block in blocks for _ in block]
    placed = [0.0] * len(heights)
    for place, label in enumerate(order):
        placed[label] = columns[place] + place * least
    return placed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def score_against_parameters(board: Board, titles: Mapping[str, str]) -> Figure:
    """Draw each task's main score, times 100, against the parameters trained, which are on a log scale.

    A thin line joins a task's methods; its name stands at the right end. Each seed is a small dot, the mean
    a large mark.
    """
    fig, axis = plt.subplots(figsize=(6.8, 4.4))
    ends = []
    for task, cells in board.items():
        points = [(cell.trainable, 100 * cell.mean()) for cell in cells.values()]
        axis.plot(*zip(*points, strict=True), color=AXIS, linewidth=0.9, alpha=0.7)
        for method, cell in cells.items():
            colour, marker, _ = STYLES[method]
            seeds = [100 * score for score in cell.scores()]
            axis.plot([cell.trainable] * len(seeds), seeds, ".", color=colour, markersize=4, alpha=0.7)
            axis.plot(cell.trainable, 100 * cell.mean(), marker, color=colour, markersize=7.5)
        ends.append((task, *points[-1]))
    low, high = axis.get_ylim()
    heights = spread_apart([height for _, _, height in ends], 0.055 * (high - low))
    for (task, x, y), height in zip(ends, heights, strict=True):
        axis.annotate(
            titles.get(task, task),
            (x, y),
            (1.6 * x, height),
            va="center",
            fontsize=9.5,
            annotation_clip=False,
        )
    axis.set(xscale="log", xlabel="parameters trained", ylabel="main score × 100")
    widest = max(x for _, x, _ in ends)
    axis.set_xlim(axis.get_xlim()[0], 6 * widest)
    _legend(fig, _methods(board))
    return fig


def learning_curves(board: Board, titles: Mapping[str, str], columns: int = 3) -> Figure:
    """Draw the main score, times 100, epoch by epoch: one panel a task, the mean of the seeds as a line.

    A band reaches from the lowest seed to the highest; with one seed there is none.
    """
    columns = min(columns, len(board))
    rows = math.ceil(len(board) / columns)
    size = (2.35 * columns + 0.4, 2.1 * rows + 0.5)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True)
    for axis in axes.flat[len(board) :]:
        axis.set_axis_off()
    for axis, (task, cells) in zip(axes.flat, board.items(), strict=False):
        for method, cell in cells.items():
            colour, marker, line = STYLES[method]
            epochs = [number for number, _ in cell.curve()]
            seeds = [[100 * score for score in scores] for _, scores in cell.curve()]
            means = [_mean(scores) for scores in seeds]
            axis.fill_between(
                epochs, list(map(min, seeds)), list(map(max, seeds)), color=colour, alpha=0.2, linewidth=0
            )
            axis.plot(epochs, means, line, color=colour, marker=marker, markersize=4, linewidth=1.6)
        count = max(len(cell.records) for cell in cells.values())
        seeds_word = "1 seed" if count == 1 else f"{count} seeds"
        title = f"{titles.get(task, task)}, {seeds_word}"
        axis.set_title(title, loc="left", fontsize=10.5, fontweight="normal", pad=5)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("score × 100")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    _legend(fig, _methods(board))
    return fig


def run_curves(records: Iterable[RunRecord]) -> Figure:
    """Draw the main score, times 100, of single runs of one task against optimiser steps, all in one panel.

    At its right end each line says method, learning rate and seed.
    """
    fig, axis = plt.subplots(figsize=(6.8, 4.2))
    ends = []
    for record in records:
        colour, marker, line = STYLES[record.config["method"]]
        steps = [epoch["step"] for epoch in record.epochs]
        scores = [100 * epoch["scores"][record.main_score] for epoch in record.epochs]
        axis.plot(steps, scores, line, color=colour, marker=marker, markersize=4, linewidth=1.6, alpha=0.85)
        name = f"{record.config['method']}, {record.recipe['learning_rate']:g}, seed {record.seed}"
        ends.append((name, steps[-1], scores[-1]))
    if axis.get_ylim()[0] < 10:  # scores near nothing: show where nothing is
        axis.axhline(0, color=AXIS, linewidth=1, linestyle=":")
    low, high = axis.get_ylim()
    longest = max(step for _, step, _ in ends)
    for length in {step for _, step, _ in ends}:  # labels can only touch where lines end together
        together = [(name, score) for name, step, score in ends if step == length]
        heights = spread_apart([score for _, score in together], 0.055 * (high - low))
        for (name, score), height in zip(together, heights, strict=True):
            axis.annotate(name, (length, score), (length + 0.015 * longest, height), va="center", fontsize=10)
    axis.set(xlabel="optimiser steps", ylabel="main score × 100", xlim=(0, 1.45 * longest))
    return fig


def search_curves(
    curves: Mapping[str, Mapping[float, float]],
    titles: Mapping[str, str],
    ylabel: str,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw each arm's held-out score against its learning rate, on a log axis; a ring marks the best.

    Parameters
    ----------
    curves
        Score by rate and arm, see ``rate_curves``.
    titles
        An arm's name on the page; arms that are not in it are left out.
    ylabel
        What the score is.
    colours
        An arm's colour, for instance from ``ROLES``. The other arms take what is left of the cycle.
    """
    fig, axis = plt.subplots(figsize=(6.8, 3.9))
    fixed = colours or {}
    rest = cycle([colour for colour in CYCLE if colour not in fixed.values()] or CYCLE)
    ends = []
    for arm, title in titles.items():
        scores = {rate: score for rate, score in curves[arm].items() if math.isfinite(score)}
        colour = fixed.get(arm) or next(rest)
        axis.plot(list(scores), list(scores.values()), "o-", color=colour, markersize=4, linewidth=1.6)
        best = best_rate(scores)
        if best is None:  # every run diverged
            continue
        axis.plot(best, scores[best], "o", color=colour, markersize=11, fillstyle="none")
        ends.append((title, colour, scores[max(scores)], max(scores)))
    low, high = axis.get_ylim()
    heights = spread_apart([end for _, _, end, _ in ends], 0.075 * (high - low))
    right = max(rate for *_, rate in ends)
    for (title, colour, score, rate), height in zip(ends, heights, strict=True):
        axis.annotate(
            title,
            (rate, score),
            (1.35 * right, height),
            va="center",
            fontsize=9.5,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )
    axis.set(xscale="log", xlabel="learning rate", ylabel=ylabel)
    return fig


def forest(
    rows: Mapping[str, tuple[float, float, float]],
    xlabel: str,
    zero: bool = False,
    best: str = "",
    digits: int = 2,
) -> Figure:
    """Draw values with their intervals, a row each, the first on top.

    Parameters
    ----------
    rows
        Value, low and high by the row's title.
    xlabel
        What the values are.
    zero
        Whether a line marks zero, for differences.
    best
        A row that stands out.
    digits
        Decimals of the values beside their dots.
    """
    fig, axis = plt.subplots(figsize=(6.8, 0.42 * len(rows) + 0.9))
    for place, (title, (value, low, high)) in enumerate(rows.items()):
        colour = ROLES["lora"] if title == best else ROLES["full"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(value, place, "o", color=colour, markersize=6.5)
        axis.annotate(f"{value:.{digits}f}", (value, place), (0, 6), textcoords="offset points", ha="center")
    if zero:
        axis.axvline(0, color=AXIS, linewidth=1, linestyle=":")
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    axis.set_ylim(len(rows) - 0.5, -0.75)
    axis.grid(visible=False, axis="y")
    return fig
