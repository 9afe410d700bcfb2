"""The figures about numbers compute what the package computes: bytes, four bits, rounded sums."""

import numpy as np
import pytest
import torch
from touch_figures import SIZES, UPDATES, WEIGHTS, call, said

from lora_tutorial.explorables.numbers import (
    FROZEN_BYTES,
    STATE_BYTES,
    four_bits,
    memory_bill,
    merge_rounding,
    step_memory,
)
from lora_tutorial.quant.nf4 import dequantize_4bit, fp4_levels, int4_levels, nf4_levels, quantize_4bit

TABLES = {"NF4": nf4_levels(), "FP4": fp4_levels(), "int4": int4_levels()}


def test_full_training_in_fp32_with_adamw_takes_sixteen_bytes_and_a_frozen_weight_only_its_own():
    assert sum(step_memory(1000, 1).values()) == 16_000
    assert step_memory(1000, 0, "bf16") == {"frozen": 2000, "trained": 0, "gradients": 0, "state": 0}
    assert step_memory(1000, 0.5, "fp32", "SGD") == {
        "frozen": 2000,
        "trained": 2000,
        "gradients": 2000,
        "state": 0,
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: memory_bill({}), "needs a model"),
        (lambda: memory_bill(SIZES, 2), "0.0001 to 1"),
        (lambda: four_bits([1.0], "x"), "at least two"),
        (lambda: four_bits([1.0, np.nan], "x"), "finite"),
        (lambda: merge_rounding([1.0], [0.0], "x"), "none of them zero"),
        (lambda: merge_rounding([1.0], [1.0, 2.0], "x"), "as many"),
    ],
)
def test_what_a_figure_cannot_show_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.37, 1])
def test_the_bill_in_the_page_is_the_packages(page, share):
    for total in SIZES.values():
        for frozen, weight in FROZEN_BYTES.items():
            for optimizer, state in STATE_BYTES.items():
                found = call(page, "memory_bill", "bill", total, share, weight, state)
                assert found == pytest.approx(step_memory(total, share, frozen, optimizer), abs=4)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0.0, 0.013, -0.4, 1e-9])
def test_four_bits_in_the_page_are_the_packages_to_the_bit(page, first):
    block = torch.from_numpy(WEIGHTS).clone()
    block[0] = first
    for levels in TABLES.values():
        expected = dequantize_4bit(quantize_4bit(block, levels, 64))
        found = call(page, "four_bits", "round", block.tolist(), levels.tolist())
        assert torch.equal(torch.tensor(found), expected)
        error = call(page, "four_bits", "error", block.tolist(), found)
        assert error == pytest.approx(((expected - block).norm() / block.norm()).item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "digits", "lowest"),
    [("bf16", torch.bfloat16, 7, -126), ("fp16", torch.float16, 10, -14), ("fp32", torch.float32, 23, -126)],
)
@pytest.mark.parametrize("relative", [1, 0.01, 1e-4])
def test_merging_in_the_page_rounds_as_torch_does(page, name, dtype, digits, lowest, relative):
    weight, update = torch.from_numpy(WEIGHTS), torch.from_numpy(UPDATES)
    base, wanted = weight.to(dtype), update * (relative * weight.norm() / update.norm())
    got = (base.float() + wanted).to(dtype).float() - base.float()
    found = call(page, "merge_rounding", "merge", {"digits": digits, "lowest": lowest}, relative)
    assert found["error"] == pytest.approx(((got - wanted).norm() / wanted.norm()).item(), rel=1e-3, abs=1e-7)
    np.testing.assert_allclose(found["arrived"], got / wanted, atol=1e-3)


@pytest.mark.slow
def test_a_typed_number_is_read_with_a_comma_too_and_a_word_is_not(page):
    page.fill("[data-in=value]", "0,02")
    assert said(page, "four_bits").startswith("0.02000 becomes")
    page.fill("[data-in=value]", "two")
    assert said(page, "four_bits").startswith("Type a number")
