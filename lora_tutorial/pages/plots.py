"""Drawings, and the figures of cost and mathematics. They take numbers and arrays, never a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from lora_tutorial.pages.drawings import arrow, box, canvas
from lora_tutorial.pages.style import AXIS, CYCLE, OKABE_ITO, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PARTS",
    "architectures",
    "error_curves",
    "fused_rows",
    "grouped_heads",
    "lora_picture",
    "memory_bars",
    "spectra",
    "tied_weights",
    "token_strip",
]

# The four things a training step holds, in the order in which they are stacked.
PARTS = {
    "weights": ROLES["frozen"],
    "gradients": OKABE_ITO["sky"],
    "AdamW state": OKABE_ITO["blue"],
    "activations": OKABE_ITO["orange"],
}


def memory_bars(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Draw stacked bars of memory, one panel for each model.

    Parameters
    ----------
    panels
        Title to bars; a bar's name to bytes by part, whose names are keys of ``PARTS``.

    Returns
    -------
    Figure
        Each bar ends in its sum, in gigabytes (10**9 bytes).
    """
    rows = [len(bars) for bars in panels.values()]
    size = (6.4, 0.55 * sum(rows) + 0.95 * len(rows) + 0.3)
    fig, axes = plt.subplots(len(panels), 1, figsize=size, height_ratios=rows, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _stack(axis, title, bars)
    held = {part for bars in panels.values() for parts in bars.values() for part in parts}
    shown = {part: colour for part, colour in PARTS.items() if part in held}
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in shown.values()]
    fig.legend(
        handles, shown, loc="outside lower center", ncols=len(shown), handlelength=1, columnspacing=1.4
    )
    return fig


def _stack(axis: Axes, title: str, bars: Mapping[str, Mapping[str, float]]) -> None:
    widest = max(sum(parts.values()) for parts in bars.values()) / 1e9
    for place, parts in enumerate(bars.values()):
        left = 0.0
        for part, colour in PARTS.items():
            width = parts.get(part, 0) / 1e9
            axis.barh(place, width, left=left, height=0.62, color=colour)
            left += width
        axis.text(left + widest * 0.012, place, f"{left:.2f}", va="center", fontsize=9)
    axis.set(title=title, yticks=range(len(bars)), yticklabels=list(bars), xlim=(0, widest * 1.12))
    axis.set_xlabel("GB")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def lora_picture() -> Figure:
    """Draw a linear layer with its low-rank path: the frozen square, and the two thin factors beside it."""
    fig, axis = plt.subplots(figsize=(6.4, 3.3))
    axis.set(xlim=(0, 12.4), ylim=(-0.55, 6.1), aspect="equal")
    axis.axis("off")

    def matrix(x: float, y: float, w: float, h: float, colour: str, text: str, below: str) -> None:
        axis.add_patch(Rectangle((x, y), w, h, facecolor=colour + "40", edgecolor=colour, linewidth=1.6))
        axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=12)
        axis.text(x + w / 2, y - 0.16, below, ha="center", va="top", fontsize=9.5)

    matrix(3.2, 3.5, 2.4, 2.4, ROLES["frozen"], "$W_0$", "")
    axis.text(5.75, 5.55, "frozen\n$d_{out} \\times d_{in}$ numbers", va="top", fontsize=9.5)
    matrix(3.2, 0.75, 2.4, 0.45, ROLES["lora"], "$A$", "down to $r$ numbers")
    matrix(7.2, -0.1, 0.45, 2.2, ROLES["lora"], "$B$", "up to $d_{out}$")
    axis.text(
        4.4, 1.9, "learnt: $r\\,(d_{in} + d_{out})$ numbers", ha="center", fontsize=9.5, color=ROLES["lora"]
    )
    arrow(axis, (0.6, 4.7), (3.2, 4.7))
    arrow(axis, (1.5, 4.7), (1.5, 0.97), (3.2, 0.97))
    arrow(axis, (5.6, 0.97), (7.2, 0.97))
    arrow(axis, (7.65, 0.97), (8.6, 0.97))
    arrow(axis, (9.5, 0.97), (10.2, 0.97), (10.2, 4.4))
    arrow(axis, (5.6, 4.7), (9.9, 4.7))
    arrow(axis, (10.5, 4.7), (11.8, 4.7))
    for x, y, text in (
        (0.3, 4.7, "$x$"),
        (12.1, 4.7, "$h$"),
        (9.05, 0.97, "$\\times\\, s$"),
        (10.2, 4.7, "$+$"),
    ):
        axis.text(x, y, text, ha="center", va="center", fontsize=13)
    return fig


def spectra(curves: Mapping[str, Sequence[float]], ylabel: str = "singular value / largest") -> Figure:
    """Draw the singular values of several matrices, each divided by its largest, on a logarithmic scale."""
    fig, axis = plt.subplots()
    for (name, values), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=False):
        axis.plot(range(1, len(values) + 1), [v / values[0] for v in values], style, label=name)
    axis.set(xlabel="number of the singular value", ylabel=ylabel, yscale="log", ylim=(1e-4, 1.4))
    axis.legend(loc="lower center")
    return fig


def error_curves(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the relative error of the best approximation against its rank, from rank 0 on."""
    fig, axis = plt.subplots()
    for (name, errors), style, colour in zip(curves.items(), ("-", "--", "-.", ":"), CYCLE, strict=False):
        axis.plot(range(len(errors)), errors, style, color=colour, label=name)
    axis.set(xlabel="rank r", ylabel="relative error", ylim=(0, 1.03), xlim=(0, None))
    axis.legend(loc="upper right")
    return fig


def token_strip(pieces: Sequence[str], learnt: Sequence[bool], columns: int = 62) -> Figure:
    """Draw a text's tokens as boxes in reading order, those that are learnt in colour.

    Parameters
    ----------
    pieces
        The tokens' texts; a line break is shown as a return sign.
    learnt
        Which of them have a label.
    columns
        Characters in a line.
    """
    shown = [piece.replace("\n", "\u21b5").replace(" ", "\u00b7") for piece in pieces]
    places, line, used = [], 0, 0.0
    for piece in shown:
        if used and used + len(piece) > columns:
            line, used = line + 1, 0
        places.append((used, line))
        used += len(piece) + 0.6
    fig, axis = plt.subplots(figsize=(6.4, 0.24 * (line + 2)))
    axis.set(xlim=(0, columns + 6), ylim=(line + 1, -0.2))
    axis.axis("off")
    for piece, (x, y), is_learnt in zip(shown, places, learnt, strict=True):
        colour = ROLES["lora"] if is_learnt else ROLES["frozen"]
        box = Rectangle((x, y + 0.08), len(piece), 0.84, facecolor=colour + "38", edgecolor=colour, lw=0.6)
        axis.add_patch(box)
        axis.text(
            x + len(piece) / 2, y + 0.5, piece, ha="center", va="center", fontsize=8, family="monospace"
        )
    return fig


# Query, key and value, wherever the three are drawn.
_QKV = {"query": OKABE_ITO["blue"], "key": OKABE_ITO["orange"], "value": OKABE_ITO["green"]}


def _mask(axis: Axes, left: float, top: float, size: float, causal: bool) -> None:
    """Who attends to whom among four places: a row for each that looks, dark where it sees."""
    step = size / 4
    for row in range(4):
        for column in range(4):
            seen = "60" if column <= row or not causal else "00"
            square = Rectangle((left + column * step, top + row * step), step, step, linewidth=0.8)
            square.set(facecolor=OKABE_ITO["blue"] + seen, edgecolor=AXIS)
            axis.add_patch(square)


def architectures() -> Figure:
    """Draw a decoder, an image classifier and an encoder-decoder, a coloured strip where LoRA adapts."""
    fig, axis = canvas(28, 15.2, (7.2, 4.4))
    columns = (
        ("Llama", "tokens", ((2.9, "attention", True),), ("lm_head", ROLES["frozen"], "next token")),
        ("ViT", "patches", ((2.9, "attention", False),), ("classifier", ROLES["head"], "label")),
        ("T5, encoder", "tokens", ((2.9, "attention", False),), None),
        (
            "T5, decoder",
            "tokens so far",
            ((2.9, "attention", True), (6.0, "to the\nencoder", False)),
            ("lm_head", ROLES["frozen"], "next token"),
        ),
    )
    for place, (title, given, attentions, end) in enumerate(columns):
        left, middle = 7 * place + 0.4, 7 * place + 3.2
        around = Rectangle((left - 0.2, 2.4), 6.0, 8.8, facecolor="none", edgecolor=AXIS, linestyle=":")
        axis.add_patch(around)
        axis.text(middle, 0.4, title, ha="center", va="center", fontsize=10, weight="bold")
        axis.text(middle, 1.4, given, ha="center", va="center", fontsize=9)
        axis.text(left + 5.5, 10.85, "twice", ha="right", va="center", fontsize=8)
        stops = [(1.8, attentions[0][0])]
        boxes = [*((top, text) for top, text, _ in attentions), (8.9, "feed-forward")]
        stops += [(top + 2.2, below) for (top, _), (below, _) in pairwise(boxes)]
        for top, text in boxes:
            tall = 2.2 if text != "feed-forward" else 1.5
            box(axis, (left, top, 5.6, tall), ROLES["frozen"])
            inset = 2.2 if text != "feed-forward" else 0.4
            axis.text(left + inset, top + tall / 2, text, va="center", fontsize=8)
            axis.add_patch(Rectangle((left + 5.2, top), 0.4, tall, color=ROLES["lora"]))
        for top, _, causal in attentions:
            _mask(axis, left + 0.3, top + 0.3, 1.6, causal)
        if end:
            name, colour, result = end
            box(axis, (left, 12.0, 5.6, 1.2), colour, name, 8)
            stops += [(10.4, 12.0), (13.2, 14.1)]
            axis.text(middle, 14.6, result, ha="center", va="center", fontsize=9)
        for start, stop in stops:
            arrow(axis, (middle, start), (middle, stop))
    arrow(axis, (17.2, 10.4), (17.2, 11.6), (20.7, 11.6), (20.7, 7.1), (21.4, 7.1))
    return fig


def grouped_heads(heads: int = 4, shared: int = 2, width: int = 32, r: int = 4) -> Figure:
    """Draw query heads that share fewer heads of keys and values, and W, A and B of both, to scale.

    Parameters
    ----------
    heads, shared
        Heads of the queries, and of the keys and the values.
    width
        Width of the model, so that a head has ``width / heads`` numbers.
    r
        Rank of A (r, width) and B (rows, r).
    """
    fig, axis = canvas(30, 10.5, (7.2, 2.6))
    tall = 8.0 / heads
    for head in range(heads):
        box(axis, (0.4, 1.6 + tall * head, 4.2, 0.8 * tall), OKABE_ITO["blue"], f"query {head + 1}", 8)
        group = head * shared // heads
        arrow(axis, (4.6, 1.6 + tall * (head + 0.4)), (7.4, 1.6 + 8.0 / shared * (group + 0.5) - 0.2))
    for group in range(shared):
        top = 1.6 + 8.0 / shared * (group + 0.5) - 0.2 - 0.4 * tall
        box(axis, (7.4, top, 4.2, 0.8 * tall), ROLES["frozen"], f"key, value {group + 1}", 8)
    unit = 5.0 / width
    for left, name, rows in ((14.0, "q_proj", width), (23.0, "v_proj", width * shared // heads)):
        axis.text(left, 0.6, name, va="center", fontsize=9, weight="bold")
        box(axis, (left, 1.6, 5.0, rows * unit), ROLES["frozen"], f"$W_0$: {rows} × {width}", 8)
        box(axis, (left + 5.3, 1.6, max(r * unit, 0.6), rows * unit), ROLES["lora"], "$B$", 8)
        box(axis, (left, 7.6, 5.0, max(r * unit, 0.6)), ROLES["lora"], "$A$", 8)
        axis.text(left, 9.2, f"$B$: {rows} × {r}, $A$: {r} × {width}", va="center", fontsize=8)
    return fig


def fused_rows(heads: int, size: int) -> Figure:
    """Draw the rows of a fused projection in the two orders that models use, key rows in their own colour.

    Parameters
    ----------
    heads
        Attention heads.
    size
        Rows of a head in each of query, key and value.
    """
    orders = {
        "stacked by part (Phi-3)": [part for part in _QKV for _ in range(heads)],
        "stacked by head (GPT-NeoX)": [part for _ in range(heads) for part in _QKV],
    }
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.4), sharey=True)
    for axis, (title, parts) in zip(axes, orders.items(), strict=True):
        for block, part in enumerate(parts):
            colour = _QKV[part]
            place = (0, block * size)
            axis.add_patch(Rectangle(place, 1, size, facecolor=colour + "55", edgecolor=colour, lw=1))
            axis.text(0.5, (block + 0.5) * size, part, ha="center", va="center", fontsize=9)
            if parts[1] != parts[0] and part == "key":  # the middle of a head's three
                label = {"ha": "left", "va": "center", "fontsize": 9}
                axis.text(1.06, (block + 0.5) * size, f"head {block // 3 + 1}", **label)
        axis.set(title=title, xlim=(0, 1), ylim=(3 * heads * size, 0), xticks=[])
        axis.set_yticks(range(0, 3 * heads * size + 1, size * heads))
        axis.grid(visible=False)
    axes[0].set_ylabel("row of the weight")
    return fig


def tied_weights() -> Figure:
    """Draw one matrix with two readers: the token table at the input, the last linear layer at the output."""
    fig, axis = plt.subplots(figsize=(6.4, 2.9))
    axis.set(xlim=(0, 13), ylim=(0, 6))
    axis.axis("off")
    frozen, lora = ROLES["frozen"], ROLES["lora"]

    box(axis, (5, 3.6, 3, 2), frozen, "one matrix $E$\nvocabulary x width")
    box(axis, (1.9, 0.5, 2.2, 1.3), frozen, "table of\ntoken vectors")
    box(axis, (5.3, 0.5, 2.4, 1.3), frozen, "the layers")
    box(axis, (8.9, 0.5, 2.2, 1.3), frozen, "lm_head")
    box(axis, (9.0, 2.5, 2.0, 0.55), lora, "$s\\,BA$")
    for points in (
        ((0.4, 1.15), (1.9, 1.15)),
        ((4.1, 1.15), (5.3, 1.15)),
        ((7.7, 1.15), (8.9, 1.15)),
        ((11.1, 1.15), (12.6, 1.15)),
        ((5.0, 4.6), (3.0, 4.6), (3.0, 1.8)),
        ((8.0, 4.6), (8.5, 4.6), (8.5, 1.8), (8.9, 1.5)),
        ((10.0, 2.5), (10.0, 1.8)),
    ):
        arrow(axis, *points)
    axis.text(0.3, 1.45, "tokens", fontsize=9)
    axis.text(11.5, 1.45, "logits", fontsize=9)
    merging: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "linestyle": "--", "color": lora}
    axis.add_patch(FancyArrowPatch((10.4, 3.1), (8.05, 5.2), connectionstyle="arc3,rad=0.3", **merging))
    axis.text(10.3, 4.4, "merging: both\nreaders change", fontsize=9, color=lora)
    return fig
