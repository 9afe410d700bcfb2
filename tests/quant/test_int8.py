"""Eight bits a weight, a scale a row: close, exact where it can be, and refused where it has no meaning."""

import pytest
import torch

from lora_tutorial.quant.int8 import dequantize_rows, quantize_rows


def test_no_weight_moves_by_more_than_half_a_step_and_the_largest_stays():
    torch.manual_seed(0)
    weight = torch.randn(5, 300)
    rows = quantize_rows(weight)
    assert rows.codes.dtype == torch.int8 and rows.codes.shape == weight.shape and rows.scales.shape == (5,)
    error = (dequantize_rows(rows) - weight).abs()
    assert (error <= 0.5001 * rows.scales[:, None]).all()
    assert (rows.codes.abs().amax(1) == 127).all()


def test_a_second_trip_changes_nothing_and_zeros_stay_zeros():
    weight = torch.cat([torch.randn(3, 64), torch.zeros(1, 64)])
    once = dequantize_rows(quantize_rows(weight))
    assert torch.equal(quantize_rows(once).codes, quantize_rows(weight).codes)
    assert torch.equal(once[3], torch.zeros(64))


@pytest.mark.parametrize("weight", [torch.ones(4), torch.tensor([[1.0, float("nan")]])])
def test_what_is_no_matrix_of_numbers_is_refused(weight):
    with pytest.raises(ValueError, match="matrix of finite numbers"):
        quantize_rows(weight)
