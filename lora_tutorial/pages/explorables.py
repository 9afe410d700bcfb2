"""One interactive figure: the best rank-r approximation of a matrix, for every r. JavaScript and SVG only."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import numpy as np

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
    page = _PAGE.replace("@DATA@", json.dumps(data, separators=(",", ":")))
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


_PAGE = """<figure class="rank-slider" id="rank-slider">
<style>
.rank-slider { margin: 1rem 0; max-width: 44rem; color: inherit; }
.rank-slider .row { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.rank-slider .row > div { flex: 1 1 13rem; min-width: 0; }
.rank-slider .row > div.pictures { display: flex; gap: 0.75rem; flex: 1 1 17rem; }
.rank-slider .pictures > div { flex: 1 1 0; min-width: 0; font-size: 0.85rem; }
.rank-slider svg { width: 100%; height: auto; display: block; }
.rank-slider image { image-rendering: pixelated; }
.rank-slider text { fill: currentColor; font-size: 11px; }
.rank-slider label { display: block; font-weight: 600; margin-top: 0.75rem; }
.rank-slider input { width: 100%; margin: 0.5rem 0; accent-color: #D55E00; height: 1.6rem; }
.rank-slider output { display: block; font-variant-numeric: tabular-nums; min-height: 3.4em; }
.rank-slider figcaption { font: inherit; font-size: 0.85rem; text-align: left; opacity: 0.85; }
</style>
<div class="row">
<div class="pictures">
<div><svg viewBox="0 0 64 64" role="img" aria-label="Corner of the matrix itself">
<image width="64" height="64" data-part="whole"/></svg>the matrix</div>
<div><svg viewBox="0 0 64 64" role="img" aria-label="The same corner of the approximation">
<image width="64" height="64" data-part="rank"/></svg>at rank <span data-part="r"></span></div>
</div>
<div><svg viewBox="0 0 260 150" role="img" aria-label="Relative error against rank, falling from 1 to 0">
<g stroke="currentColor" fill="none"><path d="M30 8V124H252" stroke-width="1"/>
<path data-part="even" stroke-dasharray="2 3" stroke-width="1"/>
<path data-part="curve" stroke="#0072B2" stroke-width="2"/></g>
<text x="26" y="12" text-anchor="end">1</text><text x="26" y="127" text-anchor="end">0</text>
<text data-part="half" y="139" text-anchor="middle"></text><text x="30" y="139">0</text>
<text x="252" y="139" text-anchor="end">@FULL@</text><text x="36" y="118" opacity="0.85">error by rank</text>
<circle data-part="dot" r="5" fill="#D55E00"/></svg></div>
</div>
<label for="rank-slider-input">Rank r (arrow keys move it by 1)</label>
<input id="rank-slider-input" type="range" min="1" max="@FULL@" step="1" value="@START@">
<output for="rank-slider-input" aria-live="polite">This figure needs JavaScript. The picture below it
says the same.</output>
<figcaption>@NAME@. Left: its first 64 rows and columns; blue is negative, orange positive. Right: the dotted
line is the break-even rank.</figcaption>
</figure>
<script>
(() => {
  const root = document.getElementById("rank-slider"), d = @DATA@;
  const part = name => root.querySelector(`[data-part="${name}"]`);
  const bytes = text => Int8Array.from(atob(text), c => c.charCodeAt(0));
  const left = bytes(d.left), right = bytes(d.right), n = d.side, full = d.error.length - 1;
  const x = r => 30 + 222 * r / full, y = e => 124 - 116 * e, even = d.out * d.in / (d.out + d.in);
  const product = r => {
    const sum = new Float64Array(n * n);
    for (let k = 0; k < r; k++)
      for (let i = 0; i < n; i++) {
        const u = d.scale[k] * left[k * n + i];
        for (let j = 0; j < n; j++) sum[i * n + j] += u * right[k * n + j];
      }
    return sum;
  };
  const paint = (image, values) => {
    const canvas = document.createElement("canvas"), low = [0, 114, 178], high = [230, 159, 0];
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d"), pixels = context.createImageData(n, n);
    values.forEach((value, i) => {
      const t = Math.min(1, Math.abs(value) / d.white), to = value < 0 ? low : high;
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 245 + (to[c] - 245) * t;
      pixels.data[4 * i + 3] = 255;
    });
    context.putImageData(pixels, 0, 0);
    image.setAttribute("href", canvas.toDataURL());
  };
  const show = () => {
    const r = Number(input.value), stored = r * (d.out + d.in), whole = d.out * d.in;
    const number = value => value.toLocaleString("en-GB");
    const percent = value => (100 * value).toFixed(1) + "\u00a0%";
    const text = `Rank ${r}: relative error ${d.error[r].toFixed(3)}. ${number(stored)} parameters, ` +
      `${number(4 * stored)} bytes in fp32: ${percent(stored / whole)} of the matrix` +
      (r < even ? "." : ", so the factors save nothing.");
    output.textContent = text;
    input.setAttribute("aria-valuetext", `rank ${r}, error ${d.error[r].toFixed(2)}`);
    part("r").textContent = r;
    part("dot").setAttribute("cx", x(r));
    part("dot").setAttribute("cy", y(d.error[r]));
    paint(part("rank"), product(r));
  };
  const input = root.querySelector("input"), output = root.querySelector("output");
  const points = d.error.map((e, r) => `${x(r).toFixed(1)} ${y(e).toFixed(1)}`);
  part("curve").setAttribute("d", "M" + points.join("L"));
  part("even").setAttribute("d", `M${x(even)} 8V124`);
  part("half").setAttribute("x", x(even));
  part("half").textContent = Math.round(even * 10) / 10;
  paint(part("whole"), product(full));
  input.addEventListener("input", show);
  show();
})();
</script>"""
