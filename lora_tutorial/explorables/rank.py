"""The rank of a matrix under a slider: its best approximation of each rank, drawn again in the browser."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import numpy as np

from lora_tutorial.explorables.frame import template

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike

__all__ = ["rank_errors", "rank_slider"]

_CORNER = 64  # side of the corner that is drawn, in entries


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
    first 64 rows and columns, the singular vectors in 8 bits; JavaScript multiplies them again.

    Parameters
    ----------
    matrix
        Shape (out, in), at least 64 by 64.
    name
        What the matrix is, in a few words.
    r
        The rank at which the slider starts.

    Raises
    ------
    ValueError
        If the matrix is smaller, or has no rank ``r``.
    """
    from IPython.display import HTML

    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or min(matrix.shape) < _CORNER:
        raise ValueError(f"rank_slider draws a matrix of at least 64 by 64; got shape {matrix.shape}.")
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
    page = template("rank_slider").replace("@DATA@", json.dumps(data, separators=(",", ":")))
    page = page.replace("@FULL@", str(min(matrix.shape))).replace("@START@", str(r)).replace("@NAME@", name)
    return HTML(page)


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
