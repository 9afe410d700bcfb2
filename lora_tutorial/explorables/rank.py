"""The rank of a matrix under a slider: its best approximation of each rank, drawn again in the browser."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import BLUE, GREY, ORANGE, Picture, drawing, heat, line, mark, words

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike, NDArray

__all__ = ["rank_errors", "rank_slider"]

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
