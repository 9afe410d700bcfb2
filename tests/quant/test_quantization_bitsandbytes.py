"""NF4 by hand against bitsandbytes, bit for bit."""

from __future__ import annotations

import pytest
import torch
from weights_to_quantise import INPUTS, gaussian

from lora_tutorial.quant.nf4 import (
    QuantizedScales,
    dequantize_4bit,
    dequantize_nf4,
    dequantize_scales,
    dynamic_levels,
    fp4_levels,
    nf4_levels,
    quantize_4bit,
    quantize_nf4,
    quantize_scales,
)


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes.functional, run without torch.compile (its odd-length path compiles for seconds)."""
    functional = pytest.importorskip("bitsandbytes").functional
    with torch.compiler.set_stance("force_eager"):
        yield functional


def by_bitsandbytes(bnb, weight: torch.Tensor, block_size: int, **arguments):
    """Packed bytes, state and restored weight.

    As one row: on AVX-512 bitsandbytes 0.50.2 restores a matrix wrongly unless its rows are whole blocks
    (its kernel starts a new block at each row, its quantiser does not).
    """
    packed, state = bnb.quantize_4bit(weight.flatten(), blocksize=block_size, **arguments)
    return packed.flatten(), state, bnb.dequantize_4bit(packed, state).reshape(weight.shape)


inputs = pytest.mark.parametrize("weight", INPUTS.values(), ids=INPUTS)
# The mean of the largest floats overflows: refused, and tested in test_quantization.py.
AVERAGEABLE = {name: weight for name, weight in INPUTS.items() if name != "largest float"}
averageable = pytest.mark.parametrize("weight", AVERAGEABLE.values(), ids=AVERAGEABLE)
block_sizes = pytest.mark.parametrize("block_size", [32, 64, 256, 4096])


def test_levels_equal_bitsandbytes(bnb):
    assert torch.equal(nf4_levels(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(fp4_levels(), bnb.get_4bit_type("fp4", device="cpu").unique())
    assert torch.equal(dynamic_levels(), bnb.create_dynamic_map())


@inputs
@block_sizes
def test_packed_bytes_scales_and_values_equal_bitsandbytes(bnb, weight, block_size):
    packed, state, restored = by_bitsandbytes(bnb, weight, block_size, quant_type="nf4")
    ours = quantize_nf4(weight, block_size)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.scales, state.absmax)
    assert torch.equal(dequantize_nf4(ours), restored)


@averageable
@block_sizes
def test_double_quantisation_equals_bitsandbytes(bnb, weight, block_size):
    packed, state, restored = by_bitsandbytes(
        bnb, weight, block_size, quant_type="nf4", compress_statistics=True
    )
    ours = quantize_nf4(weight, block_size, double=True)
    assert isinstance(ours.scales, QuantizedScales)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.scales.codes, state.absmax)
    assert torch.equal(ours.scales.absmax, state.state2.absmax)
    assert torch.equal(ours.scales.mean, state.offset)
    assert torch.equal(dequantize_nf4(ours), restored)


def test_many_scales_equal_bitsandbytes(bnb):
    scales = gaussian(100_003, seed=20).abs() ** 3  # 391 blocks of 256, the last one short
    codes, state = bnb.quantize_blockwise(scales - scales.mean(), blocksize=256)
    ours = quantize_scales(scales)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(dequantize_scales(ours), bnb.dequantize_blockwise(codes, state) + scales.mean())


@inputs
def test_fp4_values_equal_bitsandbytes(bnb, weight):
    # bitsandbytes numbers FP4 by bit pattern and has two zeros, so values are compared, not codes.
    *_, restored = by_bitsandbytes(bnb, weight, 64, quant_type="fp4")
    assert torch.equal(dequantize_4bit(quantize_4bit(weight, fp4_levels())), restored)


def test_a_matrix_of_whole_rows_equals_bitsandbytes(bnb):
    weight = gaussian(384, 384, seed=24)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(quantize_nf4(weight).packed, packed.flatten())
    assert torch.equal(dequantize_nf4(quantize_nf4(weight)), bnb.dequantize_4bit(packed, state))
