"""Without instructions for bfloat16 the products are those of rounded factors, added up in float32."""

import subprocess
import sys
import textwrap

import pytest
import tiny
import torch
from training_runs import run

from lora_tutorial.training import bfloat16, setup

BF16 = torch.bfloat16
SHAPES = {"mm": ((5, 40), (40, 3)), "bmm": ((2, 5, 40), (2, 40, 3))}
SHAPES |= {"addmm": ((3,), *SHAPES["mm"]), "baddbmm": ((2, 1, 3), *SHAPES["bmm"])}
SCALED = {"addmm", "baddbmm"}


def factors(name, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES[name]]


@pytest.mark.parametrize("name", SHAPES)
def test_a_product_is_the_exact_one_of_the_rounded_factors_rounded_once(name):
    given, scales = factors(name, BF16), {"beta": 0.5, "alpha": 2} if name in SCALED else {}
    found = bfloat16.PRODUCTS[name](*given, **scales)
    exact = getattr(torch, name)(*(factor.double() for factor in given), **scales)
    assert found.dtype is BF16
    # half of the last of eight bits
    assert (found.double() - exact).abs().max() <= 2.0**-8 * exact.abs().max()


@pytest.mark.parametrize("name", SHAPES)
def test_other_types_keep_their_bits(name):
    given, scales = factors(name, torch.float32), {"beta": 0.5, "alpha": 2} if name in SCALED else {}
    assert torch.equal(bfloat16.PRODUCTS[name](*given, **scales), getattr(torch, name)(*given, **scales))


IN_A_PROCESS = """
import torch
from torch.nn.functional import linear
from lora_tutorial.training import bfloat16

torch.manual_seed(0)
x, W, b = torch.randn(2, 7, 64), torch.randn(48, 64, requires_grad=True), torch.randn(48)

def step(precise):
    W.grad = None
    if precise:
        h = linear(x, W, b)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            h = linear(x, W, b)
    h.float().square().sum().backward()
    return h.detach().float(), W.grad

before, theirs = step(True), step(False)
bfloat16.add_up_in_float32()
after, ours = step(True), step(False)
assert all(torch.equal(*pair) for pair in zip(before, after))
for pair in zip(ours, theirs):
    assert torch.allclose(*pair, rtol=2**-6, atol=2**-6 * pair[1].abs().max()), pair
assert bfloat16.add_up_in_float32() is bfloat16.add_up_in_float32()
print(ours[0].dtype, (ours[1] - before[1]).abs().max() > 0)
"""


def test_a_linear_layer_and_its_gradients_follow_and_float32_stays_as_it_was():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IN_A_PROCESS)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "True" in done.stdout  # rounded: not float32's own gradients


@pytest.mark.parametrize(
    ("precision", "supported", "expected"), [("bf16", False, 1), ("bf16", True, 0), ("no", False, 0)]
)
def test_only_a_bfloat16_run_without_instructions_takes_them(monkeypatch, precision, supported, expected):
    calls = []
    monkeypatch.setattr(setup, "has_bfloat16", lambda: supported)
    monkeypatch.setattr(setup, "add_up_in_float32", lambda: calls.append(1))
    run(recipe=tiny.recipe(mixed_precision=precision), cpu=True)
    assert len(calls) == expected


def test_a_torch_without_onednn_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert bfloat16.has_bfloat16()
