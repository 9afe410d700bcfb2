"""One weight small enough to see: an adapter as arithmetic, and what four variants do to a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import (
    FROZEN,
    GREY,
    INK,
    ORANGE,
    Picture,
    digits,
    drawing,
    line,
    mark,
    tint,
    words,
)
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.variants import PissaLinear

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike, NDArray

__all__ = ["adapter_arithmetic", "variant_ellipses"]

_LARGEST = 6  # rows or columns that fit beside each other
RANKS = [1, 2, 4, 8, 16, 32, 64]
_MOVED = (0.6, -0.45)  # how far B has gone in the picture of four variants


def adapter_arithmetic(W: ArrayLike, A: ArrayLike, B: ArrayLike, alpha: float = 4) -> HTML:
    """Show W + (alpha / r) B A in cells, while a reader changes A, B, alpha and r.

    It opens with B at zero, as an adapter does; a button fills in ``B``.

    Parameters
    ----------
    W, A, B
        Shapes (out, in), (r, in) and (out, r), no side above 6.
    alpha
        Where the slider stands at first, 0.5 to 8.

    Raises
    ------
    ValueError
        If the shapes do not fit together, a number is not finite, or ``alpha`` is outside.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (W, A, B)]
    shapes = [part.shape for part in parts]
    fits = all(part.ndim == 2 and min(part.shape) > 0 and max(part.shape) <= _LARGEST for part in parts)
    if not fits or shapes[1:] != [(len(parts[1]), shapes[0][1]), (shapes[0][0], len(parts[1]))]:
        raise ValueError(
            "adapter_arithmetic needs W (out, in), A (r, in) and B (out, r) with sides of at most "
            f"{_LARGEST}; got {', '.join(map(str, shapes))}."
        )
    if not all(np.isfinite(part).all() for part in parts) or not 0.5 <= alpha <= 8:
        raise ValueError(
            f"adapter_arithmetic needs finite numbers and an alpha from 0.5 to 8; got alpha {alpha}."
        )
    data = {name: part.tolist() for name, part in zip("WAB", parts, strict=True)}
    r = len(parts[1])
    update = (alpha / r) * parts[2] @ parts[1]
    said = (
        "An adapter starts with B at zero, and the sum is W, whatever A and α are. Here B is as after some "
        f"training: with α = {alpha:g} and r = {r} the scale s is {digits(alpha / r, 3)}, and the update "
        f"changes {(np.abs(update) > 1e-12).sum()} of {update.size} entries, by "
        f"{digits(float(np.abs(update).max()), 3)} at most."
    )
    return touch("adapter_arithmetic", {**data, "alpha": alpha}, _sum_picture(parts, update, alpha / r), said)


def _sum_picture(parts: list[NDArray[np.float64]], update: NDArray[np.float64], scaling: float) -> Picture:
    """W, B and A in one row, below them the update and the sum, a cell for each number."""
    W, A, B = parts
    top, right, marks = float(np.abs(W).max()), 0.0, []

    def cells(name: str, title: str, matrix: NDArray[np.float64], x: float, y: float) -> float:
        marks.append(words(x, y + 14, title, font_weight="bold"))
        for (i, j), value in np.ndenumerate(matrix):
            left, upper = x + 36 * j, y + 22 + 26 * i
            moved = name == "sum" and abs(update[i, j]) > 1e-12
            edge = {"stroke": ORANGE, "stroke_width": 2} if moved else {"stroke": GREY, "stroke_opacity": 0.4}
            told = digits(round(float(value), 2), 6)
            size = min(13.0, 60 / len(told))
            marks.append(
                mark("rect", x=left + 1, y=upper + 1, width=33, height=23, fill=tint(value, top), **edge)
            )
            place: dict[str, Any] = {
                "fill": INK,
                "x": left + 17.5,
                "y": upper + 17,
                "text_anchor": "middle",
                "font_size": size,
            }
            marks.append(words(text=told, data_part=name, **place))
        return x + 36 * matrix.shape[1]

    middle, below = 30 + 13 * len(W), 40 + 26 * max(len(W), len(A))
    for name, matrix, before in (("W", W, ""), ("B", B, f"+ {digits(scaling, 3)} ·"), ("A", A, "·")):
        start = right + (12 + 8 * len(before) if before else 1)
        marks.append(words(right + 6, middle, before, font_size=17))
        title = "W, frozen" if name == "W" else name
        right = cells(name, title, matrix, start, 0)
    half = cells("update", "the update, s B A", update, 1, below)
    last = cells("sum", "the sum, W + s B A", W + update, half + 40, below)
    alt = "The numbers of W, B and A in coloured cells, and below them those of the update and of the sum."
    return Picture(drawing(round(max(right, last)) + 2, below + 26 * len(W) + 26, *marks), alt)


def variant_ellipses(W: ArrayLike, A: ArrayLike, alpha: float = 4, r: int = 4) -> HTML:
    """Show a weight of two by two as the ellipse it makes of the unit circle, under four variants of LoRA.

    The reader moves B away from its start. Drawn is one of the adapter's r directions, the others being zero
    here, so the rank only sets the scale. PiSSA's direction is the weight's first singular pair.

    Parameters
    ----------
    W, A
        Shapes (2, 2) and (1, 2). PiSSA starts from W and does not use ``A``.
    alpha, r
        Where the sliders stand at first: 1 to 16, and a power of two up to 64.

    Raises
    ------
    ValueError
        If the shapes are others, a number is not finite, a row of W is zero, its two singular values are
        equal, or a slider cannot stand there.
    """
    weight, row = (torch.tensor(np.asarray(part, dtype=np.float64)) for part in (W, A))
    if weight.shape != (2, 2) or row.shape != (1, 2) or not torch.isfinite(torch.cat([weight, row])).all():
        raise ValueError(
            "variant_ellipses needs a finite W of shape (2, 2) and A of shape (1, 2); got "
            f"{tuple(weight.shape)} and {tuple(row.shape)}."
        )
    first, second = torch.linalg.svdvals(weight).tolist()
    if not weight.norm(dim=1).all() or first - second < 1e-3 * first:
        raise ValueError(
            "variant_ellipses needs a W whose rows are not zero and whose singular values differ; got "
            f"{weight.tolist()}."
        )
    if alpha not in range(1, 17) or r not in RANKS:
        raise ValueError(f"alpha is a whole number from 1 to 16 and r one of {RANKS}; got {alpha} and {r}.")
    linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    linear.weight = nn.Parameter(weight)
    start = PissaLinear.from_linear(linear, LoraConfig(r=1, lora_alpha=1))  # divided by sqrt(s) in the page
    sign = start.lora_B[0].sign()  # an SVD leaves it open
    data: dict[str, Any] = {
        "W": weight.tolist(),
        "A": row[0].tolist(),
        "pissa": {"B": _rounded(sign * start.lora_B[:, 0]), "A": _rounded(sign * start.lora_A[0])},
        "ranks": RANKS,
        "start": {"alpha": alpha, "r": r},
    }
    said = (
        "At the start all four make the same ellipse of the unit circle, that of W. Here B has moved by "
        f"({', '.join(digits(b, 2) for b in _MOVED)}), with α = {alpha:g} and r = {r}. LoRA adds a matrix "
        "of rank 1 and rsLoRA one √r times as large; DoRA keeps the lengths of the rows, and with them the "
        "box around the ellipse; PiSSA changes what W does to the direction it stretches most."
    )
    found = _adapted(weight.numpy(), row[0].numpy(), data["pissa"], alpha, r)
    return touch("variant_ellipses", data, _ellipses_picture(weight.numpy(), found), said)


def _adapted(
    W: NDArray[np.float64], A: NDArray[np.float64], pissa: dict[str, list[float]], alpha: float, r: int
) -> dict[str, tuple[float, NDArray[np.float64], NDArray[np.float64]]]:
    """Each variant's scale, frozen weight and adapted weight, once B has moved by ``_MOVED``."""
    moved, s, length = np.array(_MOVED), alpha / r, np.linalg.norm
    lora, rslora = W + s * np.outer(moved, A), W + alpha / np.sqrt(r) * np.outer(moved, A)
    dora = lora * length(W, axis=1, keepdims=True) / length(lora, axis=1, keepdims=True)
    start_B, start_A = (np.array(pissa[name]) for name in "BA")
    rest = W - np.outer(start_B, start_A)
    whole = rest + s * np.outer(start_B / np.sqrt(s) + moved, start_A / np.sqrt(s))
    return {
        "LoRA": (s, W, lora),
        "rsLoRA": (alpha / np.sqrt(r), W, rslora),
        "DoRA": (s, W, dora),
        "PiSSA": (s, rest, whole),
    }


def _ellipses_picture(
    W: NDArray[np.float64], found: dict[str, tuple[float, NDArray[np.float64], NDArray[np.float64]]]
) -> Picture:
    """Four panels: what W makes of the unit circle, in its box, and what each adapted weight makes of it."""
    angle = np.linspace(0, 2 * np.pi, 73)
    circle, box = np.array([np.cos(angle), np.sin(angle)]), np.linalg.norm(W, axis=1)
    reach = np.max([np.linalg.norm(weight, axis=1) for _, _, weight in found.values()] + [box], axis=0)
    scale = 96 / reach[0]  # the widest of the ellipses fits its panel
    half, marks = scale * reach[1] + 8, []
    for place, (name, (s, frozen, weight)) in enumerate(found.items()):
        x, y = 110 + 222 * (place % 2), 26 + half + (2 * half + 34) * (place // 2)

        def ring(matrix: NDArray[np.float64], x: float = x, y: float = y, **more: Any) -> str:
            points = (matrix @ circle).T * [scale, -scale] + [x, y]
            path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
            return mark("path", d=path, **{"fill": "none"} | more)

        marks.append(words(x - 105, y - half - 8, f"{name}, s = {digits(s, 2)}", font_weight="bold"))
        marks += [
            line(x - 105, y, x + 105, y, stroke_opacity=0.5),
            line(x, y - half, x, y + half, stroke_opacity=0.5),
        ]
        corner = {"x": x - scale * box[0], "y": y - scale * box[1]}
        sides = {"width": 2 * scale * box[0], "height": 2 * scale * box[1]}
        marks.append(mark("rect", **corner, **sides, fill="none", stroke=FROZEN, stroke_dasharray="3 3"))
        marks.append(ring(W, stroke=FROZEN, stroke_width=2))
        if name == "PiSSA":
            marks.append(ring(frozen, stroke="#2a8fd0", stroke_width=3))
        now: dict[str, Any] = {"fill": ORANGE, "fill_opacity": 0.15, "stroke": ORANGE, "stroke_width": 2.5}
        marks.append(ring(weight, data_part=name, **now))
        tip = {"cx": x + scale * weight[0, 0], "cy": y - scale * weight[1, 0]}
        marks.append(mark("circle", **tip, r=5, fill=ORANGE))
    alt = (
        "Four ellipses, one for each variant, over that of W: LoRA's and rsLoRA's leave its box, DoRA's "
        "stays in it, PiSSA's has a flat frozen rest."
    )
    return Picture(drawing(440, round(4 * half) + 62, *marks), alt)


def _rounded(values: torch.Tensor) -> list[float]:
    """Six digits, which every machine finds alike."""
    return [round(value, 6) for value in values.tolist()]
