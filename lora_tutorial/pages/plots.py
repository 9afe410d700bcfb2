"""The figures of the chapters on cost and on mathematics. They take numbers and arrays, never a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from lora_tutorial.pages.style import AXIS, CYCLE, OKABE_ITO, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PARTS", "error_curves", "lora_picture", "memory_bars", "spectra"]

# The four things a training step holds, in the order in which they are stacked.
PARTS = {
    "weights": ROLES["frozen"],
    "gradients": OKABE_ITO["sky"],
    "AdamW state": OKABE_ITO["blue"],
    "activations": OKABE_ITO["orange"],
}


def memory_bars(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draw stacked bars of memory, one panel for each model.

    Parameters
    ----------
    panels
        Title to bars; a bar's name to bytes by part, whose names are keys of ``PARTS``.

    Returns
    -------
    Figure
        Each bar ends in its sum, in gigabytes (10**9 bytes).
    """
    rows = [len(bars) for bars in panels.values()]
    size = (6.4, 0.55 * sum(rows) + 0.95 * len(rows) + 0.3)
    fig, axes = plt.subplots(len(panels), 1, figsize=size, height_ratios=rows, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _stack(axis, title, bars)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in PARTS.values()]
    fig.legend(
        handles, PARTS, loc="outside lower center", ncols=len(PARTS), handlelength=1, columnspacing=1.4
    )
    return fig


def _stack(axis: Axes, title: str, bars: Mapping[str, Mapping[str, float]]) -> None:
    widest = max(sum(parts.values()) for parts in bars.values()) / 1e9
    for place, parts in enumerate(bars.values()):
        left = 0.0
        for part, colour in PARTS.items():
            width = parts.get(part, 0) / 1e9
            axis.barh(place, width, left=left, height=0.62, color=colour)
            left += width
        axis.text(left + widest * 0.012, place, f"{left:.2f}", va="center", fontsize=9)
    axis.set(title=title, yticks=range(len(bars)), yticklabels=list(bars), xlim=(0, widest * 1.12))
    axis.set_xlabel("GB")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def lora_picture() -> Figure:
    """Draw a linear layer with its low-rank path: the frozen square, and the two thin factors beside it."""
    fig, axis = plt.subplots(figsize=(6.4, 3.3))
    axis.set(xlim=(0, 12.4), ylim=(-0.55, 6.1), aspect="equal")
    axis.axis("off")

    def box(x: float, y: float, w: float, h: float, colour: str, text: str, below: str) -> None:
        axis.add_patch(Rectangle((x, y), w, h, facecolor=colour + "40", edgecolor=colour, linewidth=1.6))
        axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=12)
        axis.text(x + w / 2, y - 0.16, below, ha="center", va="top", fontsize=9.5)

    def arrow(*points: tuple[float, float]) -> None:
        for start, end in pairwise(points):
            style = "-|>" if end == points[-1] else "-"
            axis.add_patch(
                FancyArrowPatch(
                    start, end, arrowstyle=style, mutation_scale=11, shrinkA=0, shrinkB=0, color=AXIS, lw=1.3
                )
            )

    box(3.2, 3.5, 2.4, 2.4, ROLES["frozen"], "$W_0$", "")
    axis.text(5.75, 5.55, "frozen\n$d_{out} \\times d_{in}$ numbers", va="top", fontsize=9.5)
    box(3.2, 0.75, 2.4, 0.45, ROLES["lora"], "$A$", "down to $r$ numbers")
    box(7.2, -0.1, 0.45, 2.2, ROLES["lora"], "$B$", "up to $d_{out}$")
    axis.text(
        4.4, 1.9, "learnt: $r\\,(d_{in} + d_{out})$ numbers", ha="center", fontsize=9.5, color=ROLES["lora"]
    )
    arrow((0.6, 4.7), (3.2, 4.7))
    arrow((1.5, 4.7), (1.5, 0.97), (3.2, 0.97))
    arrow((5.6, 0.97), (7.2, 0.97))
    arrow((7.65, 0.97), (8.6, 0.97))
    arrow((9.5, 0.97), (10.2, 0.97), (10.2, 4.4))
    arrow((5.6, 4.7), (9.9, 4.7))
    arrow((10.5, 4.7), (11.8, 4.7))
    for x, y, text in (
        (0.3, 4.7, "$x$"),
        (12.1, 4.7, "$h$"),
        (9.05, 0.97, "$\\times\\, s$"),
        (10.2, 4.7, "$+$"),
    ):
        axis.text(x, y, text, ha="center", va="center", fontsize=13)
    return fig


def spectra(curves: Mapping[str, Sequence[float]], ylabel: str = "singular value / largest") -> Figure:
    """Draw the singular values of several matrices, each divided by its largest, on a logarithmic scale."""
    fig, axis = plt.subplots()
    for (name, values), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=False):
        axis.plot(range(1, len(values) + 1), [v / values[0] for v in values], style, label=name)
    axis.set(xlabel="number of the singular value", ylabel=ylabel, yscale="log", ylim=(1e-4, 1.4))
    axis.legend(loc="lower center")
    return fig


def error_curves(curves: Mapping[str, Sequence[float]], break_even: float | None = None) -> Figure:
    """Draw the relative error of the best approximation against its rank, from rank 0 on.

    ``break_even`` marks the rank from which the factors hold as many numbers as the matrix.
    """
    fig, axis = plt.subplots()
    for (name, errors), style, colour in zip(curves.items(), ("-", "--", "-.", ":"), CYCLE, strict=False):
        axis.plot(range(len(errors)), errors, style, color=colour, label=name)
    if break_even is not None:
        axis.axvline(break_even, color=AXIS, linewidth=1, linestyle=":")
        axis.text(break_even, 0.98, f" break-even, r = {break_even:.0f}", va="top", fontsize=9)
    axis.set(xlabel="rank r", ylabel="relative error", ylim=(0, 1.03), xlim=(0, None))
    axis.legend(loc="upper right" if break_even is None else "center right")
    return fig
