"""What numbers cost and lose: the memory of a run, a weight in four bits, an update rounded by a merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_tutorial.explorables.frame import touch
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

__all__ = ["four_bits", "memory_bill", "merge_rounding", "step_memory"]

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
    return touch("memory_bill", data, STATIC=static)


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
    return touch("four_bits", data, STATIC=static, NAME=name, COUNT=str(len(weights)))


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
    return touch("merge_rounding", data, STATIC=static, NAME=name)
