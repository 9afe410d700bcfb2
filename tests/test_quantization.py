"""NF4 by hand against bitsandbytes (bit for bit), against its definition, and against its own laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tutorial.quantization import (
    QuantizedScales,
    bits_per_parameter,
    dequantize_4bit,
    dequantize_nf4,
    dequantize_scales,
    dynamic_levels,
    fp4_levels,
    int4_levels,
    nf4_levels,
    pack_codes,
    quantize_4bit,
    quantize_nf4,
    quantize_scales,
    unpack_codes,
)

TABLES = {"nf4": nf4_levels, "fp4": fp4_levels, "int4": int4_levels}


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes.functional, run without torch.compile (its odd-length path compiles for seconds)."""
    functional = pytest.importorskip("bitsandbytes").functional
    with torch.compiler.set_stance("force_eager"):
        yield functional


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ties(n: int = 64) -> torch.Tensor:
    """A block whose absolute maximum is 1 and that holds every midpoint between neighbouring levels."""
    block = torch.zeros(n)
    block[0] = 1
    block[1:16] = (nf4_levels()[:-1] + nf4_levels()[1:]) / 2
    return block


def near_ties(n: int) -> torch.Tensor:
    """Midpoints times 1.3 and the floats beside them: the last bit of a division decides their codes."""
    block = ties(n) * 1.3
    middle = block[1:16].clone()
    block[16:31] = torch.nextafter(middle, torch.tensor(2.0))
    block[31:46] = torch.nextafter(middle, torch.tensor(-2.0))
    return block


INPUTS = {
    "random": gaussian(96, 128),
    "wide range": gaussian(64, 64, seed=1) * torch.logspace(-6, 6, 64)[:, None],
    "heavy tails": gaussian(128, 64, seed=2) ** 5,
    "uniform": torch.linspace(-1, 1, 4096),
    "constant": torch.full((64, 64), 0.37),
    "constant negative": torch.full((64, 64), -2.5),
    "zero": torch.zeros(32, 64),
    "some zero blocks": gaussian(32, 64, seed=3) * (torch.arange(32) % 2)[:, None],
    "one zero": torch.zeros(2),
    "tiny": gaussian(32, 64, seed=4) * 1e-30,
    "subnormal": gaussian(32, 64, seed=5) * 1e-39,
    "huge": gaussian(32, 64, seed=6) * 1e30,
    "largest float": torch.full((2, 64), torch.finfo(torch.float32).max),
    "odd length": gaussian(1001, seed=7),
    "odd rows and columns": gaussian(33, 35, seed=8),
    "short last block": gaussian(1000, seed=9),
    "zeros in the short last block": torch.cat([gaussian(64, seed=10), torch.zeros(7)]),
    "one block and one weight": gaussian(65, seed=11),
    "three": torch.tensor([0.5, -1.5, 0.2]),
    "ties": ties(),
    "ties in a short block": ties(48),
    "near ties": torch.cat([near_ties(64), near_ties(64) * -0.7]),
    "near ties in a short block": near_ties(48),
    "float16": gaussian(64, 64, seed=12).half(),
    "bfloat16": gaussian(64, 64, seed=13).bfloat16(),
    "float16, odd length": gaussian(777, seed=14).half(),
    "not contiguous": gaussian(64, 96, seed=15).t(),
    "three dimensions": gaussian(4, 8, 66, seed=16),
}


def by_bitsandbytes(bnb, weight: torch.Tensor, block_size: int, **arguments):
    """Packed bytes, state and restored weight.

    As one row: on AVX-512 bitsandbytes 0.50.2 restores a matrix wrongly unless its rows are whole blocks
    (its kernel starts a new block at each row, its quantiser does not).
    """
    packed, state = bnb.quantize_4bit(weight.flatten(), blocksize=block_size, **arguments)
    return packed.flatten(), state, bnb.dequantize_4bit(packed, state).reshape(weight.shape)


inputs = pytest.mark.parametrize("weight", INPUTS.values(), ids=INPUTS)
# The mean of the largest floats overflows: refused, and tested below.
AVERAGEABLE = {name: weight for name, weight in INPUTS.items() if name != "largest float"}
averageable = pytest.mark.parametrize("weight", AVERAGEABLE.values(), ids=AVERAGEABLE)
block_sizes = pytest.mark.parametrize("block_size", [32, 64, 256, 4096])


# --- against bitsandbytes ---------------------------------------------------------------------------


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


# --- against the definition -------------------------------------------------------------------------


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
    from lora_tutorial.encoders import load_encoder

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


# --- laws -------------------------------------------------------------------------------------------

lengths = st.integers(1, 400)
seeds = st.integers(0, 2**31)
blocks = st.sampled_from([2, 16, 64, 256])
names = st.sampled_from(sorted(TABLES))


def drawn(n: int, seed: int) -> torch.Tensor:
    """n weights: Gaussian, every third seed with heavy tails, every fifth with zeros."""
    weight = gaussian(n, seed=seed)
    if seed % 3 == 0:
        weight = weight**3
    if seed % 5 == 0:
        weight[torch.arange(n) % 7 < 3] = 0
    return weight


@settings(deadline=None)
@given(lengths, seeds, blocks, names)
def test_error_is_at_most_half_the_widest_gap_times_the_scale(n, seed, block_size, name):
    weight, levels = drawn(n, seed), TABLES[name]()
    quantized = quantize_4bit(weight, levels, block_size)
    bound = quantized.scales.repeat_interleave(block_size)[:n] * float(levels.diff().max()) / 2
    assert ((dequantize_4bit(quantized) - weight).abs() <= bound * (1 + 1e-5)).all()


@settings(deadline=None)
@given(lengths, seeds, blocks, names)
def test_quantising_twice_changes_nothing(n, seed, block_size, name):
    once = quantize_4bit(drawn(n, seed), TABLES[name](), block_size)
    twice = quantize_4bit(dequantize_4bit(once), TABLES[name](), block_size)
    assert torch.equal(once.packed, twice.packed)
    assert torch.equal(once.scales, twice.scales)


@settings(deadline=None)
@given(st.integers(1, 6), seeds, st.sampled_from([16, 64]))
def test_order_inside_a_block_does_not_matter(n_blocks, seed, block_size):
    weight = drawn(n_blocks * block_size, seed).view(n_blocks, block_size)
    order = torch.randperm(block_size, generator=torch.Generator().manual_seed(seed))
    plain, shuffled = quantize_nf4(weight, block_size), quantize_nf4(weight[:, order], block_size)
    assert torch.equal(shuffled.scales, plain.scales)
    assert torch.equal(
        shuffled.codes.view(n_blocks, block_size), plain.codes.view(n_blocks, block_size)[:, order]
    )


@settings(deadline=None)
@given(lengths, seeds, blocks, st.integers(-40, 40), st.booleans())
def test_a_power_of_two_moves_only_the_scales(n, seed, block_size, power, double):
    weight, factor = drawn(n, seed), 2.0**power
    plain, scaled = (
        quantize_nf4(weight, block_size, double),
        quantize_nf4(weight * factor, block_size, double),
    )
    assert torch.equal(scaled.packed, plain.packed)
    if double:
        assert torch.equal(scaled.scales.codes, plain.scales.codes)
        assert torch.equal(scaled.scales.absmax, plain.scales.absmax * factor)
    assert torch.equal(dequantize_nf4(scaled), dequantize_nf4(plain) * factor)


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=2, max_size=50).filter(lambda codes: len(codes) % 2 == 0))
def test_packing_can_be_undone(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)


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
