"""NF4 by hand against its own laws, on weights that hypothesis draws."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_to_quantise import TABLES, gaussian

from lora_tutorial.quant.nf4 import (
    dequantize_4bit,
    dequantize_nf4,
    pack_codes,
    quantize_4bit,
    quantize_nf4,
    unpack_codes,
)

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
