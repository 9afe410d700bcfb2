"""In which order to multiply by W, A and B: the operations of three ways, at the reader's own sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_tutorial.analysis.costs import Flops, fast_flops, linear_flops, lora_flops, materialised_flops
from lora_tutorial.explorables.frame import touch
from lora_tutorial.lora.fast import sum_pays

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
        made and autograd does the rest. ``fast``: `FastLoraLinear` on a CPU, by the rule of `sum_pays`.
    """
    forward, backward = (sum_pays(torch.empty(1, 1).expand(tokens, width)) for width in (n_in, n_out))
    frozen = linear_flops(tokens, n_in, n_out, trains=False, passes=True)
    return {
        "frozen": frozen,
        "thin": frozen + lora_flops(tokens, n_in, n_out, r, passes=True),
        "formed": materialised_flops(tokens, n_in, n_out, r, passes=True),
        "fast": fast_flops(tokens, n_in, n_out, r, forward, backward),
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
    more = {name: 100 * (f.total / flops["frozen"].total - 1) for name, f in flops.items()}
    static = (
        f"{tokens:,} tokens, {n_in} to {n_out}, r = {r}. Beyond the frozen products the thin ones "
        f"take {more['thin']:.3g} %, forming the sum with autograd {more['formed']:.3g} %, the fast layer "
        f"{more['fast']:.3g} %."
    )
    return touch("product_orders", {"stops": stops, "start": start}, STATIC=static)
