"""One weight small enough to see: an adapter as arithmetic, and what four variants do to a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from lora_tutorial.explorables.frame import touch
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.variants import PissaLinear

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike

__all__ = ["adapter_arithmetic", "variant_ellipses"]

_LARGEST = 6  # rows or columns that fit beside each other
RANKS = [1, 2, 4, 8, 16, 32, 64]


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
    static = (
        f"With B at zero the sum W + (α / r) B A is W, whatever A and α are. With α = {alpha:g} and "
        f"r = {len(parts[1])} the scale is {alpha / len(parts[1]):g}; doubling α doubles the update."
    )
    return touch("adapter_arithmetic", {**data, "alpha": alpha}, STATIC=static)


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
    data = {
        "W": weight.tolist(),
        "A": row[0].tolist(),
        "pissa": {"B": _rounded(sign * start.lora_B[:, 0]), "A": _rounded(sign * start.lora_A[0])},
        "ranks": RANKS,
        "start": {"alpha": alpha, "r": r},
    }
    static = (
        "At the start all four make the same ellipse of the unit circle, that of W. When B moves, LoRA adds "
        "a matrix of rank 1 and rsLoRA one √r times as large; DoRA keeps the lengths of the rows, and with "
        "them the box around the ellipse; PiSSA changes what W does to the direction it stretches most."
    )
    return touch("variant_ellipses", data, STATIC=static)


def _rounded(values: torch.Tensor) -> list[float]:
    """Six digits, which every machine finds alike."""
    return [round(value, 6) for value in values.tolist()]
