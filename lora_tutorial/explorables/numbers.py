"""What numbers cost and lose: the memory of a run, a weight in four bits, an update rounded by a merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_tutorial.explorables.frame import touch
from lora_tutorial.explorables.picture import (
    BLUE,
    FROZEN,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    Picture,
    digits,
    drawing,
    line,
    mark,
    words,
)
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
    from numpy.typing import ArrayLike, NDArray

__all__ = ["four_bits", "memory_bill", "merge_rounding", "step_memory"]

#: Bytes of a frozen weight, and of what an optimiser keeps for a trained one (float32 numbers).
FROZEN_BYTES = {"fp32": 4.0, "bf16": 2.0, "NF4": bits_per_parameter(double=True) / 8}
STATE_BYTES = {"AdamW": 8, "SGD with momentum": 4, "SGD": 0}
#: What the parts of a bill are called and how they are drawn.
BILL = {
    "frozen": ("frozen weights", FROZEN),
    "trained": ("trained weights", ORANGE),
    "gradients": ("gradients", SKY),
    "state": ("optimiser", GREEN),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Bits after the leading one, and the exponent of the smallest normal number.
FORMATS = {
    name: {"digits": -round(np.log2(info.eps)), "lowest": round(np.log2(info.tiny))}
    for name, dtype in DTYPES.items()
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
    bill, whole = step_memory(sizes[model], 10 ** (start["share"] / 10)), 16 * sizes[model]
    trained = digits(100 * 10 ** (start["share"] / 10), 2)
    said = (
        f"{model}, {trained} % of it trained: {_size(sum(bill.values()))} in all. "
        f"Training all of it in fp32 with AdamW takes {_size(whole)}."
    )
    return touch("memory_bill", data, _bill_picture(bill, whole), said)


def _bill_picture(bill: dict[str, float], whole: float) -> Picture:
    """A bar in parts, as wide as the bill of full training, with the amounts below."""
    marks, x, wide = [], 1.0, 438
    for place, (name, amount) in enumerate(bill.items()):
        told, colour = BILL[name]
        marks.append(
            mark("rect", data_part=name, x=x, y=1, width=wide * amount / whole, height=30, fill=colour)
        )
        x += wide * amount / whole
        left, below = 1 + 220 * (place % 2), 44 + 22 * (place // 2)
        marks.append(mark("rect", x=left, y=below, width=13, height=13, fill=colour))
        marks.append(words(left + 20, below + 12, f"{told} {_size(amount)}"))
    frame = mark("rect", x=1, y=1, width=wide, height=30, fill="none", stroke=GREY)
    told = ", ".join(f"{BILL[name][0]} {_size(amount)}" for name, amount in bill.items())
    return Picture(drawing(440, 84, *marks, frame), f"A bar of the memory that training takes: {told}.")


def _size(count: float) -> str:
    """Bytes in three digits, from 100 GB on in four."""
    if count < 1e9:
        return f"{count / 1e6:#.3g}".rstrip(".") + "\u00a0MB"
    return f"{count / 1e9:#.{3 if count < 1e11 else 4}g}".rstrip(".") + "\u00a0GB"


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
    block = torch.from_numpy(weights)
    after = {
        key: dequantize_4bit(quantize_4bit(block, levels, size)).numpy() for key, levels in tables.items()
    }
    said = f"{weights[0]:#.4g} becomes ".replace("-", "\u2212") + ", ".join(
        f"{digits(float(values[0]), 4)} in {key} "
        f"(block’s error {100 * np.linalg.norm(weights - values) / np.linalg.norm(weights):.1f}\u00a0%)"
        for key, values in after.items()
    )
    levels = {key: value.tolist() for key, value in tables.items()}
    first = {key: float(values[0]) for key, values in after.items()}
    picture = _levels_picture(levels, first, weights.tolist())
    data = {"block": weights.tolist(), "tables": levels}
    return touch("four_bits", data, picture, f"{said}.", NAME=name, COUNT=str(len(weights)))


def _levels_picture(levels: dict[str, list[float]], after: dict[str, float], block: list[float]) -> Picture:
    """A line for each table with its levels, the block's weights as dots, the first one's level in orange."""
    marks, scale = [], max(map(abs, block))

    def at(value: float) -> float:
        return 50 + 388 * (0.5 + 0.48 * value / (scale or 1))

    for row, (name, table) in enumerate(levels.items()):
        low = 36 + 40 * row
        marks += [words(1, low - 4, name, font_weight="bold"), line(50, low, 438, low)]
        marks += [
            line(
                at(x * scale),
                low,
                at(x * scale),
                low - 13,
                data_part=f"{name} level",
                stroke=FROZEN,
                stroke_width=2,
            )
            for x in table
        ]
        marks += [
            mark("circle", data_part=f"{name} other", cx=at(weight), cy=low - 24, r=3, fill=FROZEN)
            for weight in block[1:]
        ]
        got = at(after[name])
        marks.append(line(got, low, got, low - 22, data_part=f"{name} got", stroke=ORANGE, stroke_width=4))
        marks.append(mark("circle", data_part=f"{name} dot", cx=at(block[0]), cy=low - 24, r=5, fill=BLUE))
    for value in (-scale, 0, scale):
        told = digits(value, 2)
        marks.append(words(at(value), 36 + 40 * len(levels) - 22, told, text_anchor="middle"))
    return Picture(
        drawing(456, 24 + 40 * len(levels), *marks),
        f"The levels of {', '.join(levels)} as ticks, a line each, the weights as dots above them, and the "
        "level that the first one gets in orange.",
    )


def merged(
    weight: NDArray[np.float32], update: NDArray[np.float32], relative: float, precision: str
) -> tuple[float, NDArray[np.float32]]:
    """What is left of an update that is added to weights in a short format.

    Parameters
    ----------
    weight, update
        As many numbers each.
    relative
        The norm that the update is given, as a share of the weights' norm.
    precision
        ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Returns
    -------
    tuple
        The error's norm by the update's, and of each weight which share of its update has arrived.
    """
    W, D = torch.from_numpy(weight), torch.from_numpy(update)
    base, wanted = W.to(DTYPES[precision]), D * (relative * W.norm() / D.norm())
    got = (base.float() + wanted).to(base.dtype).float() - base.float()
    return float((got - wanted).norm() / wanted.norm()), (got / wanted).numpy()


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
    error, arrived = merged(W, D, 0.01, "bf16")
    still = int((arrived == 0).sum())
    said = (
        "Merged in bf16, an update of 0.01 times the weight arrives with an error of "
        f"{f'{100 * error:#.2g}'.rstrip('.')}\u00a0% of itself; {still} of {len(W)} weights do not move."
    )
    squares = [
        mark(
            "rect",
            data_part=f"{min(1, max(0, share)):.2f}",
            x=2 + 27 * (place % 16),
            y=2 + 27 * (place // 16),
            width=23,
            height=23,
            fill=ORANGE,
            fill_opacity=min(1, max(0, float(share))),
            **({"stroke": BLUE, "stroke_width": 3} if share > 1.25 else {"stroke": GREY}),
        )
        for place, share in enumerate(arrived)
    ]
    svg = drawing(434, 27 * -(-len(W) // 16) + 2, *squares)
    alt = (
        f"{len(W)} squares, a weight each, the fuller the more of its update has arrived; {still} are empty."
    )
    return touch("merge_rounding", data, Picture(svg, alt), said, NAME=name)
