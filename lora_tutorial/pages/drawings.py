"""Drawings of mechanisms: boxes, arrows and names. They take names and sizes, never a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from lora_tutorial.pages.style import AXIS, OKABE_ITO, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "aligned_names",
    "attention",
    "cached_tokens",
    "copies_and_shards",
    "merged_layer",
    "module_trees",
    "quantized_layer",
    "span_head",
    "three_products",
    "variant_schemes",
]

_FROZEN, _LORA = ROLES["frozen"], ROLES["lora"]


def canvas(width: float, height: float, inches: tuple[float, float]) -> tuple[Figure, Axes]:
    fig, axis = plt.subplots(figsize=inches)
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    return fig, axis


def box(axis: Axes, place: Sequence[float], colour: str, text: str = "", size: float = 10) -> None:
    """A box at (left, top, width, height), with a text in its middle."""
    x, y, w, h = place
    axis.add_patch(Rectangle((x, y), w, h, facecolor=colour + "40", edgecolor=colour, linewidth=1.4))
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(axis: Axes, *points: tuple[float, float]) -> None:
    """An arrow through some points."""
    for start, end in pairwise(points):
        style = "-|>" if end == points[-1] else "-"
        shape: dict[str, Any] = {"arrowstyle": style, "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
        axis.add_patch(FancyArrowPatch(start, end, color=AXIS, lw=1.3, **shape))


def merged_layer() -> Figure:
    """Draw an adapted layer beside the plain layer that it becomes when it is merged."""
    fig, axis = canvas(20, 7.2, (6.4, 2.4))
    box(axis, (2.2, 1.0, 2.6, 2.6), _FROZEN, "$W_0$", 12)
    box(axis, (2.2, 5.2, 2.6, 0.7), _LORA, "$A$", 11)
    box(axis, (6.0, 4.25, 0.7, 2.6), _LORA, "$B$", 11)
    arrow(axis, (0.2, 2.3), (2.2, 2.3))
    arrow(axis, (1.2, 2.3), (1.2, 5.55), (2.2, 5.55))
    arrow(axis, (4.8, 5.55), (6.0, 5.55))
    arrow(axis, (6.7, 5.55), (7.5, 5.55))
    arrow(axis, (8.0, 5.1), (8.0, 2.75))
    arrow(axis, (4.8, 2.3), (7.6, 2.3))
    arrow(axis, (8.4, 2.3), (9.6, 2.3))
    axis.text(8.0, 2.3, "+", ha="center", va="center", fontsize=13)
    axis.text(8.0, 5.55, r"$\times\, s$", ha="center", va="center", fontsize=11)
    axis.text(4.6, 0.4, "adapted: three products", ha="center", va="center", fontsize=9.5)
    arrow(axis, (10.4, 3.6), (12.6, 3.6))
    axis.text(11.5, 3.1, "merge", ha="center", va="center", fontsize=9.5, color=_LORA)
    box(axis, (14.9, 2.3, 2.6, 2.6), _FROZEN)
    axis.add_patch(Rectangle((14.9, 2.3), 2.6, 2.6, facecolor=_LORA + "38"))
    axis.text(16.2, 3.6, "$W_0 +$\n$s\\,BA$", ha="center", va="center", fontsize=11)
    arrow(axis, (13.3, 3.6), (14.9, 3.6))
    arrow(axis, (17.5, 3.6), (19.1, 3.6))
    axis.text(16.2, 1.7, "merged: one product", ha="center", va="center", fontsize=9.5)
    return fig


def module_trees(
    trees: Mapping[str, Sequence[tuple[int, str, str]]], learnt: Mapping[str, Collection[int]] | None = None
) -> Figure:
    """Draw trees of modules side by side; a row that the first tree doesn't have is in the adapters' colour.

    Parameters
    ----------
    trees
        Title to rows from the top down: depth, name, class.
    learnt
        Title to the numbers of the rows that are in the adapters' colour instead.
    """
    (first, *_), rows = trees.values(), max(map(len, trees.values()))
    fig, axes = plt.subplots(1, len(trees), figsize=(7.2, 0.21 * rows + 0.5), squeeze=False)
    for axis, (title, tree) in zip(axes[0], trees.items(), strict=True):
        axis.set(title=title, xlim=(-0.3, 10), ylim=(rows - 0.4, -0.6))
        axis.axis("off")
        for place, (depth, name, kind) in enumerate(tree):
            is_new = place in learnt[title] if learnt else (depth, name, kind) not in first
            axis.text(0.55 * depth, place, name, va="center", fontsize=9)
            style = {"color": _LORA, "weight": "bold"} if is_new else {"color": _FROZEN}
            axis.text(4.6, place, kind, va="center", fontsize=9, **style)
            parents = [row for row in range(place) if tree[row][0] == depth - 1]
            if parents:
                left = 0.55 * depth - 0.4
                axis.plot([left, left, left + 0.25], [parents[-1] + 0.5, place, place], color=AXIS, lw=0.7)
    return fig


def aligned_names(rows: Mapping[str, Sequence[str]], learnt: Sequence[str] = ()) -> Figure:
    """Draw dotted names cut into parts, equal parts below each other.

    Parameters
    ----------
    rows
        What has the name, to its parts; an empty part leaves its place open.
    learnt
        Parts in the adapters' colour; the others are grey.
    """
    columns = list(zip(*rows.values(), strict=True))
    widths = [max(map(len, column)) + 1.2 for column in columns]
    starts = [sum(widths[:number]) for number in range(len(widths))]
    fig, axis = canvas(sum(widths), 2 * len(rows), (7.2, 0.5 * len(rows) + 0.1))
    for place, (name, parts) in enumerate(rows.items()):
        axis.text(0, 2 * place + 0.35, name, va="center", fontsize=9, color=_FROZEN)
        for start, width, part in zip(starts, widths, parts, strict=True):
            if part:
                colour = _LORA if part in learnt else _FROZEN
                box(axis, (start, 2 * place + 0.75, width - 0.4, 0.95), colour)
                middle = start + width / 2 - 0.2
                words: dict[str, Any] = {
                    "fontsize": 7.6,
                    "family": "monospace",
                    "ha": "center",
                    "va": "center",
                }
                axis.text(middle, 2 * place + 1.24, part, **words)
    return fig


def attention(sizes: Mapping[str, str], adapted: Collection[str] = ()) -> Figure:
    """Draw self-attention from its input down to its output, with low-rank paths beside some projections.

    Parameters
    ----------
    sizes
        The shape, in words, of x, Q, K, V, scores, weights, mixed and output; for a low-rank path also the
        widths of A and B.
    adapted
        Which of query, key and value have a low-rank path.
    """
    fig, axis = canvas(24, 16.0, (6.8, 4.6))
    box(axis, (0.3, 0.2, 23.4, 1.0), _FROZEN, f"$x$   {sizes['x']}", 9)
    for middle, name, letter in ((4, "query", "Q"), (12, "key", "K"), (20, "value", "V")):
        frozen = middle - 2.2 if name in adapted else middle
        box(axis, (frozen - 1.5, 2.3, 3.0, 2.4), _FROZEN, name, 9)
        arrow(axis, (frozen, 1.2), (frozen, 2.3))
        if name in adapted:
            low = middle + 1.9
            for top, factor in ((2.3, "A"), (3.9, "B")):
                box(axis, (low - 1.8, top, 3.6, 0.8), _LORA, f"${factor}$   {sizes[factor]}", 8.5)
            arrow(axis, (low, 1.2), (low, 2.3))
            arrow(axis, (low, 3.1), (low, 3.9))
            arrow(axis, (frozen, 4.7), (frozen, 5.4), (middle - 0.5, 5.4))
            arrow(axis, (low, 4.7), (low, 5.4), (middle + 0.5, 5.4))
            axis.text(middle, 5.4, "+", ha="center", va="center", fontsize=12, color=_LORA)
        arrow(axis, (middle, 5.8 if name in adapted else 4.7), (middle, 6.5))
        box(axis, (middle - 3.7, 6.5, 7.4, 1.0), _FROZEN, f"${letter}$   {sizes[letter]}", 9)
    square = OKABE_ITO["blue"]  # a row and a column for each token
    steps = (
        ("scores", r"scores: $QK^\top/\sqrt{d_h}$", square),
        ("weights", "weights: softmax(scores + mask)", square),
        ("mixed", r"weights $\times\ V$", _FROZEN),
        ("output", "output, heads side by side", _FROZEN),
    )
    for place, (name, text, colour) in enumerate(steps):
        top = 8.5 + 2.1 * place
        for start in (4, 12) if name == "scores" else (8,):
            arrow(axis, (start, top - (1.0 if name == "scores" else 1.1)), (start, top))
        box(axis, (0.3, top, 15.4, 1.0), colour, f"{text}   {sizes[name]}", 9)
    arrow(axis, (20, 7.5), (20, 13.2), (15.7, 13.2))
    return fig


def three_products(tokens: str = "$N$", n_in: str = "$d_{in}$", n_out: str = "$d_{out}$") -> Figure:
    """Draw the three matrix products of a linear layer in training, the one that freezing saves in colour."""
    fig, axis = canvas(20, 11.2, (6.6, 3.6))
    t, i, o = 2.4, 1.9, 1.3  # how long the three sizes are drawn
    size = {t: tokens, i: n_in, o: n_out}
    x, w, g = OKABE_ITO["blue"], _FROZEN, OKABE_ITO["orange"]
    products = (
        ("forward: always", ("$x$", t, i, x), ("$W^\\top$", i, o, w), ("$h$", t, o, x), AXIS),
        (
            "to the layer below:\nif something there trains",
            ("$g$", t, o, g),
            ("$W$", o, i, w),
            ("$g\\,W$", t, i, g),
            AXIS,
        ),
        (
            "to the weight:\nonly if it trains",
            ("$g^\\top$", o, t, g),
            ("$x$", t, i, x),
            ("$g^\\top x$", o, i, _LORA),
            _LORA,
        ),
    )
    for row, (name, *factors, colour) in enumerate(products):
        middle = 1.75 + 3.85 * row
        axis.text(0, middle, name, va="center", fontsize=9.5, color=colour)
        left = 7.4
        for (letter, high, wide, fill), sign in zip(factors, ("×", "=", ""), strict=True):
            box(axis, (left, middle - high / 2, wide, high), fill, letter, 11)
            axis.text(left - 0.12, middle, size[high], ha="right", va="center", fontsize=8)
            axis.text(
                left + wide / 2, middle + high / 2 + 0.42, size[wide], ha="center", va="center", fontsize=8
            )
            axis.text(left + wide + 0.55, middle, sign, ha="center", va="center", fontsize=12)
            left += wide + 2.2
    return fig


def quantized_layer() -> Figure:
    """Draw LoRA on a 4-bit weight, forward and backward: what is kept, restored, and trained."""
    fig, axis = canvas(25.4, 9.4, (7.2, 2.9))
    titles = ("forward", "y"), ("backward", r"\partial L/\partial y")
    for left, (title, given) in zip((0.0, 13.2), titles, strict=True):
        axis.text(left, 0.5, title, va="center", fontsize=11, weight="bold")
        box(axis, (left + 2.6, 1.3, 3.4, 1.1), _FROZEN, "codes, scales", 8.5)
        edge: dict[str, Any] = {"edgecolor": _FROZEN, "linewidth": 1.2, "linestyle": "--"}
        axis.add_patch(Rectangle((left + 3.1, 3.6), 2.4, 2.2, facecolor="none", **edge))
        axis.text(left + 4.3, 4.7, r"$\widetilde{W}$", ha="center", va="center", fontsize=12)
        arrow(axis, (left + 4.3, 2.4), (left + 4.3, 3.6))  # never the other way
        axis.text(left + 4.7, 3.0, "restore", va="center", fontsize=8.5)
        box(axis, (left + 3.1, 7.6, 2.4, 0.7), _LORA, "$A$", 10)
        box(axis, (left + 6.7, 6.75, 0.7, 2.4), _LORA, "$B$", 10)
        axis.text(left + 8.8, 4.7, "+", ha="center", va="center", fontsize=13)
        paths = [
            [(left + 1.1, 4.7), (left + 3.1, 4.7)],
            [(left + 5.5, 4.7), (left + 8.4, 4.7)],
            [(left + 9.2, 4.7), (left + 10.4, 4.7)],
            [(left + 1.7, 4.7), (left + 1.7, 7.95), (left + 3.1, 7.95)],
            [(left + 5.5, 7.95), (left + 6.7, 7.95)],
            [(left + 7.4, 7.95), (left + 8.8, 7.95), (left + 8.8, 5.3)],
        ]
        for path in paths:
            arrow(axis, *(path if title == "forward" else path[::-1]))
        taken = "x" if title == "forward" else r"\partial L/\partial x"
        ends = (0.6, 10.75) if title == "forward" else (0.1, 11.2)
        for x, letter in zip(ends, (taken, given), strict=True):
            axis.text(left + x, 4.7, f"${letter}$", ha="center", va="center", fontsize=10)
    axis.text(6.4, 1.85, "kept, in 4 bits", va="center", fontsize=8.5)
    axis.text(19.6, 1.85, "no gradient,\nno update", va="center", fontsize=8.5)
    axis.text(21.0, 8.9, "trained", va="center", fontsize=8.5, color=_LORA)
    return fig


def copies_and_shards() -> Figure:
    """Draw what two processes hold: a copy of the model in each, or a half of each weight."""
    fig, axis = canvas(20, 9.4, (6.8, 3.2))
    sides = (0.2, "copies (DDP)", 1.0), (10.8, "shards (FSDP2)", 0.5)
    for left, title, share in sides:
        axis.text(left + 4.5, 0.4, title, ha="center", va="center", fontsize=11, weight="bold")
        for place, number in ((left, 0), (left + 6.4, 1)):
            axis.text(place + 1.3, 1.4, f"process {number}", ha="center", va="center", fontsize=9)
            for top, high, role, name in ((2.0, 4.0, _FROZEN, "W"), (6.4, 1.3, _LORA, "A, B")):
                edge: dict[str, Any] = {"edgecolor": role, "linewidth": 0.9, "linestyle": ":"}
                axis.add_patch(Rectangle((place, top), 2.6, high, facecolor="none", **edge))
                start = top + number * (1 - share) * high  # the second half is the second process's
                box(axis, (place, start, 2.6, share * high), role, name if share == 1 else f"½ {name}", 9)
        middle = left + 4.5
        arrow(axis, (middle, 4.9), (left + 6.3, 4.9))
        arrow(axis, (middle, 4.9), (left + 2.7, 4.9))
        axis.text(middle, 4.1, "?", ha="center", va="center", fontsize=16, color=AXIS)
        axis.text(middle, 5.5, "in each step", ha="center", va="center", fontsize=8.5, color=AXIS)
        batch = "rows 1 to 4", "rows 5 to 8"
        for place, rows in zip((left, left + 6.4), batch, strict=True):
            axis.text(place + 1.3, 8.5, rows, ha="center", va="center", fontsize=8.5)
    return fig


def cached_tokens(rows: Mapping[str, tuple[int, int, str]]) -> Figure:
    """Draw whose keys and values a cache holds when the newest token attends to it.

    Parameters
    ----------
    rows
        What the cache is, to the entries that the base made, those that the adapted model made, and what
        comes out. All rows have equally many entries; the last of each is the new token's.
    """
    fig, axis = canvas(20, 1.6 * len(rows) + 1.1, (7.0, 0.45 * len(rows) + 0.4))
    entries = sum(next(iter(rows.values()))[:2])
    left, wide = 4.6, 8.4 / entries
    axis.text(left + (entries - 1) * wide / 2, 0.5, "in the cache", ha="center", va="center", fontsize=9)
    axis.text(left + (entries - 0.5) * wide, 0.5, "new", ha="center", va="center", fontsize=9)
    for place, (name, (of_base, of_adapted, result)) in enumerate(rows.items()):
        top = 1.1 + 1.6 * place
        axis.text(left - 0.4, top + 0.55, name, ha="right", va="center", fontsize=9)
        for entry in range(of_base + of_adapted):
            colour = _FROZEN if entry < of_base else _LORA
            box(axis, (left + entry * wide, top, 0.9 * wide, 1.1), colour)
        stale = of_base > 0 and of_adapted > 0
        style: dict[str, Any] = {"color": _LORA, "weight": "bold"} if stale else {"color": AXIS}
        axis.text(left + entries * wide + 0.4, top + 0.55, result, va="center", fontsize=9, **style)
    return fig


def variant_schemes() -> Figure:
    """Draw LoRA and four variants as matrices, each at its start; what it changes is in bold."""
    fig, axis = canvas(30, 13.4, (7.2, 3.3))
    r, root, starts = r"$\frac{\alpha}{r}$", r"$\frac{\alpha}{\sqrt{r}}$", ("$0$", "random")
    schemes = (
        ("LoRA", "$W_0$", r, starts, "the layer of chapter 5"),
        ("rsLoRA", "$W_0$", root, starts, "the scale"),
        ("LoRA+", "$W_0$", r, starts, "the rate of $B$"),
        ("DoRA", "$W_0$", r, starts, "the form: unit rows, times $m$"),
        ("PiSSA", "$W_0 - sB_0A_0$", r, ("$B_0$", "$A_0$"), "the start: $W_0$'s largest part"),
    )
    for place, (title, frozen, scale, (of_B, of_A), change) in enumerate(schemes):
        left, middle = 10 * (place % 3), 3.4 + 6.9 * (place // 3)
        axis.text(left + 1.2, middle - 2.8, title, va="center", fontsize=11, weight="bold")
        box(axis, (left + 1.2, middle - 1.3, 2.9, 2.6), _FROZEN, frozen, 11 if place < 4 else 8)
        for x, sign in ((4.7, "+"), (5.6, scale)):
            colour = _LORA if sign == root else AXIS
            axis.text(left + x, middle, sign, ha="center", va="center", fontsize=13, color=colour)
        box(axis, (left + 6.3, middle - 1.3, 0.6, 2.6), _LORA, "$B$", 9)
        box(axis, (left + 7.1, middle - 0.3, 2.3, 0.6), _LORA, "$A$", 9)
        axis.text(left + 6.6, middle - 1.75, of_B, ha="center", va="center", fontsize=8.5)
        axis.text(left + 8.2, middle + 0.85, of_A, ha="center", va="center", fontsize=8.5)
        style: dict[str, Any] = {"color": _LORA, "weight": "bold"} if place else {}
        axis.text(left + 1.2, middle + 2.1, change, va="center", fontsize=9, **style)
        if title == "DoRA":
            box(axis, (left + 0.1, middle - 1.3, 0.6, 2.6), _LORA, "$m$", 9)
            for x, turn in ((left + 0.9, 0.15), (left + 9.7, -0.15)):  # m stands outside the brackets
                ends = (middle - 1.5, middle - 1.5, middle + 1.5, middle + 1.5)
                axis.plot([x + turn, x, x, x + turn], ends, color=AXIS, linewidth=1.3)
    for top, colour, text in ((9.4, _FROZEN, "frozen"), (10.9, _LORA, "learnt")):
        box(axis, (22.0, top, 1.2, 0.9), colour)
        axis.text(23.7, top + 0.45, text, va="center", fontsize=9)
    return fig


def span_head(
    tokens: Sequence[str], start: Sequence[float], end: Sequence[float], hidden: int = 384
) -> Figure:
    """Draw how a linear layer gives each token a start and an end score, the best of each in colour.

    Parameters
    ----------
    tokens
        Of a question and a text, each closed by a ``[SEP]``; the best scores are sought in the text.
    start, end
        A score for each token.
    hidden
        Numbers in a token's vector.
    """
    fig, axis = canvas(20, 9.0, (7.2, 3.3))
    wide = 18.2 / len(tokens)
    middles = [1.8 + wide * (place + 0.5) for place in range(len(tokens))]
    text = range(list(tokens).index("[SEP]") + 1, len(tokens) - 1)
    for place, (middle, token) in enumerate(zip(middles, tokens, strict=True)):
        colour = AXIS if place in text else _FROZEN
        axis.text(middle, 0.45, token, ha="center", va="center", fontsize=8, color=colour)
        arrow(axis, (middle, 2.2), (middle, 2.9))
        box(axis, (middle - 0.15 * wide, 2.9, 0.3 * wide, 1.3), _FROZEN)
        arrow(axis, (middle, 4.2), (middle, 4.9))
    axis.text(1.6, 3.55, f"{hidden} each", ha="right", va="center", fontsize=8)
    box(axis, (1.8, 1.0, 18.2, 1.2), _LORA, "encoder with LoRA", 9)
    head = f"Linear({hidden}, 2), the same for every token"
    box(axis, (1.8, 4.9, 18.2, 1.2), ROLES["head"], head, 9)
    rows = (("start", start, OKABE_ITO["blue"], 7.0), ("end", end, _LORA, 8.3))
    for name, scores, colour, top in rows:
        axis.text(1.6, top, name, ha="right", va="center", fontsize=9, color=colour)
        best = max(text, key=lambda place: scores[place])
        for place, middle in enumerate(middles):
            if place == best:
                box(axis, (middle - 0.46 * wide, top - 0.5, 0.92 * wide, 1.0), colour)
            axis.text(middle, top, f"{scores[place]:.1f}", ha="center", va="center", fontsize=8)
    return fig
