"""The fast attention beside the one the book shows: equal outputs, gradients, names and files."""

import copy

import pytest
import torch
from attention_checks import by_hand, encoder
from fast_checks import assert_same
from memory_checks import Arrays, kept

from lora_tutorial import disable_lora, lora_modules, whole_gradient_pays
from lora_tutorial.adapters.peft_layout import peft_layout
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias
from lora_tutorial.models.fast_roberta import FastLoraRobertaSelfAttention, use_fast_attention


def pair(implementation="sdpa", dtype=torch.float32, bias="none", **rank):
    """The same adapted encoder with both kinds of attention; what trains is factors, and biases if asked."""
    teaching = by_hand(encoder(implementation), **rank).to(dtype).train()
    freeze_parameters_except_lora_and_bias(teaching, bias)
    return teaching, use_fast_attention(copy.deepcopy(teaching))


def run(model, batch, context=None):
    """The last hidden state and the gradient of everything that trains, dropout drawn the same."""
    torch.manual_seed(5)
    model.zero_grad()
    with context or torch.enable_grad():
        y = model(**batch).last_hidden_state
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).to(y.dtype))
    return {"y": y.detach()} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_the_teaching_forms(implementation, bias, dtype, batch):
    teaching, fast = pair(implementation, dtype, bias)
    kinds = {type(module) for _, module in lora_modules(fast)}
    assert kinds == {FastLoraRobertaSelfAttention}
    assert list(fast.state_dict()) == list(teaching.state_dict())
    found, expected = run(fast, batch), run(teaching, batch)
    keys = "attention.self.key.bias"  # its gradient is zero but for rounding: softmax does not feel it
    for grads in (found, expected):
        for name in [n for n in grads if n.endswith(keys)]:
            value = grads.pop(name)
            assert (value is None) == (bias == "none") and (value is None or value.norm() < 1e-4)
    assert_same(found, expected, {torch.float32: 5e-6, torch.float64: 1e-13}[dtype])


def attention(dtype=torch.float32, tokens=5, **rank):
    """One attention of each kind and an input that needs a gradient, (2, tokens, 24)."""
    teaching, fast = (
        model.encoder.layer[0].attention.self.requires_grad_(False) for model in pair(dtype=dtype, **rank)
    )
    for module in (teaching, fast):
        module.dropout.p = 0.0
        for pair_ in module.lora_factors().values():
            for factor in pair_:
                factor.requires_grad_(True)
    return teaching, fast, torch.randn(2, tokens, 24, dtype=dtype, requires_grad=True)


# With 30 tokens in each of two sequences the sums are formed, at rank 16 with their whole gradients.
@pytest.mark.parametrize(("tokens", "rank"), [(5, {}), (30, {}), (30, {"r": 16})])
def test_one_attention_passes_the_same_gradient_to_its_input(tokens, rank):
    teaching, fast, x = attention(torch.float64, tokens, **rank)
    assert whole_gradient_pays(x, 24, len(fast.lora_query_A)) == bool(rank)
    (theirs,) = torch.autograd.grad(teaching(x)[0].square().sum(), x)
    (ours,) = torch.autograd.grad(fast(x)[0].square().sum(), x)
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for name, pair_ in teaching.lora_factors().items():
        for mine, other in zip(fast.lora_factors()[name], pair_, strict=True):
            (a,) = torch.autograd.grad(fast(x)[0].square().sum(), mine)
            (b,) = torch.autograd.grad(teaching(x)[0].square().sum(), other)
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12) and b.norm() > 0


@pytest.mark.parametrize(("rank", "whole"), [(3, False), (16, True)])
def test_at_a_high_rank_gradients_come_from_the_sums_own(rank, whole):
    _, fast, x = attention(tokens=30, r=rank)
    y = fast(x)[0].sum()
    with Arrays(24, 24) as gradients:
        y.backward()
    weights = {p.untyped_storage().data_ptr() for p in fast.parameters()}
    assert bool(gradients.seen.keys() - weights) == whole


def test_gradients_are_those_of_differences_in_double_precision():
    _, fast, x = attention(torch.float64)
    fast.query.bias.requires_grad_(True)
    own = {n: p for n, p in fast.named_parameters() if p.requires_grad}

    def call(x, *values):
        return torch.func.functional_call(fast, dict(zip(own, values, strict=True)), (x,))[0]

    assert len(own) == 5 and torch.autograd.gradcheck(call, (x, *own.values()), fast_mode=True)
    (first,) = torch.autograd.grad(fast(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_autocast_gives_what_it_gives_the_teaching_form(batch):
    teaching, fast = pair()
    context = torch.autocast("cpu", torch.bfloat16)
    assert_same(run(fast, batch, context), run(teaching, batch, context), 6e-2)


def test_it_keeps_what_the_teaching_form_keeps_and_less_under_autocast():
    teaching, fast, x = attention()
    assert kept(fast, x) == kept(teaching, x)
    context = torch.autocast("cpu", torch.bfloat16)
    assert kept(fast, x, context) < 0.7 * kept(teaching, x, context)


@pytest.mark.parametrize(("tokens", "sums"), [(5, 0), (30, 2)])
def test_the_sums_with_the_weights_are_formed_only_for_many_tokens(tokens, sums):
    _, fast, x = attention(tokens=tokens)
    with Arrays(24, 24) as formed:
        fast(x)
    weights = {p.untyped_storage().data_ptr() for p in fast.parameters()}  # square, so transposed ones count
    assert len(formed.seen.keys() - weights) == sums


def test_for_peft_it_is_what_the_teaching_form_is():
    teaching, fast = (peft_layout(model) for model in pair())
    assert fast.settings == teaching.settings and fast.tensors.keys() == teaching.tensors.keys()
    assert all(torch.equal(fast.tensors[n], t) for n, t in teaching.tensors.items())


@pytest.mark.slow
def test_compiled_it_computes_the_same(batch):
    _, fast = pair()
    compiled = torch.compile(fast.eval(), backend="aot_eager")
    found = {n.removeprefix("_orig_mod."): v for n, v in run(compiled, batch).items()}
    assert_same(found, run(fast, batch), 1e-6)


def test_it_answers_as_the_teaching_form_bit_for_bit(batch):
    teaching, fast = pair()
    drawn = run(fast, batch)["y"], run(teaching, batch)["y"]
    assert not torch.equal(*drawn), "a training step does compute differently"
    for model in (teaching, fast):
        model.eval()
    assert torch.equal(fast(**batch).last_hidden_state, teaching(**batch).last_hidden_state)


def test_switched_off_and_with_weights_that_train_it_is_the_teaching_form(batch):
    teaching, fast = pair()
    answers = []
    for model in (teaching, fast):
        torch.manual_seed(5)  # the same dropout
        with disable_lora(model):
            answers.append(model(**batch).last_hidden_state)
    assert torch.equal(*answers)
    for model in (fast, teaching):
        model.encoder.layer[0].attention.self.key.weight.requires_grad_(True)
    assert_same(run(fast, batch), run(teaching, batch), 5e-6)
