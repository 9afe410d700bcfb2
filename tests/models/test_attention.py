"""The hand-written attention against transformers' own and against injection."""

import copy

import pytest
import torch
from attention_checks import SIZES, by_hand, encoder
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from lora_tutorial import (
    LoraConfig,
    LoraRobertaSelfAttention,
    inject_lora,
)


def run(model, batch, seed=5):
    torch.manual_seed(seed)  # the same dropout masks
    return model(**batch).last_hidden_state


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False])
def test_at_zero_it_is_robertas_attention_bit_for_bit(implementation, training, batch):
    base = encoder(implementation).train(training)
    ours = by_hand(copy.deepcopy(base), random_B=False)
    assert sum(isinstance(m, LoraRobertaSelfAttention) for m in ours.modules()) == 2
    assert torch.equal(run(base, batch), run(ours, batch))
    assert not torch.equal(run(base, batch), run(by_hand(copy.deepcopy(base)), batch))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False])
def test_it_equals_injection_at_the_same_weights(implementation, training, batch):
    ours = by_hand(encoder(implementation).train(training))
    other = inject_lora(encoder(implementation).train(training), LoraConfig(r=3, lora_alpha=6))
    for layer, theirs in zip(ours.encoder.layer, other.encoder.layer, strict=True):
        attention, injected = layer.attention.self, theirs.attention.self
        for name, linear in (("query", injected.query), ("value", injected.value)):
            lora_A, lora_B = attention.lora_factors()[f"{name}.weight"]
            with torch.no_grad():
                linear.lora_A.copy_(lora_A)
                linear.lora_B.copy_(lora_B)
    y, z = run(ours, batch), run(other, batch)
    assert not torch.equal(y, run(encoder(implementation).train(training), batch))
    torch.testing.assert_close(y, z, rtol=1e-6, atol=1e-6)
    y.square().sum().backward()
    z.square().sum().backward()
    for layer, theirs in zip(ours.encoder.layer, other.encoder.layer, strict=True):
        for name in ("query", "value"):
            pair = layer.attention.self.lora_factors()[f"{name}.weight"]
            linear = getattr(theirs.attention.self, name)
            for factor, injected in zip(pair, (linear.lora_A, linear.lora_B), strict=True):
                assert factor.grad.abs().sum() > 0
                torch.testing.assert_close(factor.grad, injected.grad, rtol=1e-4, atol=1e-5)


def test_attention_weights_come_back_under_eager(batch):
    ours = by_hand(encoder("eager").eval())
    attentions = ours(**batch, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape == (3, 4, 9, 9)
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(3, 4, 9))


def test_a_plain_checkpoint_loads_and_a_decoder_is_refused():
    config = encoder().config
    module = LoraRobertaSelfAttention(config, r=3, lora_alpha=6)
    result = module.load_state_dict(RobertaSelfAttention(config).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == {f"lora_{name}_{x}" for name in ("query", "value") for x in "AB"}
    assert module.lora_scaling == 2.0 and module.scaling == 6**-0.5
    with pytest.raises(ValueError, match="inject_lora"):
        LoraRobertaSelfAttention(RobertaConfig(**SIZES, is_decoder=True))
