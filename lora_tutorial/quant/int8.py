"""Eight-bit weights with a scale for each row: small to download, and close to the original."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_CODE = 127  # -128 is not used, so that levels are symmetric


class QuantizedRows(NamedTuple):
    """A matrix (rows, columns) in 8 bits.

    Attributes
    ----------
    codes
        int8, (rows, columns).
    scales
        float32, (rows,): what a code of 1 stands for.
    """

    codes: Tensor
    scales: Tensor


def quantize_rows(weight: Tensor) -> QuantizedRows:
    """Round each row to 255 evenly spaced levels, the outermost at its largest magnitude.

    Parameters
    ----------
    weight
        float32, (rows, columns), finite.

    Raises
    ------
    ValueError
        If the weight is no matrix of finite numbers.
    """
    if weight.ndim != 2 or not torch.isfinite(weight).all():
        raise ValueError(f"weight must be a matrix of finite numbers; got shape {tuple(weight.shape)}.")
    weight = weight.detach().float()
    scales = weight.abs().amax(1) / LARGEST_CODE
    # a row of zeros gets codes of zero, and not 0 / 0
    codes = torch.round(weight / torch.where(scales > 0, scales, 1)[:, None])
    return QuantizedRows(codes.to(torch.int8), scales)


def dequantize_rows(rows: QuantizedRows) -> Tensor:
    """Return code times scale, float32, (rows, columns)."""
    return rows.codes.float() * rows.scales[:, None]
