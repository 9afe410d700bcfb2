"""Layers that read one input, computed together: the outputs and gradients of each alone, in fewer passes."""

import copy

import pytest
import torch
from layer_checks import relative
from memory_checks import Arrays, kept
from torch import nn

from lora_tutorial import LoraConfig, linears_together, use_fast_layers, whole_gradient_pays
from lora_tutorial.lora.layers import LoraLinear

N_IN = 24


def layers(outs=(17, 6, 11), adapted=(True, False, True), bias=True, dtype=torch.float64, **config):
    """Layers from N_IN on, some adapted; lora_B is not zero, and ranks differ."""
    torch.manual_seed(0)
    made = []
    for place, (n_out, has) in enumerate(zip(outs, adapted, strict=True)):
        layer = nn.Linear(N_IN, n_out, bias, dtype=dtype).requires_grad_(False)
        if has:
            settings = {"r": 3 + place, "lora_alpha": 7, **config}
            layer = LoraLinear.from_linear(layer, LoraConfig(**settings))
            nn.init.normal_(layer.lora_B)
        made.append(layer)
    return use_fast_layers(nn.ModuleList(made)).train()


def step(model, x, together, dtype=None):
    """Outputs and all gradients: of the layers called one by one, or together."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        outputs = linears_together(x, model) if together else tuple(layer(x) for layer in model)
    draw = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=draw, dtype=y.dtype)).sum() for y in outputs)
    loss.backward()
    return {"x": x.grad, **{str(i): y.detach() for i, y in enumerate(outputs)}} | {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad
    }


def rows(tokens=10, dtype=torch.float64):
    return torch.randn(2, tokens // 2, N_IN, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("tokens", [10, 120], ids=["path", "sums formed"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapted", [(True, False, True), (True, True, True), (False, False, True)])
def test_together_they_give_what_each_gives_alone(tokens, bias, adapted):
    model = layers(adapted=adapted, bias=bias)
    if bias:
        model[0].bias.requires_grad_(True)
        model[1].bias.requires_grad_(True)
    found, expected = (step(model, rows(tokens), together) for together in (True, False))
    assert found.keys() == expected.keys() and len(found) == 4 + 2 * sum(adapted) + 2 * bias
    for name, value in expected.items():
        assert found[name].shape == value.shape and relative(found[name], value) < 1e-12, name
        assert value.norm() > 0, name


def test_gradients_are_those_of_differences_and_second_ones_are_refused():
    model = layers()
    own = [p for p in model.parameters() if p.requires_grad]
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def call(x, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Together(model), {f"model.{n}": v for n, v in given.items()}, (x,))

    x = rows().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *own), fast_mode=True)
    (first,) = torch.autograd.grad(call(x, *own)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class _Together(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return linears_together(x, self.model)


def hooked(model):
    model[0].register_forward_hook(lambda *_: None)


def replaced(model):
    model[2].forward = model[2].forward


def trains(model):
    model[1].weight.requires_grad_(True)


def half_in_use(model):
    model[0].eval()


@pytest.mark.parametrize("spoil", [hooked, replaced, trains, half_in_use, nn.Module.eval])
def test_where_it_cannot_be_had_the_layers_are_called_one_by_one(spoil):
    model = layers(dtype=torch.float32)
    spoil(model)
    x = rows(dtype=torch.float32)
    one_by_one = tuple(layer(x) for layer in model)
    assert all(torch.equal(a, b) for a, b in zip(linears_together(x, model), one_by_one, strict=True))
    with Arrays(10, sum(len(layer.lora_A) for layer in (model[0], model[2]))) as of_all:
        linears_together(x, model)
    assert not of_all.seen, "the low-rank products were taken together"


def test_a_hook_is_called_and_a_subclass_is_asked():
    model, seen = layers(), []
    model[2].register_forward_hook(lambda *_: seen.append("hook"))
    linears_together(rows(), model)
    assert seen == ["hook"]

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = layers()
    x = rows()
    expected = 2 * model[1](x)
    model[1].__class__ = Doubled
    assert torch.equal(linears_together(x, model)[1], expected)


@pytest.mark.parametrize(("config", "tokens"), [({"lora_dropout": 0.5}, 10), ({"r": 11}, 400)])
def test_dropout_and_high_ranks_are_left_to_the_layers(config, tokens):
    model = layers(outs=(24, 24, 24), **config)
    assert whole_gradient_pays(rows(tokens), 24, 11) == (tokens == 400)
    found = []
    for together in (True, False):
        torch.manual_seed(3)  # the same dropout
        found.append(step(model, rows(tokens), together))
    for name, value in found[1].items():
        assert torch.equal(found[0][name], value), name


def test_without_any_adapter_or_gradient_nothing_changes():
    model, x = layers(dtype=torch.float32), rows(dtype=torch.float32)
    with torch.no_grad():
        found = linears_together(x, model)
        assert all(torch.equal(y, layer(x)) for y, layer in zip(found, model, strict=True))
    plain = layers(adapted=(False,) * 3, dtype=torch.float32)
    assert all(torch.equal(y, layer(x)) for y, layer in zip(linears_together(x, plain), plain, strict=True))


def test_a_layer_that_is_merged_or_switched_off_adds_no_path():
    model, x = layers(), rows()
    expected = [layer(x).detach() for layer in model]
    model[0].merge()
    assert relative(linears_together(x, model)[0].detach(), expected[0]) < 1e-12
    model[0].unmerge()
    model[2].lora_enabled = False
    off = linears_together(x, model)
    assert torch.equal(off[2], nn.functional.linear(x, model[2].weight, model[2].bias))
    assert relative(off[0].detach(), expected[0]) < 1e-12
    (off[0].sum() + off[2].sum()).backward()
    assert model[0].lora_A.grad is not None and model[2].lora_A.grad is None


def test_autocast_gives_what_it_gives_each_layer():
    model, x = layers(dtype=torch.float32), rows(dtype=torch.float32)
    found, expected = (step(model, x, together, torch.bfloat16) for together in (True, False))
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and relative(found[name], value) < 3e-2, name


def test_the_inputs_gradient_is_one_array_and_no_more_is_kept():
    model, x = layers(outs=(17, 6, 11)), rows()
    made = []
    for together in (True, False):
        held = x.clone().requires_grad_()
        outputs = linears_together(held, model) if together else tuple(layer(held) for layer in model)
        loss = sum(y.sum() for y in outputs)
        with Arrays(10, N_IN) as flat, Arrays(2, 5, N_IN) as shaped:
            loss.backward()
        made.append(len(flat.seen.keys() | shaped.seen.keys()))
    assert made[0] == 1 < made[1]
    assert kept(_Together(model), x) <= kept(_OneByOne(model), x)


class _OneByOne(_Together):
    def forward(self, x):
        return tuple(layer(x) for layer in self.model)


def test_a_copy_computes_the_same():
    model = layers()
    found, expected = step(copy.deepcopy(model), rows(), True), step(model, rows(), True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
