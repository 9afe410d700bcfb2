"""What differs in models that are no encoder, beside the laws: caches, Conv1D, tied and fused weights."""

import pytest
import torch
from adapted_models import KINDS, Case
from peft_models import shake
from transformers import GPT2Config, GPT2LMHeadModel

from lora_tutorial import LoraConfig, disable_lora, inject_lora, merge_lora

pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


def lora(name: str) -> Case:
    return Case(KINDS["lora"], name)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "t5", "neox"])
def test_the_cache_changes_no_token_merged_or_not(name):
    model, ids = lora(name).moved(), lora(name).inputs()["input_ids"]
    said = [
        m.generate(ids, do_sample=False, min_new_tokens=8, max_new_tokens=8, use_cache=cached)
        for m in (model, merge_lora(model))
        for cached in (True, False)
    ]
    assert said[0].shape[1] >= 9 and all(torch.equal(said[0], other) for other in said[1:])


def test_a_cache_from_another_adapter_is_stale():
    model, ids = lora("llama").moved(), lora("llama").inputs()["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        cache = model(ids[:, :-1]).past_key_values
        assert torch.allclose(model(ids[:, -1:], past_key_values=cache).logits[:, -1], whole, atol=1e-4)
        with disable_lora(model):
            cache = model(ids[:, :-1]).past_key_values
        assert not torch.allclose(model(ids[:, -1:], past_key_values=cache).logits[:, -1], whole, atol=0.05)


def test_gpt2s_conv1d_is_refused_by_name():
    config = GPT2Config(vocab_size=48, n_embd=24, n_layer=2, n_head=4, n_positions=32)
    with pytest.raises(TypeError, match=r"transformer\.h\.0\.attn\.c_attn, a Conv1D; LoRA adapts nn\.Linear"):
        inject_lora(GPT2LMHeadModel(config), LoraConfig(r=2, target_modules=("c_attn",)))
    with pytest.raises(ValueError, match=r"leaves no layer to adapt\. Linear layers here end in: lm_head"):
        inject_lora(GPT2LMHeadModel(config), LoraConfig(r=2, target_modules="all-linear"))


def test_a_tied_head_can_be_adapted_but_not_merged():
    case = lora("llama, tied")
    model = case.base()
    inject_lora(model, LoraConfig(r=3, lora_alpha=7, target_modules=("lm_head",)))
    shake(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    adapted = case.logits(model)
    with pytest.raises(ValueError, match=r"lm_head\.weight is tied: model\.embed_tokens, lm_head share it"):
        merge_lora(model)
    assert torch.equal(case.logits(model), adapted)
    model.lm_head.merge()  # what the refusal is for: the tokens' vectors have changed as well
    assert not torch.allclose(case.logits(model), adapted, atol=1e-2)


def test_part_of_a_fused_projection_is_rows_of_b():
    model = inject_lora(lora("neox").base(), LoraConfig(r=3, target_modules=("query_key_value",)))
    layer = model.gpt_neox.layers[0].attention.query_key_value
    keys = torch.zeros(4, 3, 6, dtype=torch.bool)  # heads, (query, key, value), head size
    keys[:, 1] = True
    rows = keys.flatten()  # (4, 3, 6) -> (72,)
    layer.lora_B.register_hook(lambda gradient: gradient.masked_fill(rows[:, None], 0))
    model(**lora("neox").inputs()).loss.backward()
    torch.optim.Adam([layer.lora_A, layer.lora_B], lr=0.1).step()
    delta = layer.lora_delta()
    assert not delta[rows].any() and delta[~rows].any(dim=1).all()
