"""In which order to multiply by W, A and B: the operations of three ways, at the reader's own sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_tutorial.analysis.costs import Flops, fast_flops, linear_flops, lora_flops, materialised_flops
from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import FROZEN, ORANGE, Picture, digits, drawing, line, mark, words
from lora_tutorial.lora.fast import sum_pays, whole_gradient_pays

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["order_flops", "product_orders"]

#: Where the sliders can stand.
TOKENS = [2**k for k in range(17)]
SIZES = [128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 11008]
RANKS = [2**k for k in range(10)]


def order_flops(tokens: int, n_in: int, n_out: int, r: int) -> dict[str, Flops]:
    """Operations of one adapted layer in training, whose input needs a gradient too.

    Returns
    -------
    dict
        ``frozen`` is the layer without an adapter. ``thin``: x W' + s (x A') B'. ``formed``: W + s B A is
        made and autograd does the rest. ``fast``: `FastLoraLinear` on a CPU, by the rules of `sum_pays` and
        `whole_gradient_pays`.
    """
    forward, backward = (sum_pays(torch.empty(1, 1).expand(tokens, width)) for width in (n_in, n_out))
    frozen = linear_flops(tokens, n_in, n_out, trains=False, passes=True)
    formed = materialised_flops(tokens, n_in, n_out, r, passes=True)
    apart = fast_flops(tokens, n_in, n_out, r, forward, backward)
    return {
        "frozen": frozen,
        "thin": frozen + lora_flops(tokens, n_in, n_out, r, passes=True),
        "formed": formed,
        "fast": formed if whole_gradient_pays(torch.empty(1, 1).expand(tokens, n_in), n_out, r) else apart,
    }


def product_orders(tokens: int = 2048, n_in: int = 768, n_out: int = 768, r: int = 8) -> HTML:
    """Show what an adapter adds to the frozen products in three orders, forward and backward.

    Parameters
    ----------
    tokens, n_in, n_out, r
        Where the sliders stand at first: a power of two up to 65,536, two sizes of known layers from 128 to
        11,008, and a power of two up to 512.

    Raises
    ------
    ValueError
        If a slider cannot stand there.
    """
    stops = {"tokens": TOKENS, "in": SIZES, "out": SIZES, "r": RANKS}
    start = dict(zip(stops, (tokens, n_in, n_out, r), strict=True))
    for name, value in start.items():
        if value not in stops[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(str, stops[name]))}; got {value}.")
    if r > min(n_in, n_out):
        raise ValueError(f"r = {r} is above {min(n_in, n_out)}, the smaller side of this layer.")
    flops = order_flops(tokens, n_in, n_out, r)
    more = {name: f.total / flops["frozen"].total - 1 for name, f in flops.items() if name != "frozen"}
    fewest = [name for name in more if more[name] == min(more.values())]
    said = (
        f"{tokens:,} {'token' if tokens == 1 else 'tokens'}, {n_in:,} to {n_out:,}, r = {r}. Both passes: "
        + ", ".join(f"{name} +{_percent(added)}" for name, added in more.items())
        + f"; fewest: {' and '.join(fewest)}."
    )
    return touch("product_orders", {"stops": stops, "start": start}, _orders_picture(flops), said)


def _orders_picture(flops: dict[str, Flops]) -> Picture:
    """For each pass a dot for each order, on a logarithmic axis, in shares of the frozen product."""
    low, high = -4.0, 3.5

    def at(share: float) -> float:
        return 60 + 378 * min(1, max(0, (np.log10(share) - low) / (high - low)))

    marks, told, y = [], [], 0
    for place, name in enumerate(("forward", "backward")):
        added = {
            order: f[place] / flops["frozen"][place] - 1 for order, f in flops.items() if order != "frozen"
        }
        marks.append(words(60, y + 16, name, font_weight="bold"))
        for row, (order, share) in enumerate(added.items(), start=1):
            base = y + 16 + 26 * row
            colour = ORANGE if share == min(added.values()) else FROZEN
            beside = {"x": at(share) + 12} if at(share) < 325 else {"x": at(share) - 12, "text_anchor": "end"}
            marks += [
                words(1, base, order),
                line(60, base + 5, 438, base + 5, stroke_opacity=0.5),
                mark("circle", data_part=f"{name} {order}", cx=at(share), cy=base - 5, r=6, fill=colour),
                words(y=base, text=f"+{_percent(share)}", **beside),
            ]
            told.append(f"{name} {order} {_percent(share)}")
        y += 104
    for power in (-3, 0, 2):
        marks.append(words(at(10.0**power), y + 14, _percent(10.0**power), text_anchor="middle"))
    alt = f"What each order adds to the frozen product: {', '.join(told)}."
    return Picture(drawing(440, y + 22, *marks), alt)


def _percent(share: float) -> str:
    """A share in per cent: two digits, from 99.5 % on whole numbers."""
    return (f"{100 * share:,.0f}" if share >= 0.995 else digits(100 * share, 2)) + "\u00a0%"
