"""Eight bits a weight, a scale a block: close, exact where it can be, and refused where it has no meaning."""

import pytest
import torch

from lora_tutorial.quant.int8 import dequantize_int8, quantize_int8


def test_no_weight_moves_by_more_than_half_a_step_and_the_largest_stays():
    torch.manual_seed(0)
    weight = torch.randn(5, 128)
    quantized = quantize_int8(weight)
    assert quantized.codes.dtype == torch.int8 and quantized.codes.shape == weight.shape
    assert quantized.scales.shape == (10,) and quantized.block_size == 64
    error = (dequantize_int8(quantized) - weight).abs().reshape(10, 64)
    assert (error <= 0.5001 * quantized.scales[:, None]).all()
    assert (quantized.codes.abs().reshape(10, 64).amax(1) == 127).all()


def test_a_large_weight_spoils_its_own_block_only():
    torch.manual_seed(0)
    weight = torch.randn(1, 128)
    before = dequantize_int8(quantize_int8(weight))
    weight[0, 0] = 1000
    after = dequantize_int8(quantize_int8(weight))
    assert torch.equal(before[0, 64:], after[0, 64:]) and (after[0, 1:64] == 0).all()


def test_a_second_trip_changes_nothing_and_zeros_stay_zeros():
    weight = torch.cat([torch.randn(3, 64), torch.zeros(1, 64)])
    once = dequantize_int8(quantize_int8(weight))
    assert torch.equal(quantize_int8(once).codes, quantize_int8(weight).codes)
    assert torch.equal(once[3], torch.zeros(64))


@pytest.mark.parametrize("weight", [torch.ones(65), torch.full((1, 64), float("nan"))])
def test_what_fills_no_blocks_or_is_no_number_is_refused(weight):
    with pytest.raises(ValueError, match="fill blocks of 64"):
        quantize_int8(weight)
