"""The same unchanged `inject_lora` on models that are no encoder: tiny, random, from configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft_models import shake
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lora_tutorial import (
    LoraConfig,
    disable_lora,
    inject_lora,
    load_adapter,
    lora_modules,
    merge_lora,
    save_adapter,
    unload_lora,
    unmerge_lora,
)
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.lora.inject import find_targets
from lora_tutorial.lora.variants import inject_variant

pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")

TEXT = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4}


class Architecture(NamedTuple):
    """A model, what all-linear selects in it (ending to count), and what trains besides."""

    build: Callable[[], nn.Module]
    linear: dict[str, int]
    head: tuple[str, ...] = ()


def llama(**changes: Any) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            **TEXT,
            **SIZE,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.2,
            **changes,
        )
    )


def t5() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**TEXT, **sizes, decoder_start_token_id=0))


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(**SIZE, image_size=16, patch_size=4, num_labels=5, initializer_range=0.2)
    )


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**TEXT, **SIZE, max_position_embeddings=32, initializer_range=0.2)
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(**TEXT, n_embd=24, n_layer=2, n_head=4, n_positions=32))


_LLAMA = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)
ARCHITECTURES = {
    "llama": Architecture(llama, _LLAMA),
    "llama, tied": Architecture(lambda: llama(tie_word_embeddings=True), _LLAMA),
    "t5": Architecture(t5, dict.fromkeys("qkvo", 6) | {"wi": 4, "wo": 4}),
    "vit": Architecture(
        vit, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"), 2), ("classifier",)
    ),
    "neox": Architecture(
        neox, dict.fromkeys(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), 2)
    ),
}
every = pytest.mark.parametrize("name", ARCHITECTURES)


def fresh(name: str) -> nn.Module:
    """The same random model at every call."""
    torch.manual_seed(0)
    return ARCHITECTURES[name].build().eval()


def config(name: str, **changes: Any) -> LoraConfig:
    settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"}
    return LoraConfig(**settings | {"modules_to_save": ARCHITECTURES[name].head} | changes)


def inputs(name: str) -> dict[str, Tensor]:
    """Two images, (2, 3, 16, 16), or two texts of 7 tokens, (2, 7), with the answers to learn."""
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        images = torch.randn(2, 3, 16, 16, generator=generator)
        return {"pixel_values": images, "labels": torch.tensor([1, 4])}
    ids = torch.randint(3, 48, (2, 7), generator=generator)
    return {"input_ids": ids, "labels": ids}


@torch.no_grad()
def logits(model: nn.Module, name: str) -> Tensor:
    return model.eval()(**inputs(name)).logits


@every
def test_the_adapted_model_starts_as_the_base_bit_for_bit(name):
    before, model = logits(fresh(name), name), fresh(name)
    targets = find_targets(model, config(name))
    endings = [target.rpartition(".")[2] for target in targets]
    assert {ending: endings.count(ending) for ending in endings} == ARCHITECTURES[name].linear
    assert inject_lora(model, config(name)) is model
    assert [n for n, _ in lora_modules(model)] == targets
    assert torch.equal(logits(model, name), before)
    assert torch.equal(logits(inject_variant(fresh(name), config(name), "dora"), name), before)


@every
def test_training_moves_the_adapters_and_nothing_else(name):
    model = inject_lora(fresh(name), config(name))
    start = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs(name)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    heads = ARCHITECTURES[name].head
    wanted = {n for n in start if "lora_" in n or n.startswith(heads or ("no head",))}
    assert {n for n, p in model.named_parameters() if not torch.equal(p, start[n])} == wanted


@every
def test_merging_keeps_the_outputs_and_leaves_without_a_trace(name):
    base, model = fresh(name), shake(inject_lora(fresh(name), config(name)))
    before = logits(model, name)
    assert not torch.allclose(before, logits(base, name), atol=1e-2)
    torch.testing.assert_close(logits(merge_lora(model), name), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(unmerge_lora(model), name), before)
    if not ARCHITECTURES[name].head:
        with disable_lora(model):
            assert torch.equal(logits(model, name), logits(base, name))
    assert list(unload_lora(model).state_dict()) == list(base.state_dict())


@every
def test_peft_gives_equal_logits_and_gives_the_adapter_back(name, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
    model = shake(inject_lora(fresh(name), config(name)))
    export_peft(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(fresh(name), tmp_path / "adapter")
    assert torch.equal(logits(theirs, name), logits(model, name))
    assert not torch.allclose(logits(theirs, name), logits(fresh(name), name), atol=1e-2)
    back = import_peft(tmp_path / "adapter", fresh(name))
    assert torch.equal(logits(back, name), logits(model, name))
    merged = logits(theirs.merge_and_unload(), name)
    torch.testing.assert_close(merged, logits(merge_lora(model), name), rtol=1e-5, atol=1e-5)


@every
def test_an_adapter_is_saved_and_comes_back(name, tmp_path: Path):
    model = shake(inject_lora(fresh(name), config(name)))
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", base=fresh(name))
    assert torch.equal(logits(again, name), logits(model, name))


# ---- what differs here -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama, tied", "t5", "neox"])
def test_the_cache_changes_no_token_merged_or_not(name):
    model, ids = shake(inject_lora(fresh(name), config(name))), inputs(name)["input_ids"]
    said = [
        m.generate(ids, do_sample=False, min_new_tokens=8, max_new_tokens=8, use_cache=cached)
        for m in (model, merge_lora(model))
        for cached in (True, False)
    ]
    assert said[0].shape[1] >= 9 and all(torch.equal(said[0], other) for other in said[1:])


def test_a_cache_from_another_adapter_is_stale():
    model, ids = shake(inject_lora(fresh("llama"), config("llama"))), inputs("llama")["input_ids"]
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        cache = model(ids[:, :-1]).past_key_values
        assert torch.allclose(model(ids[:, -1:], past_key_values=cache).logits[:, -1], whole, atol=1e-4)
        with disable_lora(model):
            cache = model(ids[:, :-1]).past_key_values
        assert not torch.allclose(model(ids[:, -1:], past_key_values=cache).logits[:, -1], whole, atol=0.05)


def test_gpt2s_conv1d_is_refused_by_name():
    with pytest.raises(TypeError, match=r"transformer\.h\.0\.attn\.c_attn, a Conv1D; LoRA adapts nn\.Linear"):
        inject_lora(gpt2(), LoraConfig(r=2, target_modules=("c_attn",)))
    with pytest.raises(ValueError, match=r"leaves no layer to adapt\. Linear layers here end in: lm_head"):
        inject_lora(gpt2(), LoraConfig(r=2, target_modules="all-linear"))


def test_a_tied_head_can_be_adapted_but_not_merged():
    model = fresh("llama, tied")
    inject_lora(model, LoraConfig(r=3, lora_alpha=7, target_modules=("lm_head",)))
    shake(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    adapted = logits(model, "llama, tied")
    with pytest.raises(ValueError, match=r"lm_head\.weight is tied: model\.embed_tokens, lm_head share it"):
        merge_lora(model)
    assert torch.equal(logits(model, "llama, tied"), adapted)
    model.lm_head.merge()  # what the refusal is for: the tokens' vectors have changed as well
    assert not torch.allclose(logits(model, "llama, tied"), adapted, atol=1e-2)


def test_part_of_a_fused_projection_is_rows_of_b():
    model = inject_lora(fresh("neox"), config("neox", target_modules=("query_key_value",)))
    layer = model.gpt_neox.layers[0].attention.query_key_value
    keys = torch.zeros(4, 3, 6, dtype=torch.bool)  # heads, (query, key, value), head size
    keys[:, 1] = True
    rows = keys.flatten()  # (4, 3, 6) -> (72,)
    layer.lora_B.register_hook(lambda gradient: gradient.masked_fill(rows[:, None], 0))
    model(**inputs("neox")).loss.backward()
    torch.optim.Adam([layer.lora_A, layer.lora_B], lr=0.1).step()
    delta = layer.lora_delta()
    assert not delta[rows].any() and delta[~rows].any(dim=1).all()
