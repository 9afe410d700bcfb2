"""One layer, over shapes, types, ranks and batch shapes; B is random unless zero is the point."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import relative
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lora_tutorial import LoraConfig, LoraLinear, lora_delta

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@st.composite
def cases(draw):
    """(layer with random B, same layer without adapter, input): in != out and alpha != r always."""
    n_in, n_out = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    n_out += n_in == n_out
    r = draw(st.integers(1, min(n_in, n_out)))
    alpha = draw(st.sampled_from([0.5, 3.0, 16.0]))
    alpha += alpha == r
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=draw(st.booleans()),
        init=draw(st.sampled_from(["kaiming", "gaussian"])),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    base = nn.Linear(n_in, n_out, bias=draw(st.booleans()), dtype=dtype)
    layer = LoraLinear.from_linear(base, config)
    nn.init.normal_(layer.lora_B)
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    return layer, base, torch.randn(*shape, n_in, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_forward_is_the_formula_and_differs_from_the_base(case):
    layer, base, x = case
    y = layer(x)
    assert not torch.equal(y, base(x))
    scale = layer.lora_config.lora_alpha / (
        layer.lora_config.r ** (0.5 if layer.lora_config.use_rslora else 1)
    )
    update = scale * layer.lora_B @ layer.lora_A  # written out here on purpose: the definition
    weight = base.weight + update
    expected = F.linear(x, weight, base.bias)
    assert y.shape == expected.shape and y.dtype == x.dtype
    # what is added up may cancel almost wholly: rounding is measured against the terms, not their sum
    bias = None if base.bias is None else base.bias.abs()
    terms = F.linear(x.abs(), base.weight.abs() + update.abs(), bias)
    assert (y - expected).norm() < TOLERANCE[x.dtype] * terms.norm()
    assert relative(layer.lora_delta(), weight - base.weight) < 1e-4
    assert torch.linalg.matrix_rank(layer.lora_delta().double(), tol=1e-4) <= layer.lora_config.r


@settings(max_examples=40, deadline=None)
@given(cases())
def test_at_zero_the_output_is_the_bases_bit_for_bit(case):
    layer, base, x = case
    nn.init.zeros_(layer.lora_B)
    assert torch.equal(layer(x), base(x))
    assert layer.lora_A.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(cases())
def test_merge_keeps_the_outputs_is_idempotent_and_unmerge_is_exact(case):
    layer, base, x = case
    before, unmerged = layer.weight.clone(), layer(x)
    assert not torch.equal(unmerged, base(x))
    layer.merge()
    once = layer.weight.clone()
    assert layer.merged and not torch.equal(once, before)
    assert relative(layer(x), unmerged) < TOLERANCE[x.dtype]
    layer.merge()
    assert torch.equal(layer.weight, once)
    layer.train().eval()  # neither mode touches a weight
    assert torch.equal(layer.weight, once)
    layer.unmerge()
    assert torch.equal(layer.weight, before) and torch.equal(layer(x), unmerged)
    layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_subtracting_would_not_give_the_weight_back():
    torch.manual_seed(0)
    layer = LoraLinear(64, 48, config=LoraConfig(r=4, lora_alpha=16))
    nn.init.normal_(layer.lora_B)
    delta = layer.lora_delta()
    assert not torch.equal((layer.weight + delta) - delta, layer.weight)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_gradients_reach_the_factors_only_and_match_autograd_of_the_formula(case):
    layer, base, x = case
    layer(x).square().sum().backward()
    assert layer.weight.grad is None and (layer.bias is None or layer.bias.grad is None)
    A, B = layer.lora_A.detach().clone().requires_grad_(), layer.lora_B.detach().clone().requires_grad_()
    F.linear(x, base.weight + layer.scaling * B @ A, base.bias).square().sum().backward()
    assert relative(layer.lora_A.grad, A.grad) < 10 * TOLERANCE[x.dtype]
    assert relative(layer.lora_B.grad, B.grad) < 10 * TOLERANCE[x.dtype]


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t)
        }
        return out


def test_the_product_is_never_formed_while_training():
    layer = LoraLinear(6, 5, config=LoraConfig(r=2))
    with Shapes() as shapes:
        layer(torch.randn(3, 6)).sum().backward()
    assert {(3, 2), (3, 5), (2, 6), (5, 2)} <= shapes.seen
    assert (5, 6) not in shapes.seen
    with Shapes() as shapes:
        layer.lora_delta()
    assert (5, 6) in shapes.seen


def test_dropout_acts_on_the_low_rank_path_only_and_only_in_training():
    torch.manual_seed(0)
    layer = LoraLinear(32, 16, config=LoraConfig(r=4, lora_dropout=0.5)).train()
    x = torch.randn(8, 32)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))  # B = 0: dropout changes nothing
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases_get_single_precision_adapters(dtype):
    torch.manual_seed(0)
    layer = LoraLinear.from_linear(nn.Linear(16, 8).to(dtype), LoraConfig(r=2, lora_alpha=6))
    nn.init.normal_(layer.lora_B)
    y = layer(torch.randn(3, 16, dtype=dtype))
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32 and y.dtype == dtype
    layer.merge()
    assert layer.weight.dtype == dtype


def test_kaiming_and_gaussian_have_the_spread_they_name():
    torch.manual_seed(0)
    a = LoraLinear(768, 768, config=LoraConfig(r=8)).lora_A
    assert a.abs().max() <= 768**-0.5 and abs(a.std() * 768**0.5 - 3**-0.5) < 0.02
    assert abs(LoraLinear(768, 768, config=LoraConfig(r=8, init="gaussian")).lora_A.std() * 8 - 1) < 0.05


def test_a_checkpoint_of_the_plain_layer_loads():
    base, layer = nn.Linear(5, 4), LoraLinear(5, 4, config=LoraConfig(r=2))
    result = layer.load_state_dict(base.state_dict(), strict=False)
    assert result.missing_keys == ["lora_A", "lora_B"] and not result.unexpected_keys
    x = torch.randn(2, 5)
    assert torch.equal(layer(x), base(x))


def test_infinite_merges_are_refused_and_leave_the_weight():
    layer = LoraLinear(4, 3, config=LoraConfig(r=1))
    before = layer.weight.clone()
    nn.init.constant_(layer.lora_B, float("inf"))
    with pytest.raises(ValueError, match="infinite or NaN"):
        layer.merge()
    assert torch.equal(layer.weight, before) and not layer.merged


def test_bad_ranks_and_shapes():
    with pytest.raises(ValueError, match="r = 5 is above 4"):
        LoraLinear(4, 9, config=LoraConfig(r=5))
    with pytest.raises(ValueError, match="lora_A must be"):
        lora_delta(torch.zeros(2, 3), torch.zeros(4, 3), 1.0)


def test_1024_square_at_rank_4_has_0_78_percent():
    layer = LoraLinear(1024, 1024, config=LoraConfig(r=4), device="meta")
    trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert trainable == 8192 and layer.weight.numel() == 1_048_576
    assert f"{100 * trainable / layer.weight.numel():.2f}" == "0.78"
