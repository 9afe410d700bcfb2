"""Four-bit weights by hand: NF4, blockwise absolute-maximum scales, double quantisation.

Follows Dettmers et al. (2023), "QLoRA", section 3 and appendix E (arXiv 2305.14314). Codes, packed bytes and
dequantised values are bit-equal to bitsandbytes on a CPU, so the rounding order below is bitsandbytes' order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_BLOCK = 256  # scales that share one second-level scale (QLoRA, section 3)
ACCEPTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# bitsandbytes divides by at least this much, so that a block of zeros gives zeros and not 0 / 0.
SMALLEST_DIVISOR = 1e-38
# Of sixteen equally likely bins the outermost has its centre at probability 1/32 from the end; of fifteen, at
# 1/30. NF4 uses the mean of the two (Yoshida 2023, arXiv 2306.06965); bitsandbytes keeps seven decimals.
OUTERMOST_PROBABILITY = round(1 - (1 / 32 + 1 / 30) / 2, 7)


@dataclass(frozen=True)
class QuantizedScales:
    """Scales after double quantisation: ``dynamic_levels()[codes] * absmax + mean``.

    Attributes
    ----------
    codes : Tensor
        uint8, shape (blocks,): one 8-bit code for each scale.
    absmax : Tensor
        float32, shape (ceil(blocks / 256),): one second-level scale for 256 codes.
    mean : Tensor
        float32, shape (): subtracted first, or scales, being positive, would use only half of the codes.
    """

    codes: Tensor
    absmax: Tensor
    mean: Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in four bits with what is needed to restore it.

    Attributes
    ----------
    packed : Tensor
        uint8, shape (ceil(n / 2),): two codes a byte, the earlier weight in the high half.
    scales : Tensor or QuantizedScales
        float32, shape (ceil(n / block_size),): the absolute maximum of each block; or its 8-bit form.
    shape, dtype
        Of the original weight; n is its number of elements.
    block_size : int
        Consecutive weights, in row-major order, that share one scale.
    levels : Tensor
        float32, shape (at most 16,), ascending: the value of each code before scaling.
    """

    packed: Tensor
    scales: Tensor | QuantizedScales
    shape: torch.Size
    dtype: torch.dtype
    block_size: int
    levels: Tensor

    @property
    def codes(self) -> Tensor:
        """uint8, shape (n,): one code, 0 to 15, for each weight."""
        return unpack_codes(self.packed)[: self.shape.numel()]

    @property
    def nbytes(self) -> int:
        """Bytes held by the codes and the scales; the table of levels is shared by every weight."""
        scales = vars(self.scales).values() if isinstance(self.scales, QuantizedScales) else [self.scales]
        return self.packed.nbytes + sum(part.nbytes for part in scales)


def nf4_levels() -> Tensor:
    """Return the sixteen NF4 levels, float32, ascending from -1 to 1, with an exact zero.

    Quantiles of N(0, 1) at evenly spaced probabilities: eight above one half, seven below it, and zero; all
    divided by the largest (QLoRA, section 3, "4-bit NormalFloat Quantization").
    """
    # float32 probabilities, float64 quantiles, float32 division: the order that made bitsandbytes' table.
    halves = (torch.linspace(OUTERMOST_PROBABILITY, 0.5, n, dtype=torch.float32)[:-1] for n in (8, 9))
    below, above = (torch.special.ndtri(half.double()).float() for half in halves)
    levels = torch.cat([-below, torch.zeros(1), above.flip(0)])
    return levels / levels.max()


def fp4_levels() -> Tensor:
    """Return the fifteen values of bitsandbytes' 4-bit float, divided by the largest, float32, ascending.

    One sign bit, exponent e of two bits, mantissa m of one: (1 + m / 2) 2**e if e > 0, else m / 16.
    """
    positive = [1 / 16] + [(1 + m / 2) * 2**e for e in (1, 2, 3) for m in (0, 1)]
    return torch.tensor([-value for value in reversed(positive)] + [0.0] + positive) / max(positive)


def int4_levels() -> Tensor:
    """Return the fifteen evenly spaced levels -7/7 ... 7/7 of symmetric 4-bit integers (-8 is not used)."""
    return torch.arange(-7, 8, dtype=torch.float32) / 7


def dynamic_levels() -> Tensor:
    """Return the 256 signed 8-bit dynamic levels of Dettmers (2015, arXiv 1511.04561), float32, ascending.

    Decade i = 0 ... 6, from 10**(i - 7) to 10**(i - 6), holds 2**i levels of either sign, the middles of
    equal intervals: large values are resolved finely, small ones not lost. Zero and one complete the table.
    """
    levels = [torch.tensor([0.0, 1.0])]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2 * 10 ** (i - 6)
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


def pack_codes(codes: Tensor) -> Tensor:
    """Pack uint8 codes below 16, (n,), n even, into bytes, (n / 2,): the earlier code in the high half."""
    return codes[0::2] << 4 | codes[1::2]


def unpack_codes(packed: Tensor) -> Tensor:
    """Undo :func:`pack_codes`: uint8 (n / 2,) to uint8 (n,)."""
    return torch.stack([packed >> 4, packed & 0xF], dim=1).flatten()  # (n / 2, 2) -> (n,)


def quantize_4bit(
    weight: Tensor, levels: Tensor, block_size: int = 64, double: bool = False
) -> QuantizedWeight:
    """Divide each block by its absolute maximum and give each value the code of the nearest level.

    A value exactly half-way between two levels takes the lower level (the one nearer to -1).

    Parameters
    ----------
    weight : Tensor
        float32, float16 or bfloat16, any shape, finite. Blocks run in row-major order; the last may be short.
        After an odd number of weights the last half byte holds the code of zero.
    levels : Tensor
        float32, shape (2 to 16,), strictly ascending, largest magnitude 1.
    block_size : int
        A power of two, at least 2 (bitsandbytes takes 32 to 4096; QLoRA uses 64).
    double : bool
        Quantise the scales as well (:func:`quantize_scales`).

    Raises
    ------
    TypeError
        If ``weight`` is not a tensor of an accepted floating type, or ``block_size`` is not an int.
    ValueError
        If ``weight`` is empty or not finite, or ``block_size`` or ``levels`` is out of range.
    """
    _check(weight, levels, block_size)
    levels = levels.to(weight.device)
    flat = weight.detach().float().flatten()
    normalised, scales = _normalise(flat, block_size)
    if normalised.numel() % 2:
        normalised = torch.nn.functional.pad(normalised, (0, 1))
    midpoints = (levels[:-1] + levels[1:]) / 2
    codes = torch.bucketize(normalised, midpoints).to(torch.uint8)  # how many midpoints lie strictly below
    kept = quantize_scales(scales) if double else scales
    return QuantizedWeight(pack_codes(codes), kept, weight.shape, weight.dtype, block_size, levels)


def dequantize_4bit(quantized: QuantizedWeight) -> Tensor:
    """Return level times scale for every code, with the shape and dtype of the original weight."""
    scales = quantized.scales
    if isinstance(scales, QuantizedScales):
        scales = dequantize_scales(scales)
    values = quantized.levels[quantized.codes.long()]
    per_weight = scales.repeat_interleave(quantized.block_size)[: values.numel()]
    return (values * per_weight).to(quantized.dtype).reshape(quantized.shape)  # (n,) -> the weight's shape


def quantize_nf4(weight: Tensor, block_size: int = 64, double: bool = False) -> QuantizedWeight:
    """Quantise ``weight`` to NF4; arguments, result and errors as for :func:`quantize_4bit`."""
    return quantize_4bit(weight, nf4_levels(), block_size, double)


dequantize_nf4 = dequantize_4bit  # a quantised weight carries its own levels


def quantize_scales(scales: Tensor) -> QuantizedScales:
    """Quantise float32 scales, (blocks,), to 8 bits: less their mean, in blocks of 256 (QLoRA, section 3)."""
    mean = scales.mean()
    if not torch.isfinite(mean):
        raise ValueError("the mean of the scales overflows float32: quantise this weight with double=False")
    centred = scales - mean
    padded = torch.nn.functional.pad(centred, (0, -len(scales) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    absmax = padded.abs().amax(dim=1)
    values = (padded * (1.0 / absmax)[:, None]).clamp(-1, 1)
    # On a CPU bitsandbytes finds the code on a grid of 2**16 points, so round to that grid first.
    grid = ((values + 1) * 0.5 * 65535 + 0.5).floor() / 65535 * 2 - 1
    levels = dynamic_levels().to(scales.device)
    codes = torch.bucketize(grid, (levels[:-1] + levels[1:]) / 2).to(torch.uint8)
    codes = codes.masked_fill((absmax == 0)[:, None], 0)  # any code will do: it is multiplied by zero
    return QuantizedScales(codes=codes.flatten()[: len(scales)], absmax=absmax, mean=mean)


def dequantize_scales(quantized: QuantizedScales) -> Tensor:
    """Return the float32 scales, shape (blocks,), that 8-bit codes stand for."""
    values = dynamic_levels().to(quantized.codes.device)[quantized.codes.long()]
    return values * quantized.absmax.repeat_interleave(SCALE_BLOCK)[: len(values)] + quantized.mean


def bits_per_parameter(block_size: int = 64, double: bool = False) -> float:
    """Return the bits stored for each weight of a long tensor: 4 for the code and its share of the scales.

    The 32 bits of the mean, once a tensor, are left out.
    """
    _check_block_size(block_size)
    return 4 + (8 / block_size + 32 / (block_size * SCALE_BLOCK) if double else 32 / block_size)


def _normalise(flat: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Divide each block of ``flat`` (n,) by its largest magnitude: values (n,), scales (blocks,)."""
    full = flat.numel() // block_size * block_size
    blocks = flat[:full].view(-1, block_size)  # (full blocks, block_size)
    scales = blocks.abs().amax(dim=1)
    values = (blocks * (1.0 / scales.clamp(min=SMALLEST_DIVISOR))[:, None]).flatten()
    if full < flat.numel():
        # bitsandbytes multiplies full blocks by the reciprocal but divides the short one: a last-bit matter.
        scale = flat[full:].abs().amax().clamp(min=SMALLEST_DIVISOR)
        scales, values = torch.cat([scales, scale[None]]), torch.cat([values, flat[full:] / scale])
    return values.clamp(-1, 1), scales


def _check(weight: Tensor, levels: Tensor, block_size: int) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype not in ACCEPTED_DTYPES:
        raise TypeError(f"weight must be float32, float16 or bfloat16, got {weight.dtype}: call .float()")
    if weight.numel() == 0:
        raise ValueError(f"weight is empty (shape {tuple(weight.shape)}): there is nothing to quantise")
    _check_block_size(block_size)
    if not 2 <= levels.numel() <= 16 or not (levels.diff() > 0).all() or levels.abs().max() != 1:
        raise ValueError(f"levels must be 2 to 16 ascending, largest magnitude 1, got {levels.tolist()}")
    if bad := int((~torch.isfinite(weight)).sum()):
        raise ValueError(f"weight has {bad} NaN or infinite values: each would spoil its block; mend them")


def _check_block_size(block_size: int) -> None:
    if not isinstance(block_size, int) or isinstance(block_size, bool):
        raise TypeError(f"block_size must be an int, got {type(block_size).__name__}")
    if block_size < 2 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, at least 2, got {block_size}: 64 is usual")
