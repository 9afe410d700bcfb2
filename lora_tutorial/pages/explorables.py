"""Figures to touch: the rank of a matrix, the memory of a run, four bits, merging. JavaScript, no library.

Each is one piece of HTML that asks for nothing, works by keyboard, and says the same without scripts.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora_tutorial.quant.nf4 import (
    bits_per_parameter,
    dequantize_4bit,
    fp4_levels,
    int4_levels,
    nf4_levels,
    quantize_4bit,
)

if TYPE_CHECKING:
    from IPython.display import HTML
    from numpy.typing import ArrayLike

__all__ = ["four_bits", "memory_bill", "merge_rounding", "rank_errors", "rank_slider", "step_memory"]

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


#: Bytes of a frozen weight, and of what an optimiser keeps for a trained one (float32 numbers).
FROZEN_BYTES = {"fp32": 4.0, "bf16": 2.0, "NF4": bits_per_parameter(double=True) / 8}
STATE_BYTES = {"AdamW": 8, "SGD with momentum": 4, "SGD": 0}
#: Bits after the leading one, and the exponent of the smallest normal number.
FORMATS = {
    name: {"digits": -round(np.log2(info.eps)), "lowest": round(np.log2(info.tiny))}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
    for info in (torch.finfo(dtype),)
}


def step_memory(total: int, share: float, frozen: str = "fp32", optimizer: str = "AdamW") -> dict[str, float]:
    """Bytes that a training step holds before its first activation.

    Parameters
    ----------
    total, share
        Parameters, and which share of them trains, 0 to 1.
    frozen, optimizer
        Keys of ``FROZEN_BYTES`` and ``STATE_BYTES``.

    Returns
    -------
    dict
        ``frozen``, ``trained`` (4 bytes each), ``gradients`` (4 each) and ``state``.
    """
    trained = round(total * share)
    return {
        "frozen": (total - trained) * FROZEN_BYTES[frozen],
        "trained": 4 * trained,
        "gradients": 4 * trained,
        "state": STATE_BYTES[optimizer] * trained,
    }


def memory_bill(sizes: Mapping[str, int], share: float = 0.01) -> HTML:
    """Show what training holds in memory, for a model, a precision, an optimiser and a share that trains.

    Parameters
    ----------
    sizes
        Number of parameters by the model's name, in the order of the list.
    share
        The share that trains at first, 0.0001 to 1.

    Raises
    ------
    ValueError
        If there is no model, or the share is outside what the slider reaches.
    """
    if not sizes or not 1e-4 <= share <= 1:
        raise ValueError(
            f"memory_bill needs a model and a share from 0.0001 to 1; got {dict(sizes)}, {share}."
        )
    model = next(iter(sizes))
    start = {"model": model, "precision": "fp32", "optimizer": "AdamW", "share": round(10 * np.log10(share))}
    data = {"sizes": dict(sizes), "bytes": FROZEN_BYTES, "state": STATE_BYTES, "start": start}
    gigabytes = sum(step_memory(sizes[model], share).values()) / 1e9
    static = f"{model}, {100 * share:g} % of it trained with AdamW on weights in fp32: {gigabytes:.3g} GB."
    return _touch("memory_bill", data, STATIC=static)


def four_bits(block: ArrayLike, name: str) -> HTML:
    """Show what becomes of a number in NF4, FP4 and 4-bit integers, in a block of weights that share a scale.

    Parameters
    ----------
    block
        The weights, (n,), finite; the first is the one that a reader changes.
    name
        What the block is, in a few words.

    Raises
    ------
    ValueError
        If there are fewer than two weights, or one is not finite.
    """
    weights = np.asarray(block, dtype=np.float32)
    if weights.ndim != 1 or len(weights) < 2 or not np.isfinite(weights).all():
        raise ValueError(f"four_bits shows a row of at least two finite weights; got {weights.shape}.")
    tables = {"NF4": nf4_levels(), "FP4": fp4_levels(), "int4": int4_levels()}
    size = 1 << (len(weights) - 1).bit_length()  # one block holds them all
    after = {
        key: float(dequantize_4bit(quantize_4bit(torch.from_numpy(weights), levels, size))[0])
        for key, levels in tables.items()
    }
    static = f"{weights[0]:.4g} becomes " + ", ".join(f"{after[key]:.4g} in {key}" for key in after) + "."
    levels = {key: value.tolist() for key, value in tables.items()}
    data = {"block": weights.tolist(), "tables": levels}
    return _touch("four_bits", data, STATIC=static, NAME=name, COUNT=str(len(weights)))


def merge_rounding(weight: ArrayLike, update: ArrayLike, name: str) -> HTML:
    """Show how much of an update is lost when it is added to weights in fp32, bf16 or fp16.

    Parameters
    ----------
    weight, update
        As many numbers each, at most 1024; the update's own size does not matter, a slider sets it.
    name
        What they are, in a few words.

    Raises
    ------
    ValueError
        If the shapes differ, there are more numbers, or the update is zero somewhere.
    """
    W, D = (np.asarray(part, dtype=np.float32).ravel() for part in (weight, update))
    if W.shape != D.shape or not 0 < len(W) <= 1024 or not (np.isfinite(W) & np.isfinite(D) & (D != 0)).all():
        raise ValueError(
            "merge_rounding needs 1 to 1024 finite weights and as many updates, none of them zero; got "
            f"{W.shape} and {D.shape}."
        )
    data = {"weight": W.tolist(), "update": D.tolist(), "formats": FORMATS}
    static = "An update much smaller than its weight is rounded away when both are added in a short format."
    return _touch("merge_rounding", data, STATIC=static, NAME=name)


def _touch(kind: str, data: dict[str, Any], **texts: str) -> HTML:
    """A figure from its template beside this module: the data as JSON, the texts escaped."""
    from IPython.display import HTML

    page = Path(__file__).with_name(f"{kind}.html").read_text(encoding="utf-8")
    page = page.replace("@DATA@", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    for mark, text in texts.items():
        page = page.replace(f"@{mark}@", html.escape(text))
    return HTML(f'<figure class="touch" data-kind="{kind}">\n{_STYLE}\n{page}</figure>')


_STYLE = """<style>
.touch { margin: 1rem 0; max-width: 44rem; color: inherit; }
.touch-controls { display: flex; flex-wrap: wrap; gap: 0.8rem 1.5rem; }
.touch-controls label { flex: 1 1 9rem; margin: 0; font-weight: 600; font-size: 0.9rem; }
.touch :is(select, input) { display: block; width: 100%; margin-top: 0.25rem; font: inherit; font-weight: 400;
  color: inherit; accent-color: #D55E00; min-height: 1.9rem; }
.touch :is(select, input[type="text"]) { padding: 0.15rem 0.4rem; background: transparent;
  border: 1px solid #7a7f87; border-radius: 4px; }
.touch option { color: #1b1f24; background: #fff; }
.touch output { display: block; padding: 0; min-height: 3.2em; font-variant-numeric: tabular-nums; }
.touch figcaption { font: inherit; font-size: 0.85rem; text-align: left; color: inherit; }
.touch-bar { display: flex; height: 1.8rem; margin: 1rem 0 0.6rem; border: 1px solid #7a7f87;
  border-radius: 4px; }
.touch-bar [data-part="frozen"] { background: #8a8d92; }
.touch-bar [data-part="trained"] { background: #D55E00; }
.touch-bar [data-part="gradients"] { background: #56B4E9; }
.touch-bar [data-part="state"] { background: #009E73; }
.touch-lines { margin: 0.8rem 0 0.4rem; }
.touch-lines div { display: flex; gap: 0.6rem; align-items: center; }
.touch-lines b { width: 2.8rem; font-size: 0.85rem; }
.touch-lines span { position: relative; flex: 1; height: 2rem; border-bottom: 1px solid #7a7f87; }
.touch-lines i { position: absolute; bottom: 0; width: 2px; height: 0.8rem; margin-left: -1px;
  background: #8a8d92; }
.touch-lines i.got { width: 4px; height: 1.4rem; margin-left: -2px; background: #D55E00; }
.touch-lines i.dot { bottom: 1.2rem; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  background: #0072B2; }
.touch-grid { display: grid; grid-template-columns: repeat(32, 1fr); gap: 1px; max-width: 26rem;
  margin: 1rem 0 0.6rem; }
.touch-grid i { aspect-ratio: 1; background: #D55E00; }
</style>"""

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
