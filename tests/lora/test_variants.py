"""rsLoRA, LoRA+, DoRA, PiSSA beside the laws (tests/test_laws.py): any shape, invariants, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_models import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import relative
from peft_models import shake
from torch import nn
from torch.nn import functional as F

from lora_tutorial import LoraConfig, lora_modules
from lora_tutorial.lora.variants import (
    VARIANTS,
    DoraLinear,
    PissaLinear,
    inject_variant,
    loraplus_groups,
)

pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
LORA = LoraConfig(r=3, lora_alpha=7, target_modules=("0", "2"))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6, bias=False), nn.Linear(6, 2))


@st.composite
def cases(draw):
    """(variant, adapted layer off its start, layer it came from, input); in != out and alpha != r always."""
    n_in, n_out = draw(st.integers(2, 20)), draw(st.integers(2, 20))
    n_out += n_in == n_out
    r = draw(st.integers(1, min(n_in, n_out)))
    variant = draw(st.sampled_from(sorted(VARIANTS)))
    config = LoraConfig(r=r, lora_alpha=draw(st.sampled_from([0.5, 2.5])), target_modules=("0",))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    linear = nn.Linear(n_in, n_out, bias=draw(st.booleans()), dtype=dtype)
    layer = inject_variant(nn.Sequential(copy.deepcopy(linear)), config, variant)[0]
    for parameter in (p for p in layer.parameters() if p.requires_grad):
        parameter.data += 0.3 * torch.randn_like(parameter)
    shape = draw(st.lists(st.integers(1, 4), max_size=2))
    return variant, layer, linear, torch.randn(*shape, n_in, dtype=dtype)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_output_gradients_and_merging_are_the_formulas(case):
    variant, layer, linear, x = case
    factors = layer.lora_factors()["weight"]
    copies = [f.detach().clone().requires_grad_() for f in factors]
    weight = KINDS[variant].weight(linear.weight, layer.lora_config, *copies)
    expected, y = F.linear(x, weight, linear.bias), layer(x)
    assert relative(y, expected) < TOLERANCE[x.dtype]
    assert not torch.allclose(y, linear(x))
    if variant != "dora":
        assert torch.linalg.matrix_rank(layer.lora_delta().double(), tol=1e-4) <= layer.lora_config.r
    expected.square().sum().backward()
    y.square().sum().backward()
    for factor, copied in zip(factors, copies, strict=True):
        assert relative(factor.grad, copied.grad) < 50 * TOLERANCE[x.dtype]
    assert relative(layer.weight + layer.lora_delta(), weight) < TOLERANCE[x.dtype]

    layer.eval()  # a training step may be arranged in another way, by rounding
    before, delta, answer = layer.weight.clone(), layer.lora_delta(), layer(x)
    assert relative(answer, y) < TOLERANCE[x.dtype]
    layer.merge()
    once = layer.weight.clone()
    assert relative(once, weight) < TOLERANCE[x.dtype] and relative(layer(x), y) < TOLERANCE[x.dtype]
    layer.merge()
    layer.train().eval()  # neither mode touches a weight
    assert torch.equal(layer.weight, once) and torch.equal(layer.lora_delta(), delta)
    layer.unmerge()
    assert torch.equal(layer.weight, before) and torch.equal(layer(x), answer)


# ---- the invariant of each --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dora_is_the_base_bit_for_bit_at_its_start(dtype):
    linear, x = nn.Linear(33, 20).to(dtype), torch.randn(7, 33, dtype=dtype)
    layer = DoraLinear.from_linear(linear, LoraConfig(r=4, lora_alpha=9, lora_dropout=0.3))
    assert torch.equal(layer.eval()(x), linear(x)) and torch.equal(layer.train()(x), linear(x))
    assert layer.lora_magnitude.shape == (20,)
    assert layer.lora_magnitude.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_doras_rows_have_the_length_of_its_magnitudes_wherever_b_and_a_point():
    layer = DoraLinear.from_linear(nn.Linear(30, 20), LoraConfig(r=4))
    shake(layer, 1.0)
    weight = layer.weight + layer.lora_delta()
    assert torch.allclose(weight.norm(dim=1), layer.lora_magnitude.abs(), rtol=1e-5)
    assert torch.linalg.matrix_rank(layer.lora_delta().double(), tol=1e-4) == 20  # well above r


@pytest.mark.parametrize("rslora", [False, True])
def test_pissas_parts_sum_to_the_weight_and_the_largest_are_in_the_adapter(rslora):
    linear = nn.Linear(30, 20)
    before, sigma = linear.weight.clone(), torch.linalg.svdvals(linear.weight)
    layer = PissaLinear.from_linear(linear, LoraConfig(r=4, lora_alpha=9, use_rslora=rslora))
    assert torch.equal(linear.weight, before) and not layer.weight.requires_grad
    assert relative(layer.weight + layer.lora_delta(), before) < 1e-6
    assert relative(layer.pretrained(), before) < 1e-6
    assert torch.allclose(torch.linalg.svdvals(layer.lora_delta())[:4], sigma[:4], rtol=1e-5)
    assert torch.allclose(torch.linalg.svdvals(layer.weight)[:16], sigma[4:], rtol=1e-5)
    shake(layer)  # the start stays the start
    assert relative(layer.pretrained(), before) < 1e-6 and relative(layer.lora_delta(), before) > 0.1


def size_of_the_first_update(r: int, variant: str) -> float:
    """Root mean square of what the layer's output gains by one step of Adam, on tokens not trained on."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    inject_variant(model, LoraConfig(r=r, lora_alpha=16, target_modules=("0",)), variant)
    x, teacher, fresh = torch.randn(512, 256), torch.randn(256, 256), torch.randn(512, 256)
    before = model(fresh).detach()
    optimizer = torch.optim.Adam(VARIANTS[variant].groups(model, 1e-3))
    (model(x) - x @ teacher).square().sum().backward()
    optimizer.step()
    return (model(fresh) - before).square().mean().sqrt().item()


def test_rsloras_scale_keeps_the_size_of_the_update_as_the_rank_grows():
    plain, stable = (
        [size_of_the_first_update(r, variant) for r in (1, 8, 64)] for variant in ("lora", "rslora")
    )
    assert max(stable) < 1.2 * min(stable)
    assert plain[2] / plain[0] == pytest.approx(1 / 8, rel=0.2)  # one over the root of 64: it fades


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: inject_variant(layers(), LORA, "lora++"), ValueError, "one of lora, rslora"),
        (lambda: DoraLinear(4, 5), TypeError, r"DoraLinear\.from_linear"),
        (lambda: PissaLinear(4, 5), TypeError, r"PissaLinear\.from_linear"),
        (
            lambda: inject_variant(
                layers(), LoraConfig(r=2, target_modules=("0",), lora_dropout=0.1), "pissa"
            ),
            ValueError,
            "lora_dropout to 0; got 0.1",
        ),
        (lambda: loraplus_groups(layers(), 1e-3), ValueError, "No lora_B trains"),
        (lambda: loraplus_groups(inject_variant(layers(), LORA), 1e-3, ratio=0), ValueError, "ratio must"),
        (lambda: loraplus_groups(inject_variant(layers(), LORA), float("nan")), ValueError, "lr must"),
        (
            lambda: loraplus_groups(inject_variant(layers(), LORA), 1e-3, weight_decay=-1),
            ValueError,
            "weight_decay",
        ),
    ],
)
def test_bad_input_is_refused(act, error, says):
    with pytest.raises(error, match=says):
        act()


def test_what_a_layer_cannot_hold_is_refused_before_any_change():
    model = layers()
    model[2].weight.data[1:3] = 0
    with pytest.raises(ValueError, match="2 of 6 rows of this weight are zero"):
        inject_variant(model, LORA, "dora")
    assert not list(lora_modules(model)) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("variant", ["dora", "pissa"])
def test_packed_weights_are_refused(variant):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32).to("cpu")
    with pytest.raises(TypeError, match="dequantize_linears"):
        inject_variant(nn.Sequential(layer), LoraConfig(target_modules=("0",)), variant)
