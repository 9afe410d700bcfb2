"""Figures of what grids of runs found: searches by learning rate, and values with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from lora_tutorial.pages.style import AXIS, CYCLE, ROLES
from lora_tutorial.training.records import best_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["forest", "search_curves", "spread_apart"]


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
    fig, axis = plt.subplots(figsize=(6.4, 0.42 * len(rows) + 0.9))
    reach = max(high for _, _, high in rows.values()) - min(low for _, low, _ in rows.values())
    for place, (title, (value, low, high)) in enumerate(rows.items()):
        colour = ROLES["lora"] if title == best else ROLES["full"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(value, place, "o", color=colour, markersize=6.5)
        said = f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        beside = zero and abs(value) < 0.04 * reach  # or the line of zero would run through the number
        at, right, side = (max(value, 0), 5, "left") if beside else (value, 0, "center")
        axis.annotate(said, (at, place), (right, 6), textcoords="offset points", ha=side)
    if zero:
        axis.axvline(0, color=AXIS, linewidth=1, linestyle=":")
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=xlabel)
    axis.set_ylim(len(rows) - 0.5, -0.75)
    axis.grid(visible=False, axis="y")
    return fig
