"""Blocks whose layers share an input: the losses, gradients, names and answers of the blocks as they were."""

import copy

import pytest
import torch
from adapted_models import ARCHITECTURES
from layer_checks import relative
from memory_checks import Arrays
from torch import nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaAttention

from lora_tutorial import LoraConfig, inject_lora, use_fast_attention, use_fast_blocks
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.fast_llama import FastLlamaAttention, FastLlamaMLP
from lora_tutorial.models.fast_roberta import FastRobertaSelfAttention

FAST = {
    "llama": {"self_attn": FastLlamaAttention, "mlp": FastLlamaMLP},
    "roberta": {"self": FastRobertaSelfAttention},
}


def pair(architecture="llama", targets="all-linear", dtype=torch.float64, implementation=None):
    """The same adapted model as transformers computes it and with its fast blocks."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture].build().to(dtype)
    if implementation:
        model.set_attn_implementation(implementation)
    inject_lora(model, LoraConfig(r=3, lora_alpha=7, target_modules=targets))
    with torch.no_grad():
        for _, layer in lora_modules(model):
            nn.init.normal_(layer.lora_B, std=0.1)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), use_fast_blocks(use_fast_attention(copy.deepcopy(model))).train()


def ids(padded=False):
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(3, 48, (2, 7), generator=generator)
    mask = torch.ones_like(given)
    if padded:
        mask[1, 5:] = 0
    return {"input_ids": given, "attention_mask": mask}


def step(model, padded=False):
    model.zero_grad()
    logits = model(**ids(padded)).logits
    logits.square().mean().backward()
    return {"logits": logits.detach()} | {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad
    }


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0 and relative(found[name], value) < tolerance, name


@pytest.mark.parametrize("architecture", FAST)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_is_the_same_up_to_rounding(architecture, implementation, padded):
    plain, fast = pair(architecture, implementation=implementation)
    kinds = {name.rpartition(".")[2]: type(module) for name, module in fast.named_modules()}
    assert {name: kinds[name] for name in FAST[architecture]} == FAST[architecture]
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert_same(step(fast, padded), step(plain, padded), 1e-10)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("up_proj",), ("k_proj", "down_proj")])
def test_it_may_be_any_of_the_layers_that_has_an_adapter(targets):
    plain, fast = pair(targets=targets)
    changed = {type(module) for module in fast.modules()} - {type(module) for module in plain.modules()}
    expected = {FastLlamaMLP} if targets == ("up_proj",) else {FastLlamaAttention}
    assert changed == expected | ({FastLlamaMLP} if "down_proj" in targets else set())
    assert_same(step(fast), step(plain), 1e-10)


@pytest.mark.parametrize("architecture", FAST)
def test_its_layers_do_go_together_in_a_training_step(architecture):
    plain, fast = pair(architecture)
    counts = []
    for model in (fast, plain):
        with Arrays(14, 9) as thin:  # query, key and value have rank 3 each
            model(**ids())
        counts.append(len(thin.seen))
    assert counts == [2, 0], "one low-rank product for three layers, in each of two blocks"


@pytest.mark.parametrize("architecture", FAST)
def test_it_answers_bit_for_bit_as_before(architecture):
    plain, fast = (model.eval() for model in pair(architecture, dtype=torch.float32))
    assert torch.equal(fast(**ids()).logits, plain(**ids()).logits)
    with torch.no_grad():
        assert torch.equal(fast(**ids()).logits, plain(**ids()).logits)


def test_with_a_cache_it_is_the_block_of_transformers_in_training_too():
    plain, fast = pair(targets=("q_proj", "v_proj"))
    found = [
        model(**ids(), cache=DynamicCache(config=model.config), use_cache=True) for model in (fast, plain)
    ]
    assert torch.equal(found[0].logits, found[1].logits)
    assert [output.cache.get_seq_length() for output in found] == [7, 7]


@pytest.mark.parametrize("architecture", FAST)
def test_recomputing_gives_the_same_gradients(architecture):
    _, fast = pair(architecture)
    expected = step(fast)
    fast.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(step(fast), expected, 1e-12)


def test_blocks_without_an_adapter_and_other_models_are_left_alone():
    model = ARCHITECTURES["llama"].build()
    assert use_fast_blocks(model) is model
    assert {type(m) for m in model.modules() if "Attention" in type(m).__name__} == {LlamaAttention}
    other = inject_lora(ARCHITECTURES["neox"].build(), LoraConfig(target_modules="all-linear"))
    kinds = [type(module) for module in other.modules()]
    assert [type(module) for module in use_fast_blocks(use_fast_attention(other)).modules()] == kinds


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAST)
def test_compiled_it_computes_the_same(architecture):
    _, fast = pair(architecture)
    expected = step(fast)
    compiled = torch.compile(fast, backend="aot_eager")
    found = {name.removeprefix("_orig_mod."): value for name, value in step(compiled).items()}
    assert_same(found, expected, 1e-10)
