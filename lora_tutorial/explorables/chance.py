"""Draws of seeds, again and again: how often two equal methods seem far apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import FROZEN, ORANGE, Picture, digits, drawing, line, mark, words

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import NDArray

__all__ = ["draw_seeds", "seed_gaps"]

_SEEDS, _LARGEST_GAP = 20, 5.0  # as far as the sliders go
_DRAWS, _BINS = 2000, 61  # of the picture


def seed_gaps(
    draws: int, seeds: int, spread: float, gap: float = 0.0, rows_error: float = 0.0
) -> NDArray[np.float64]:
    """Compare two methods again and again, each by the mean score of its seeds.

    Parameters
    ----------
    draws, seeds
        How many comparisons, and seeds of each method in one.
    spread
        Standard deviation of one seed's score, in points.
    gap
        By how much the second method is better in truth.
    rows_error
        Standard error that the rows add to the difference; 0 if both methods are scored on the same rows
        and only these matter.

    Returns
    -------
    ndarray
        Shape (draws,): the second method's mean less the first's. The numbers repeat on every machine, and
        those of the figure in the page are the same.
    """
    normal = _normals(draws * (2 * seeds + 1)).reshape(draws, -1)
    first, second = normal[:, :seeds].mean(1), normal[:, seeds : 2 * seeds].mean(1)
    return gap + spread * (second - first) + rows_error * normal[:, -1]


def _normals(count: int) -> NDArray[np.float64]:
    """Normal numbers by Box and Muller, from the 32-bit generator Mulberry32 with seed 0."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**32 is meant
        state = np.arange(1, 2 * count + 1, dtype=np.uint32) * np.uint32(0x6D2B79F5)
        t = (state ^ state >> np.uint32(15)) * (state | np.uint32(1))
        t = (t + (t ^ t >> np.uint32(7)) * (t | np.uint32(61))) ^ t
    uniform = ((t ^ t >> np.uint32(14)) / 2.0**32).reshape(count, 2)
    return np.sqrt(-2 * np.log1p(-uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1])


def draw_seeds(
    measured: Mapping[str, tuple[Sequence[float], int | None]], seeds: int = 3, gap: float = 1.0
) -> HTML:
    """Show how often seeds alone, or seeds and rows, put two methods this far apart.

    Parameters
    ----------
    measured
        Name -> (the scores of several seeds in points, the number of rows they were measured on). With
        ``None`` for the rows, which suits a score that is no accuracy, the chance of the rows is left out.
    seeds, gap
        Where the sliders stand at first: seeds of each method, and the gap in points to look for.

    Raises
    ------
    ValueError
        If nothing is measured, a name has fewer than two different scores, or a slider cannot stand there.
    """
    if not measured or not 1 <= seeds <= _SEEDS or not 0.1 <= gap <= _LARGEST_GAP:
        raise ValueError(
            f"draw_seeds needs measured scores, 1 to {_SEEDS} seeds and a gap of 0.1 to {_LARGEST_GAP:g} "
            f"points; got {len(measured)} names, {seeds} and {gap}."
        )
    kinds = {name: _kind(name, *entry) for name, entry in measured.items()}
    name, kind = next(iter(kinds.items()))
    gaps = seed_gaps(_DRAWS, seeds, kind["spread"])
    said = (
        f"Two equal methods, {seeds} seeds each, with the spread of {name} ({kind['spread']:.2g} points): in "
        f"{100 * np.mean(np.abs(gaps) >= gap):.0f}\u00a0% of {_DRAWS:,} draws their means are at least "
        f"{gap:g} {'point' if gap == 1 else 'points'} apart."
    )
    data = {"measured": kinds, "start": {"seeds": seeds, "gap": gap}}
    return touch("draw_seeds", data, _gaps_picture(gaps, kind["spread"], gap), said)


def _gaps_picture(gaps: NDArray[np.float64], spread: float, gap: float) -> Picture:
    """How many draws found which difference, in orange as far from zero as ``gap`` or farther."""
    wide = np.ceil(10 * (3.2 * spread * np.sqrt(2) + 0.2)) / 10  # as the page's axis
    places = np.floor((gaps / wide + 1) * _BINS / 2).clip(0, _BINS - 1).astype(int)
    counts, size = np.bincount(places, minlength=_BINS), 438 / _BINS
    middles = ((2 * np.arange(_BINS) + 1) / _BINS - 1) * wide
    marks = [
        mark(
            "rect",
            data_part=str(count),
            x=1 + place * size,
            y=150 - 140 * count / counts.max(),
            width=size - 1,
            height=140 * count / counts.max(),
            fill=ORANGE if abs(middle) >= gap else FROZEN,
        )
        for place, (count, middle) in enumerate(zip(counts.tolist(), middles.tolist(), strict=True))
    ]
    marks.append(line(1, 150, 439, 150))
    for end in (-gap, gap):
        if gap < wide:
            marks.append(line(220 + 219 * end / wide, 4, 220 + 219 * end / wide, 150, stroke_dasharray="4 3"))
    told = digits(float(wide), 3)
    marks += [
        words(1, 168, f"\u2212{told}"),
        words(220, 168, "0 points", text_anchor="middle"),
        words(439, 168, f"+{told}", text_anchor="end"),
    ]
    share = np.mean(np.abs(gaps) >= gap)
    alt = (
        f"A histogram of {len(gaps):,} differences between two equal methods, from \u2212{told} to {told} "
        f"points; {100 * share:.0f}\u00a0% are at least {gap:g} from zero, in orange."
    )
    return Picture(drawing(440, 174, *marks), alt)


def _kind(name: str, scores: Sequence[float], rows: int | None) -> dict[str, float]:
    """The spread of seeds and the error that rows add to a difference, rounded: the same on every machine."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or not np.ptp(values):
        raise ValueError(f"{name}: a spread needs two or more scores that differ; got {list(scores)}.")
    if rows is not None and (rows < 1 or values.min() < 0 or values.max() > 100):
        raise ValueError(
            f"{name}: with rows the scores are accuracies, 0 to 100; got {list(scores)}, {rows}."
        )
    share = values.mean() / 100
    error = 0.0 if rows is None else 100 * np.sqrt(2 * share * (1 - share) / rows)
    spread = float(values.std(ddof=1))
    return {
        "count": len(values),
        "spread": round(spread, 4),
        "rows": rows or 0,
        "error": round(float(error), 4),
    }
