"""Tiny models for the tests of the bridge to PEFT: random, never at zero, never square, alpha never r."""

from __future__ import annotations

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from lora_tutorial import LoraConfig, inject_lora

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "num_labels": 3,
    "initializer_range": 0.1,
}
ARTICLE = LoraConfig(
    r=2,
    lora_alpha=8,
    lora_dropout=0.1,
    target_modules=("query", "key", "value", "intermediate.dense", "output.dense"),
    bias="all",
    modules_to_save=("LayerNorm", "classifier"),
)
HEAD = ("classifier",)
FEED_FORWARD = r".*(?<!attention\.)(intermediate|output)\.dense"
CONFIGS = {
    "article": ARTICLE,
    "query and value": LoraConfig(r=3, lora_alpha=7, modules_to_save=HEAD),
    "one layer by its full name": LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=("roberta.encoder.layer.1.attention.self.key",),
        modules_to_save=HEAD,
    ),
    "feed-forward by a pattern": LoraConfig(
        r=3, lora_alpha=7, target_modules=FEED_FORWARD, bias="lora_only", modules_to_save=HEAD
    ),
    "all-linear, rsLoRA": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", modules_to_save=HEAD
    ),
    "all biases, no norms": LoraConfig(r=3, lora_alpha=7, bias="all", modules_to_save=HEAD),
    "embeddings and one norm": LoraConfig(
        r=3,
        lora_alpha=0.5,
        init="gaussian",
        modules_to_save=("word_embeddings", "layer.1.output.LayerNorm", "classifier"),
    ),
    "head not named": LoraConfig(r=3, lora_alpha=7),
}


def base(model_class: type = RobertaForSequenceClassification, **changes: object) -> nn.Module:
    """A random model, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(RobertaConfig(**(TINY | changes))).eval()


def shake(model: nn.Module, scale: float = 0.15) -> nn.Module:
    """Move everything that trains, lora_B off zero first of all, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def adapted(config: LoraConfig, **changes: object) -> nn.Module:
    """A model as it might be after training."""
    return shake(inject_lora(base(**changes), config))


def batch() -> dict[str, torch.Tensor]:
    """Two sentences of 9 tokens, one of them padded: both of shape (2, 9)."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """What the model answers, (2, labels); for a question answering model start and end, (2, 2, 9)."""
    with torch.no_grad():
        out = model.eval()(**(inputs or batch()))
    return out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], 1)
