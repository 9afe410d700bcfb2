"""The fast layer beside the one the book shows: equal outputs and gradients, whatever trains."""

import pytest
import torch
from fast_checks import assert_same, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import relative
from torch import nn

from lora_tutorial import (
    FastLoraLinear,
    LoraConfig,
    LoraLinear,
    use_fast_layers,
)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def run(layer, x, grad=None, context=None):
    """Output and every gradient of one pass, the generator reset so that dropout draws the same."""
    torch.manual_seed(5)
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    with context or torch.enable_grad():
        y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)) if grad is None else grad
    layer.zero_grad()
    y.backward(grad.to(y.dtype))
    return {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


@st.composite
def cases(draw):
    sizes = st.integers(1, 20)
    n_in, n_out = draw(sizes), draw(sizes)
    settings = {
        "r": draw(st.integers(1, min(n_in, n_out))),
        "lora_alpha": draw(st.sampled_from([0.5, 3.0, 16.0])),
        "lora_dropout": draw(st.sampled_from([0.0, 0.0, 0.3])),
        "use_rslora": draw(st.booleans()),
    }
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    layers = pair(n_in, n_out, draw(st.booleans()), dtype, draw(st.integers(0, 999)), **settings)
    trains = {n: draw(st.booleans()) for n in ("weight", "bias", "lora_A", "lora_B")}
    training = draw(st.booleans())
    for layer in layers:
        layer.train(training)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(trains[name])
    shape = draw(st.lists(st.integers(0, 4), min_size=0, max_size=3))
    return *layers, torch.randn(*shape, n_in, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_outputs_and_gradients_are_the_teaching_forms(case):
    teaching, fast, x = case
    assert type(fast) is FastLoraLinear
    assert_same(run(fast, x), run(teaching, x), 4 * TOLERANCE[x.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 200])  # with 200 a training step would form the sum
def test_it_answers_as_the_teaching_form_bit_for_bit(tokens, dtype):
    teaching, fast = pair(24, 17, lora_dropout=0.3)
    x = torch.randn(tokens, 24, dtype=dtype)
    for layer in (teaching, fast):
        layer.weight.data, layer.bias.data = layer.weight.data.to(dtype), layer.bias.data.to(dtype)
        layer.eval()
    assert torch.equal(fast(x), teaching(x))
    for layer in (teaching, fast):
        layer.train().lora_dropout.p = 0.0
    with torch.no_grad():
        assert torch.equal(fast(x), teaching(x))
    assert tokens == 3 or not torch.equal(fast(x), teaching(x)), "a training step does compute differently"


@pytest.mark.parametrize("tokens", [160, 1600])
@pytest.mark.parametrize("r", [1, 64])
def test_at_a_models_sizes_too(r, tokens):
    teaching, fast = pair(192, 384, r=r, lora_alpha=2 * r)
    x = torch.randn(4, tokens // 4, 192).transpose(0, 1)  # not contiguous
    assert_same(run(fast, x), run(teaching, x), TOLERANCE[torch.float32])


@pytest.mark.parametrize("tokens", [3, 12])  # with 12 the sum of weight and update is formed
@pytest.mark.parametrize("trains", [("lora_A", "lora_B"), ("lora_A",), ("lora_B", "bias"), ("weight",), ()])
def test_gradients_are_those_of_differences_in_double_precision(trains, tokens):
    _, fast = pair(5, 4, dtype=torch.float64, r=2)
    parameters = {n: p.detach().requires_grad_(n in trains) for n, p in fast.named_parameters()}
    x = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(fast, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()), fast_mode=True)


def test_second_derivatives_are_refused_not_wrong():
    _, fast = pair()
    x = torch.randn(3, 24, requires_grad=True)
    (first,) = torch.autograd.grad(fast(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_autocast_computes_all_in_half_precision_and_keeps_gradients_whole(p):
    teaching, fast = pair(64, 48, lora_dropout=p)
    x = torch.randn(3, 20, 64)
    context = torch.autocast("cpu", torch.bfloat16)
    ours, theirs = run(fast, x, context=context), run(teaching, x, context=context)
    assert ours["y"].dtype == torch.bfloat16 and ours["lora_A"].dtype == ours["x"].dtype == torch.float32
    assert_same(ours, theirs, 2e-2)
    exact = run(teaching, x)
    assert all(relative(ours[n].float(), exact[n]) < 1e-2 for n in ("y", "x", "lora_A", "lora_B"))


def test_a_base_in_half_precision_keeps_single_precision_factors():
    base = nn.Linear(64, 48).to(torch.bfloat16)
    fast = FastLoraLinear.from_linear(base, LoraConfig(r=4, lora_alpha=8))
    teaching = LoraLinear.from_linear(base, LoraConfig(r=4, lora_alpha=8))
    nn.init.normal_(fast.lora_B)
    teaching.load_state_dict(fast.state_dict())
    x = torch.randn(30, 64, dtype=torch.bfloat16)
    assert fast.lora_A.dtype == torch.float32
    assert_same(run(fast, x), run(teaching, x), 2e-2)
    with pytest.raises(RuntimeError, match="dtype"):
        fast(x.float())  # as any layer in half precision does


def test_a_training_step_runs_on_the_meta_device_where_shapes_are_counted():
    layer = FastLoraLinear.from_linear(nn.Linear(24, 17, device="meta"), LoraConfig(r=3)).train()
    y = layer(torch.empty(5, 24, device="meta", requires_grad=True))
    y.sum().backward()
    assert y.shape == (5, 17) and layer.lora_B.grad.shape == (17, 3)


@pytest.mark.slow
def test_compiled_it_is_one_graph_with_the_same_numbers():
    _, fast = pair()
    x = torch.randn(6, 24)
    eager = run(fast, x)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    found = {n.removeprefix("_orig_mod."): v for n, v in run(compiled, x).items()}
    assert_same(found, eager, TOLERANCE[torch.float32])


def test_layers_that_are_there_become_fast_and_keep_their_parameters():
    teaching, other = pair()[0], nn.Linear(4, 4)
    model = use_fast_layers(nn.Sequential(teaching, other))
    assert model[0] is teaching and type(teaching) is FastLoraLinear and type(other) is nn.Linear


def test_packed_weights_are_refused():
    linear = nn.Linear(4, 3)
    linear.weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TypeError, match="floating-point weight"):
        FastLoraLinear.from_linear(linear, LoraConfig(r=1))
