"""One weight small enough to see: an adapter as arithmetic, and what four variants do to a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_tutorial.explorables.frame import touch

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike

__all__ = ["adapter_arithmetic"]

_LARGEST = 6  # rows or columns that fit beside each other


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
