"""NF4 by hand against its definition: levels, codes, bits, error, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from weights_to_quantise import INPUTS, TABLES, gaussian, ties

from lora_tutorial.quant.nf4 import (
    bits_per_parameter,
    dequantize_4bit,
    dequantize_nf4,
    nf4_levels,
    pack_codes,
    quantize_4bit,
    quantize_nf4,
    unpack_codes,
)


def test_levels_are_normal_quantiles():
    norm = pytest.importorskip("scipy.stats").norm
    levels = nf4_levels().double()
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    probabilities = norm.cdf(levels.numpy() * norm.ppf(outermost))
    assert levels[7] == 0
    assert probabilities[:8] == pytest.approx(
        [1 - outermost + i * (outermost - 0.5) / 7 for i in range(8)], abs=1e-6
    )
    assert probabilities[7:] == pytest.approx([0.5 + i * (outermost - 0.5) / 8 for i in range(9)], abs=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_levels_span_minus_one_to_one_and_hold_zero(name):
    levels = TABLES[name]()
    assert levels.dtype == torch.float32
    assert len(levels) == (16 if name == "nf4" else 15)
    assert levels[0] == -1 and levels[-1] == 1 and 0 in levels
    assert (levels.diff() > 0).all()


def test_a_vector_quantised_on_paper():
    # Block 1: absmax 2, values 1, -.5, 0, .25. Block 2: absmax .4, values -1, .5, .75, .025.
    weight = torch.tensor([2.0, -1.0, 0.0, 0.5, -0.4, 0.2, 0.3, 0.01])
    quantized = quantize_nf4(weight, block_size=4)
    assert quantized.scales.tolist() == pytest.approx([2.0, 0.4])
    assert quantized.codes.tolist() == [15, 2, 7, 10, 0, 12, 14, 7]
    assert [f"{byte:02x}" for byte in quantized.packed.tolist()] == ["f2", "7a", "0c", "e7"]
    expected = [2.0, -1.05015, 0.0, 0.49222, -0.4, 0.17628, 0.28918, 0.0]
    assert dequantize_nf4(quantized).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_tie_takes_the_lower_level():
    block = ties()
    codes = quantize_nf4(block).codes
    assert codes[1:16].tolist() == list(range(15))  # midpoint i lies between levels i and i + 1
    above = block.clone()
    above[1:16] = torch.nextafter(block[1:16], torch.tensor(1.0))
    assert quantize_nf4(above).codes[1:16].tolist() == list(range(1, 16))


@pytest.mark.parametrize("name", TABLES)
def test_codes_are_those_of_the_nearest_level(name):
    weight, levels = gaussian(40, 64, seed=21), TABLES[name]()
    normalised = (weight / weight.abs().amax(dim=1, keepdim=True)).double()
    distance = (normalised.flatten()[:, None] - levels.double()).abs()
    chosen = distance.gather(1, quantize_4bit(weight, levels).codes.long()[:, None])[:, 0]
    assert (chosen <= distance.amin(dim=1) + 1e-7).all()


def test_packing_puts_the_earlier_code_in_the_high_half():
    codes = torch.tensor([1, 2, 15, 0], dtype=torch.uint8)
    assert pack_codes(codes).tolist() == [0x12, 0xF0]
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)


def test_a_block_sees_only_its_own_scale():
    weight = torch.cat([torch.full((64,), 100.0), torch.full((64,), 0.01)])
    assert quantize_nf4(weight).scales.tolist() == pytest.approx([100.0, 0.01])
    assert torch.equal(dequantize_nf4(quantize_nf4(weight)), weight)
    assert dequantize_nf4(quantize_nf4(weight, block_size=128))[64:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype_come_back(dtype):
    weight = gaussian(3, 5, 7).to(dtype)
    for double in (False, True):
        restored = dequantize_nf4(quantize_nf4(weight, double=double))
        assert restored.shape == weight.shape and restored.dtype == dtype


def test_the_input_is_left_alone_and_keeps_no_graph():
    weight = torch.nn.Parameter(gaussian(8, 64))
    before = weight.detach().clone()
    assert not dequantize_nf4(quantize_nf4(weight)).requires_grad
    assert torch.equal(weight, before)


# --- bits and error ---------------------------------------------------------------------------------


def test_bits_per_parameter():
    assert bits_per_parameter() == 4.5
    assert bits_per_parameter(double=True) == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert bits_per_parameter(32) == 5.0
    assert bits_per_parameter(4096, double=True) == 4 + 8 / 4096 + 32 / (4096 * 256)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_stored_bytes_match_bits_per_parameter(double, block_size):
    weight = gaussian(256, block_size * 256)  # whole blocks of scales
    mean = 4 if double else 0
    stored = quantize_nf4(weight, block_size, double).nbytes - mean
    assert 8 * stored / weight.numel() == bits_per_parameter(block_size, double)


def relative_error(weight: torch.Tensor, **arguments) -> float:
    return float((dequantize_4bit(quantize_4bit(weight, **arguments)) - weight).norm() / weight.norm())


def test_error_on_gaussian_weights():
    weight = gaussian(512, 512, seed=22)
    errors = {name: relative_error(weight, levels=levels()) for name, levels in TABLES.items()}
    assert errors["nf4"] == pytest.approx(0.0915, abs=0.002)
    assert errors["nf4"] < errors["int4"] < errors["fp4"]
    by_block = [relative_error(weight, levels=nf4_levels(), block_size=2**k) for k in range(5, 13)]
    assert by_block == sorted(by_block)
    double = relative_error(weight, levels=nf4_levels(), double=True)
    assert double == pytest.approx(errors["nf4"], rel=0.02)


def test_error_on_the_encoders_own_weights():
    from lora_tutorial.models.encoders import load_encoder

    linears = [m.weight for m in load_encoder("minilm").model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) >= 36
    mean = {
        name: sum(relative_error(w.detach(), levels=levels()) for w in linears) / len(linears)
        for name, levels in TABLES.items()
    }
    assert mean["nf4"] < mean["int4"] < mean["fp4"]
    assert 0.08 < mean["nf4"] < 0.11


def test_the_error_of_an_outlier_stays_in_its_block():
    weight = gaussian(64, 64, seed=23)
    spoilt = weight.clone()
    spoilt[3, 5] = 100.0
    change = (dequantize_nf4(quantize_nf4(spoilt)) - dequantize_nf4(quantize_nf4(weight))).abs().amax(dim=1)
    assert change.nonzero().flatten().tolist() == [3]
    assert dequantize_nf4(quantize_nf4(spoilt))[3].count_nonzero() == 1


# --- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "block_size", "error", "message"),
    [
        ([1.0, 2.0], 64, TypeError, "must be a torch.Tensor, got list"),
        (torch.arange(8), 64, TypeError, r"got torch.int64: call .float\(\)"),
        (torch.zeros(8, dtype=torch.float64), 64, TypeError, "got torch.float64"),
        (torch.zeros(8, dtype=torch.complex64), 64, TypeError, "got torch.complex64"),
        (torch.zeros(0, 4), 64, ValueError, r"empty \(shape \(0, 4\)\)"),
        (torch.tensor([1.0, float("nan")]), 64, ValueError, "1 NaN or infinite"),
        (torch.tensor([float("inf"), -float("inf")]), 64, ValueError, "2 NaN or infinite"),
        (torch.zeros(8), 0, ValueError, "power of two, at least 2, got 0"),
        (torch.zeros(8), -64, ValueError, "got -64"),
        (torch.zeros(8), 1, ValueError, "got 1:"),
        (torch.zeros(8), 48, ValueError, "got 48"),
        (torch.zeros(8), 64.0, TypeError, "block_size must be an int, got float"),
        (torch.zeros(8), True, TypeError, "got bool"),
    ],
)
def test_bad_input_is_refused(weight, block_size, error, message):
    with pytest.raises(error, match=message):
        quantize_nf4(weight, block_size)


@pytest.mark.parametrize(
    "levels", [[0.0, 1.0, 0.5], [-0.5, 0.5], [1.0], [0.0, 0.0, 1.0], [i / 16 for i in range(17)], [-2.0, 1.0]]
)
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be 2 to 16 ascending"):
        quantize_4bit(torch.zeros(8), torch.tensor(levels))


def test_scales_too_large_to_average_are_refused():
    with pytest.raises(ValueError, match="overflows float32: quantise this weight with double=False"):
        quantize_nf4(INPUTS["largest float"], double=True)


def test_bits_per_parameter_refuses_a_bad_block_size():
    with pytest.raises(ValueError, match="got 3"):
        bits_per_parameter(3)
