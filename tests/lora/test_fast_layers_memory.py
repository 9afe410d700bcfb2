"""The fast layer beside the one the book shows: fewer new arrays, and nothing kept that is not needed."""

import pytest
import torch
from fast_checks import pair
from memory_checks import Arrays, kept
from torch import nn

from lora_tutorial import FastLoraLinear, LoraConfig, whole_gradient_pays


def half_precision(dtype):
    """A fast layer on a base of this type."""
    return FastLoraLinear.from_linear(nn.Linear(24, 17).to(dtype), LoraConfig(r=3))


def new_arrays(layer):
    """How many (tokens, out) arrays the forward pass makes, and how many (tokens, in) the backward pass."""
    x = torch.randn(11, 24, requires_grad=True)
    with Arrays(11, 17) as forward:
        y = layer(x)
    grad = torch.randn(11, 17)
    with Arrays(11, 24) as backward:
        y.backward(grad)
    return len(forward.seen), len(backward.seen)


def test_products_write_into_what_is_there():
    teaching, fast = pair()
    assert new_arrays(fast) == (1, 1)
    assert new_arrays(teaching) == (4, 3)


@pytest.mark.parametrize(
    ("tokens", "dtype", "p", "forward", "backward"),
    [
        (34, torch.float32, 0.0, 0, 0),
        (40, torch.float32, 0.0, 0, 1),  # more than twice the 17 outputs
        (60, torch.float32, 0.0, 1, 1),  # more than twice the 24 inputs
        (60, torch.float32, 0.3, 0, 0),  # dropout acts on the low-rank path alone
        (60, torch.bfloat16, 0.0, 0, 0),
    ],
)
def test_the_sum_with_the_weight_is_formed_only_for_many_tokens(tokens, dtype, p, forward, backward):
    fast = pair(lora_dropout=p)[1] if dtype == torch.float32 else half_precision(dtype)
    x = torch.randn(tokens, 24, dtype=dtype, requires_grad=True)
    with Arrays(17, 24) as sums, Arrays(tokens, 17) as outputs:
        y = fast(x)
    assert (len(sums.seen), len(outputs.seen)) == (forward, 1)
    with Arrays(17, 24) as sums:
        y.backward(torch.randn(tokens, 17).to(dtype))
    assert len(sums.seen) == backward
    mask = tokens * 24 if p else 0
    assert kept(fast, x) == tokens * (24 + 3) * x.element_size() + mask  # the sum is not kept


@pytest.mark.parametrize(("r", "whole"), [(3, False), (6, True), (12, True)])
def test_from_some_rank_on_the_gradients_come_from_the_sums_own(r, whole):
    _, fast = pair(r=r)
    x = torch.randn(60, 24, requires_grad=True)
    assert whole_gradient_pays(x, 17, r) == whole
    with Arrays(17, 24) as sums:
        y = fast(x)
    assert len(sums.seen) == 1
    with Arrays(17, 24) as gradients:
        y.backward(torch.randn(60, 17))
    assert len(gradients.seen) == 1 + whole  # the sum, kept or formed once more, and its gradient
    # the sum is kept instead of x A', and scaling * B
    assert kept(fast, x) == (60 * 24 + (17 * (24 + r) if whole else 60 * r)) * 4
    _, fast = pair(r=r, lora_dropout=0.3)  # it acts on the low-rank path alone
    with Arrays(17, 24) as sums:
        fast(x).sum().backward()
    assert not sums.seen


def test_memory_kept_is_what_the_teaching_form_keeps_or_less():
    x = torch.randn(50, 24, requires_grad=True)
    teaching, fast = pair()
    assert kept(fast, x) == kept(teaching, x) == 50 * (24 + 3) * 4  # the input and x A'
    teaching, fast = pair(lora_dropout=0.3)
    assert kept(fast, x) == 50 * (24 + 3) * 4 + 50 * 24  # and a mask of bytes
    assert kept(teaching, x) == 50 * (24 + 3) * 4 + 50 * 24 * 4  # a mask of floats; its input is a new one
    assert kept(fast, x, without=[x]) < kept(teaching, x, without=[x]) / 5  # beside an input that others keep
    context = torch.autocast("cpu", torch.bfloat16)
    teaching, fast = pair()
    assert kept(fast, x, context) == 50 * (24 + 3) * 2
    assert kept(teaching, x, context) > 50 * (24 + 3) * 2 + 24 * 17 * 2  # a copy of the weight as well


@pytest.mark.parametrize(
    ("trains", "numbers"),
    [
        (("lora_A", "lora_B"), 24 + 3),
        (("lora_A",), 24),
        (("lora_B",), 3),
        (("weight",), 24),
        (("bias",), 0),
        ((), 0),
    ],
)
def test_what_no_gradient_needs_is_not_kept(trains, numbers):
    teaching, fast = pair()
    for layer in (teaching, fast):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in trains)
    x = torch.randn(50, 24, requires_grad=True)
    assert kept(fast, x) == 50 * numbers * 4 <= kept(teaching, x)
