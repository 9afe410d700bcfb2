"""Eight-bit weights with a scale for each block: small to download, and close to the original."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_CODE = 127  # -128 is not used, so that levels are symmetric


class QuantizedInt8(NamedTuple):
    """A weight in 8 bits.

    Attributes
    ----------
    codes
        int8, in the weight's shape.
    scales
        float32, (blocks,): what a code of 1 stands for.
    block_size
        Consecutive weights, in row-major order, that share one scale.
    """

    codes: Tensor
    scales: Tensor
    block_size: int


def quantize_int8(weight: Tensor, block_size: int = 64) -> QuantizedInt8:
    """Round each block to 255 evenly spaced levels, the outermost at its largest magnitude.

    Parameters
    ----------
    weight
        Finite, any shape; its size is a multiple of ``block_size``.
    block_size
        64, as for NF4. One scale a row would leave larger errors where a row holds a few large weights, as
        the rows of a feed-forward block's second layer do.

    Raises
    ------
    ValueError
        If a number is not finite, or the blocks do not fill the weight.
    """
    if not torch.isfinite(weight).all() or weight.numel() % block_size:
        raise ValueError(
            f"weight must be finite and fill blocks of {block_size}; got shape {tuple(weight.shape)}."
        )
    blocks = weight.detach().float().reshape(-1, block_size)
    scales = blocks.abs().amax(1) / LARGEST_CODE
    # a block of zeros gets codes of zero, and not 0 / 0
    codes = torch.round(blocks / torch.where(scales > 0, scales, 1)[:, None])
    return QuantizedInt8(codes.to(torch.int8).reshape(weight.shape), scales, block_size)


def dequantize_int8(quantized: QuantizedInt8) -> Tensor:
    """Return code times scale, float32, in the weight's shape."""
    blocks = quantized.codes.float().reshape(-1, quantized.block_size)
    return (blocks * quantized.scales[:, None]).reshape(quantized.codes.shape)
