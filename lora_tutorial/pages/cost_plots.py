"""The figures of the chapter on costs. They take stored records of times and memory, never a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lora_tutorial.pages.plots import PARTS
from lora_tutorial.pages.style import AXIS, OKABE_ITO, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMS", "PHASES", "memory_split", "own_costs", "phase_costs", "shares", "step_bars"]

Record = Mapping[str, Any]

# The phases of a step, in the order in which they happen.
PHASES = {
    "forward": ROLES["frozen"],
    "backward": OKABE_ITO["sky"],
    "optimizer": OKABE_ITO["blue"],
}
# The forms of one adapter: colour, marker, and whether the marker is filled.
FORMS: dict[str, tuple[str, str, bool]] = {
    "materialised": (OKABE_ITO["orange"], "s", False),
    "loralib": (OKABE_ITO["purple"], "^", True),
    "peft": (OKABE_ITO["purple"], "v", False),
    "teaching": (ROLES["lora"], "o", False),
    "fast": (ROLES["lora"], "o", True),
    "fused": (ROLES["lora"], "D", True),
}
# The record's names for what a step holds, in the words of `PARTS`.
_HELD = {"weights": "weights", "gradients": "gradients", "optimizer": "AdamW state", "saved": "activations"}


def step_bars(records: Mapping[str, Record]) -> Figure:
    """Draw the median times of forward pass, backward pass and optimiser as stacked bars.

    Parameters
    ----------
    records
        Title of a panel to a record of times, in seconds.

    Returns
    -------
    Figure
        Milliseconds; a thin line across the end of a bar spans the quartiles of the whole step.
    """
    chosen = {title: record["summary"] for title, record in records.items()}
    fig, axes = _panels(chosen)
    for axis, rows in zip(axes, chosen.values(), strict=True):
        for place, row in enumerate(rows.values()):
            medians = {phase: row["seconds"].get(phase, [0, 0, 0])[1] for phase in PHASES}
            end = _stack(axis, place, [(1000 * medians[phase], colour) for phase, colour in PHASES.items()])
            low, middle, high = (1000 * q for q in row["seconds"]["total"])
            axis.plot([low, high], [place, place], color=AXIS, linewidth=1.4)
            axis.text(max(high, end), place, f"  {middle:,.0f}", va="center", fontsize=9)
        axis.set(xlabel="ms a step", xlim=(0, 1.12 * axis.get_xlim()[1]))
    _swatches(fig, {"optimiser" if phase == "optimizer" else phase: c for phase, c in PHASES.items()})
    return fig


def memory_split(records: Mapping[str, Record]) -> Figure:
    """Draw what a step holds, counted from its tensors, and the peak of the process beside it.

    Parameters
    ----------
    records
        Title of a panel to a record of memory, in bytes.

    Returns
    -------
    Figure
        Megabytes (10**6 bytes); the diamond is the most that the process held during the step.
    """
    chosen = {title: record["bytes"] for title, record in records.items()}
    fig, axes = _panels(chosen)
    for axis, rows in zip(axes, chosen.values(), strict=True):
        for place, row in enumerate(rows.values()):
            _stack(axis, place, [(row[name] / 1e6, PARTS[part]) for name, part in _HELD.items()])
            axis.plot(row["peak"] / 1e6, place, "D", color=AXIS, markersize=5)
        axis.set(xlabel="MB", xlim=(0, 1.04 * axis.get_xlim()[1]))
    peak = Line2D([], [], color=AXIS, marker="D", linestyle="", label="peak of the process")
    _swatches(fig, PARTS, peak, columns=3)
    return fig


def shares(panels: Mapping[str, Mapping[str, tuple[float, Sequence[float]]]], xlabel: str) -> Figure:
    """Draw predicted against measured shares, a row for each variant and a panel for each setting.

    Parameters
    ----------
    panels
        Title to rows; a row's name to the predicted share and the quartiles of the measured one.
    xlabel
        What they are shares of.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    size = (3.5 * columns, 2.6 * lines + 0.5)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        for place, (predicted, measured) in enumerate(rows.values()):
            axis.plot([predicted] * 2, [place - 0.33, place + 0.33], color=OKABE_ITO["blue"], linewidth=2.4)
            _dot(axis, measured, place, FORMS["fast"])
        _name_rows(axis, title, list(rows))
    axes[0, 0].set_xlim(left=0)  # all share it; only now, or later panels would not widen it
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    handles = [
        Line2D([], [], color=OKABE_ITO["blue"], marker="|", markersize=12, linestyle="", markeredgewidth=2.4),
        Line2D([], [], color=ROLES["lora"], marker="o", linestyle="-", linewidth=1.4),
    ]
    fig.legend(
        handles, ["predicted", "measured, with quartiles"], loc="outside lower center", ncols=2, fontsize=9.5
    )
    return fig


def own_costs(records: Mapping[str, Record], variants: Iterable[str] = FORMS) -> Figure:
    """Draw what adapters themselves cost, as a share of what PEFT's cost: a row for each setting.

    Parameters
    ----------
    records
        Name of a row to a record of times.
    variants
        Keys of `FORMS`. A form that a record lacks, or whose share was lost in noise, is left out there.

    Returns
    -------
    Figure
        0 is a frozen model without adapters, 1 is PEFT; lines span the quartiles.
    """
    fig, axis = plt.subplots(figsize=(6.8, 0.42 * len(records) + 1.3))
    drawn = [name for name in FORMS if name in set(variants) - {"peft"}]
    for place, record in enumerate(records.values()):
        for step, name in enumerate(drawn):
            share = record["summary"].get(name, {}).get("own_to_peft")
            if share:
                height = place + 0.34 * (step / max(1, len(drawn) - 1) - 0.5)
                _dot(axis, share, height, FORMS[name])
    for position in (0, 1):
        axis.axvline(position, color=AXIS, linewidth=1, linestyle=":")
    _name_rows(axis, "", list(records))
    axis.set_xlabel("own cost: 0 the frozen model, 1 PEFT")
    fig.legend(handles=_marks(drawn), loc="outside lower center", ncols=len(drawn), fontsize=9.5)
    return fig


def phase_costs(
    records: Sequence[Record],
    variants: Sequence[str],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    tokens: Sequence[float],
) -> Figure:
    """Draw what forms of one layer add to the frozen pass, in forward and backward, against tokens.

    Parameters
    ----------
    records
        Records of times of one layer, with different numbers of tokens.
    variants
        Keys of `FORMS`.
    curves
        ``"forward"`` and ``"backward"`` to the arithmetic of some of the variants: the share that their
        own operations are of the frozen pass's, at each of ``tokens``.
    tokens
        Where the curves are known.

    Returns
    -------
    Figure
        Both axes are on log scales; a form that adds nothing measurable is left out there.
    """
    fig, axes = plt.subplots(1, 2, figsize=(6.8, 3.5), sharey=True, sharex=True)
    for axis, phase in zip(axes, ("forward", "backward"), strict=True):
        for name, values in curves[phase].items():
            axis.plot(tokens, [100 * v for v in values], "--", color=FORMS[name][0], linewidth=1.2)
        for record in records:
            floor = np.asarray(record["seconds"]["floor"][phase])
            count = record["setting"]["batch"] * record["setting"]["length"]
            for name in variants:
                own = 100 * (np.asarray(record["seconds"][name][phase]) / floor - 1)
                low, middle, high = np.percentile(own, (25, 50, 75))
                if middle > 0:
                    colour, marker, filled = FORMS[name]
                    face = colour if filled else "none"
                    axis.plot([count] * 2, [max(low, 0.1), high], color=colour, linewidth=1.4)
                    axis.plot(count, middle, marker, color=colour, markerfacecolor=face, markersize=7)
        axis.set(title=phase, xscale="log", yscale="log", xlabel="tokens in the batch")
    axes[0].set_ylabel("% more than the frozen pass")
    arithmetic = Line2D([], [], color=AXIS, linestyle="--", linewidth=1.2, label="arithmetic alone")
    handles = [*_marks(variants), arithmetic]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9.5)
    return fig


def _panels(chosen: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Sequence[Axes]]:
    counts = [len(rows) for rows in chosen.values()]
    size = (6.8, 0.3 * sum(counts) + 0.95 * len(counts) + 0.4)
    fig, axes = plt.subplots(len(counts), 1, figsize=size, height_ratios=counts, squeeze=False)
    for axis, (title, rows) in zip(axes[:, 0], chosen.items(), strict=True):
        _name_rows(axis, title, list(rows))
    return fig, list(axes[:, 0])


def _stack(axis: Axes, place: int, parts: Iterable[tuple[float, str]]) -> float:
    """Draw widths with their colours end to end in one row; returns where they end."""
    end = 0.0
    for width, colour in parts:
        axis.barh(place, width, left=end, height=0.62, color=colour)
        end += width
    return end


def _name_rows(axis: Axes, title: str, names: list[str]) -> None:
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="normal", pad=5)
    axis.set_yticks(range(len(names)), names, fontsize=9.5)
    axis.set_ylim(len(names) - 0.4, -0.6)  # the first row is the uppermost
    axis.grid(axis="y", visible=False)


def _dot(axis: Axes, quartiles: Sequence[float], y: float, form: tuple[str, str, bool]) -> None:
    (low, middle, high), (colour, marker, filled) = quartiles, form
    axis.plot([low, high], [y, y], color=colour, linewidth=1.4)
    axis.plot(middle, y, marker, color=colour, markerfacecolor=colour if filled else "none", markersize=6)


def _marks(names: Iterable[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=c, marker=m, markerfacecolor=c if filled else "none", linestyle="", label=name)
        for name, (c, m, filled) in ((name, FORMS[name]) for name in names)
    ]


def _swatches(fig: Figure, colours: Mapping[str, str], *more: Line2D, columns: int | None = None) -> None:
    swatches = [Rectangle((0, 0), 1, 1, color=c, label=name) for name, c in colours.items()]
    handles = [*swatches, *more]
    columns = columns or len(handles)
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1, fontsize=9.5)
