"""The fast layer beside the one the book shows: equal outputs, gradients, names and files."""

import copy

import pytest
import torch
from fast_checks import assert_same, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import relative
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_tutorial import (
    FastLoraLinear,
    LoraConfig,
    LoraLinear,
    disable_lora,
    inject_lora,
    load_adapter,
    lora_modules,
    merge_lora,
    save_adapter,
    unmerge_lora,
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


def test_at_zero_the_output_is_the_bases_bit_for_bit():
    base = nn.Linear(24, 17)
    layer = FastLoraLinear.from_linear(base, LoraConfig(r=3, lora_dropout=0.2))
    for tokens in (5, 60):
        x = torch.randn(tokens, 24)
        assert torch.equal(layer.train()(x), base(x)) and torch.equal(layer.eval()(x), base(x))
    assert isinstance(layer, FastLoraLinear) and layer.weight is base.weight


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    _, fast = pair(lora_dropout=0.3)
    x = torch.randn(6, 24)
    plain = run(fast, x)
    torch.manual_seed(5)
    again = x.clone().requires_grad_()
    y = checkpoint(fast, again, use_reentrant=reentrant)
    fast.zero_grad()
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(6)))
    assert torch.equal(y, plain["y"]) and torch.equal(again.grad, plain["x"])
    assert torch.equal(fast.lora_A.grad, plain["lora_A"]) and torch.equal(fast.lora_B.grad, plain["lora_B"])


@pytest.mark.slow
def test_compiled_it_is_one_graph_with_the_same_numbers():
    _, fast = pair()
    x = torch.randn(6, 24)
    eager = run(fast, x)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    found = {n.removeprefix("_orig_mod."): v for n, v in run(compiled, x).items()}
    assert_same(found, eager, TOLERANCE[torch.float32])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.head = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.query(x).tanh() * self.value(x))


@pytest.fixture
def models():
    """The same adapted model with both kinds of layer, and an input."""
    torch.manual_seed(0)
    base, config = Model(), LoraConfig(r=2, lora_alpha=5, modules_to_save=("head",))
    teaching = inject_lora(copy.deepcopy(base), config)
    for _, layer in lora_modules(teaching):
        nn.init.normal_(layer.lora_B)
    fast = inject_lora(copy.deepcopy(base), config, make=FastLoraLinear.from_linear)
    fast.load_state_dict(teaching.state_dict())  # the same names
    return base, teaching, fast, torch.randn(4, 12)


def test_in_a_model_it_merges_switches_off_and_trains_what_the_teaching_form_trains(models):
    base, teaching, fast, x = models
    assert list(fast.state_dict()) == list(teaching.state_dict())
    assert [p.requires_grad for p in fast.parameters()] == [p.requires_grad for p in teaching.parameters()]
    before = fast(x)
    assert relative(before, teaching(x)) < 1e-6 and relative(before, base(x)) > 1e-2
    with disable_lora(fast):
        assert torch.equal(fast(x), base(x))
    merge_lora(fast)
    assert relative(fast(x), before) < 1e-6 and torch.equal(fast(x), merge_lora(teaching)(x))
    assert torch.equal(unmerge_lora(fast)(x), before)


def test_saved_it_loads_as_either(models, tmp_path):
    base, _, fast, x = models
    loaded = load_adapter(save_adapter(fast, tmp_path), copy.deepcopy(base))
    assert type(loaded.query) is LoraLinear and relative(loaded(x), fast(x)) < 1e-6
    parameters = list(loaded.parameters())
    use_fast_layers(loaded)
    assert type(loaded.query) is FastLoraLinear and torch.equal(loaded(x), fast.eval()(x))
    assert all(a is b for a, b in zip(parameters, loaded.parameters(), strict=True))


def test_peft_computes_what_its_export_computes(tmp_path):
    from peft import PeftModel
    from peft_models import CONFIGS, base, logits, shake

    from lora_tutorial.adapters.peft import export_peft

    model = inject_lora(base(), CONFIGS["query and value"], make=FastLoraLinear.from_linear)
    ours = logits(shake(model))
    theirs = logits(PeftModel.from_pretrained(base(), export_peft(model, tmp_path)))
    assert relative(theirs, ours) < 1e-6 and relative(ours, logits(base())) > 1e-2


def test_packed_weights_are_refused():
    linear = nn.Linear(4, 3)
    linear.weight = nn.Parameter(torch.zeros(3, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TypeError, match="floating-point weight"):
        FastLoraLinear.from_linear(linear, LoraConfig(r=1))
