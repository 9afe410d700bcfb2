"""The rank under a slider: a matrix's best approximation of each, and the rate that each rank likes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    Picture,
    drawing,
    heat,
    line,
    mark,
    words,
)
from lora_tutorial.training.records import best_rate

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike, NDArray

__all__ = ["good_rates", "rank_errors", "rank_slider", "rate_transfer"]

_CORNER = 36  # side of the corner that is drawn, in entries; with more a figure gets too large


def rank_errors(matrix: ArrayLike) -> list[float]:
    """The relative Frobenius error of the best approximation of each rank, from 0 to full.

    By Eckart and Young (1936) it is ``sqrt(s[r]**2 + s[r + 1]**2 + ...) / norm`` for singular values ``s``
    counted from 0.
    """
    energy = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False) ** 2
    tail = energy[::-1].cumsum()[::-1]  # tail[r]: what a matrix of rank r must leave
    return [*np.sqrt(tail / tail[0]).tolist(), 0.0]


def rank_slider(matrix: ArrayLike, name: str, r: int = 8) -> HTML:
    """Show the best rank-r approximation of a matrix under a slider: picture, error, parameters, bytes.

    The page that shows it needs no server and no library. It holds the errors of all ranks and, for the
    first 36 rows and columns, the singular vectors in 8 bits; JavaScript multiplies them again.

    Parameters
    ----------
    matrix
        Shape (out, in), at least 36 by 36.
    name
        What the matrix is, in a few words.
    r
        The rank at which the slider starts.

    Raises
    ------
    ValueError
        If the matrix is smaller, or has no rank ``r``.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or min(matrix.shape) < _CORNER:
        raise ValueError(
            f"rank_slider draws a matrix of at least {_CORNER} by {_CORNER}; got shape {matrix.shape}."
        )
    if not 1 <= r <= min(matrix.shape):
        raise ValueError(f"r = {r} is not between 1 and {min(matrix.shape)}, the ranks this matrix can have.")
    left, right, worth = _packed_factors(matrix)
    data = {
        "out": matrix.shape[0],
        "in": matrix.shape[1],
        "side": _CORNER,
        "error": [round(error, 4) for error in rank_errors(matrix)],
        "white": round(2.5 * float(matrix[:_CORNER, :_CORNER].std()), 4),
        "scale": [float(f"{value:.4g}") for value in worth],
        "left": base64.b64encode(left.tobytes()).decode(),
        "right": base64.b64encode(right.tobytes()).decode(),
    }
    stored = r * sum(matrix.shape)
    said = (
        f"Rank {r}: relative error {data['error'][r]:.3f}. {stored:,} parameters, {4 * stored:,} bytes in "
        f"fp32: {100 * stored / matrix.size:.1f}\u00a0% of the matrix"
        + ("." if stored < matrix.size else ", so the factors save nothing.")
    )
    units = np.array(data["scale"])[:, None, None]
    pairs = units * left[:, :, None].astype(np.float64) * right[:, None, :]  # (rank, side, side)
    images = {"the matrix": pairs.sum(0), f"at rank {r}": pairs[:r].sum(0)}
    picture = _rank_picture(images, data["white"], data["error"], matrix.size / sum(matrix.shape), r)
    texts = {"FULL": str(min(matrix.shape)), "START": str(r), "NAME": name, "SIDE": str(_CORNER)}
    return touch("rank_slider", data, picture, said, **texts)


def _rank_picture(
    images: dict[str, NDArray[np.float64]], white: float, error: list[float], even: float, r: int
) -> Picture:
    """The corner of the matrix, that of its approximation, and the error at each rank with a dot at r."""
    full, marks = len(error) - 1, []
    for place, (told, image) in enumerate(images.items()):
        size = {"x": 1 + 152 * place, "y": 1, "width": 140, "height": 140, "image_rendering": "pixelated"}
        part = ("whole", "rank")[place]
        marks += [
            mark("image", data_part=part, href=heat(image, white), **size),
            words(1 + 152 * place, 160, told),
        ]

    points = [(326 + 182 * rank / full, 141 - 129 * height) for rank, height in enumerate(error)]
    curve = "M" + "L".join(
        f"{across:.1f} {down:.1f}" for across, down in points[:: max(1, full // 96)] + points[-1:]
    )
    middle = 326 + 182 * even / full
    marks += [
        mark("path", d="M326 8V141H510", fill="none", stroke=GREY),
        line(middle, 8, middle, 141, stroke_dasharray="2 3"),
        mark("path", d=curve, data_part="curve", fill="none", stroke=BLUE, stroke_width=2),
        mark("circle", data_part="dot", cx=points[r][0], cy=points[r][1], r=5, fill=ORANGE),
        words(321, 17, "1", text_anchor="end"),
        words(321, 145, "0", text_anchor="end"),
        words(326, 159, "0"),
        words(middle, 159, f"{round(even, 1):g}", text_anchor="middle"),
        words(508, 159, str(full), text_anchor="end"),
        words(334, 134, "error by rank"),
    ]
    alt = (
        f"A corner of the matrix beside the same corner at rank {r}, and the relative error of each rank, "
        f"from 1 at rank 0 to 0 at rank {full}, with a dot at rank {r}."
    )
    return Picture(drawing(512, 166, *marks), alt)


def _packed_factors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The corner's left and right singular vectors as signed bytes, one row a pair, and a pair's unit."""
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    rows, columns = U[:_CORNER].T, Vh[:, :_CORNER]  # (rank, side) each
    # An SVD is unique up to one sign a pair: the largest entry of each row is made positive, so that every
    # machine writes the same page.
    sign = np.sign(np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1))  # (rank, 1)
    tops = [np.maximum(np.abs(part).max(1, keepdims=True), 1e-12) for part in (rows, columns)]
    left, right = (
        np.rint(part * sign / top * 127).astype(np.int8)
        for part, top in zip((rows, columns), tops, strict=True)
    )
    return left, right, S * tops[0][:, 0] * tops[1][:, 0] / 127**2


def good_rates(scores: Mapping[float, float], slack: float) -> tuple[float, float]:
    """The ends of the stretch of rates around the best one whose scores are at most ``slack`` below it."""
    rates, best = sorted(scores), best_rate(scores)
    assert best is not None  # some run learnt, or there is no curve to draw
    ends = []
    for step in (-1, 1):
        place = rates.index(best)
        while 0 <= place + step < len(rates) and scores[rates[place + step]] >= scores[best] - slack:
            place += step
        ends.append(rates[place])
    return ends[0], ends[1]


def rate_transfer(
    curves: Mapping[int, Mapping[float, float]], slack: float, at: int = 8, power: float = 1.0
) -> HTML:
    """Show each rank's score against its rate, converted to one rank by a rule that the reader moves.

    A rule says that rank r needs ``(r / at) ** power`` times the rate of rank ``at``. The figure divides each
    rank's rates by that: where the rule is right, the curves have their best stretch at one place.

    Parameters
    ----------
    curves
        Score, in points, by rate and rank: searches at one ``lora_alpha``. Three or four ranks.
    slack
        How far below its best score a rate counts as good, in points.
    at
        The rank whose rates stay.
    power
        The rule at first, in tenths from -0.5 to 1.

    Raises
    ------
    ValueError
        If there are not three or four ranks with two rates each, ``at`` is none of them, or the slider
        cannot stand at ``power``.
    """
    if not 3 <= len(curves) <= len(_COLOURS) or min(map(len, curves.values())) < 2 or at not in curves:
        shown = {r: len(found) for r, found in curves.items()}
        raise ValueError(
            f"Give two rates or more for each of three or four ranks, rank {at} too; got {shown}."
        )
    if not -0.5 <= power <= 1 or abs(10 * power - round(10 * power)) > 1e-9:
        raise ValueError(f"power = {power} is not a tenth from -0.5 to 1.")
    ranks = sorted(curves)
    data: dict[str, Any] = {
        "ranks": ranks,
        "at": at,
        "power": round(10 * power),
        "curves": [[[rate, round(curves[r][rate], 2)] for rate in sorted(curves[r])] for r in ranks],
        "good": [list(good_rates(curves[r], slack)) for r in ranks],
        "best": [best_rate(curves[r]) for r in ranks],
        "colours": _COLOURS[: len(ranks)],
    }
    moved = {r: (r / at) ** power for r in ranks}
    best = [data["best"][k] / moved[r] for k, r in enumerate(ranks)]
    low = max(data["good"][k][0] / moved[r] for k, r in enumerate(ranks))
    high = min(data["good"][k][1] / moved[r] for k, r in enumerate(ranks))
    common = f"from {_rate(low)} to {_rate(high)}" if low <= high * (1 + 1e-9) else "none"
    said = (
        f"Rank r gets (r / {at}) to the power of {_minus(f'{power:.1f}')} times the rate of rank {at}. "
        f"Best rates, converted to rank {at}: "
        + ", ".join(f"rank {r} {_rate(value)}" for r, value in zip(ranks, best, strict=True))
        + f", a factor of {max(best) / min(best):.1f} apart. Good at every rank: {common}."
    )
    texts = {"AT": str(at), "SLACK": f"{slack:g}"}
    return touch("rate_transfer", data, _rates_picture(data, moved), said, **texts)


_COLOURS = [BLUE, GREEN, SKY, ORANGE]


def _rate(value: float) -> str:
    """A learning rate in two digits, as ``2.5e-4``."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return _minus(f"{digits}e{int(exponent)}")


def _minus(number: str) -> str:
    return number.replace("-", "\u2212")


def _rates_picture(data: dict[str, Any], moved: Mapping[int, float]) -> Picture:
    """The curves at the first rule; a thick stroke is a rank's good stretch, a ring its best rate."""
    scores = [score for curve in data["curves"] for _, score in curve]
    low, high = math.floor(min(scores)), math.ceil(max(scores))
    rates = [rate for curve in data["curves"] for rate, _ in curve]
    most = max(r / data["at"] for r in data["ranks"])
    least = min(r / data["at"] for r in data["ranks"])
    ends = math.log10(min(rates) / most), math.log10(max(rates) / least)

    def x(rate: float) -> float:
        return 40 + 390 * (math.log10(rate) - ends[0]) / (ends[1] - ends[0])

    def y(score: float) -> float:
        return 180 - 165 * (score - low) / (high - low)

    marks, told = [], []
    for k, r in enumerate(data["ranks"]):
        points = [(rate / moved[r], score) for rate, score in data["curves"][k]]
        good = [p for p in points if data["good"][k][0] <= p[0] * moved[r] * (1 + 1e-9)]
        good = [p for p in good if p[0] * moved[r] <= data["good"][k][1] * (1 + 1e-9)]
        for part, stretch, width in (("curve", points, 1.5), ("good", good, 5)):
            path = "M" + "L".join(f"{x(rate):.2f} {y(score):.2f}" for rate, score in stretch)
            if len(stretch) > 1:
                look = {"fill": "none", "stroke": _COLOURS[k], "stroke_width": width}
                marks.append(mark("path", d=path, data_part=f"{part} {r}", stroke_linecap="round", **look))
        place, top = next(p for p in points if abs(p[0] * moved[r] / data["best"][k] - 1) < 1e-9)
        ring = {"cx": x(place), "cy": y(top), "r": 5.5, "fill": "none", "stroke": _COLOURS[k]}
        marks.append(mark("circle", data_part=f"best {r}", stroke_width=2, **ring))
        marks.append(words(44 + 100 * k, 212, f"rank {r}"))
        marks.append(line(44 + 100 * k, 218, 90 + 100 * k, 218, stroke=_COLOURS[k], stroke_width=3))
        told.append(f"rank {r} at {_rate(place)}")
    for power in range(math.ceil(ends[0]), math.floor(ends[1]) + 1):
        marks.append(words(x(10.0**power), 196, f"1e\u2212{-power}", text_anchor="middle", font_size=12))
    for score in (low, high):
        marks.append(words(34, y(score) + 4, str(score), text_anchor="end", font_size=12))
    marks.append(mark("path", d="M40 10V182H436", fill="none", stroke=GREY))
    alt = f"Score against the converted rate, a curve for each rank; the best: {', '.join(told)}."
    return Picture(drawing(440, 222, *marks), alt)
