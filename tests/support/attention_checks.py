"""An encoder, a batch of it, and its attention replaced by hand."""

import torch
from torch import nn
from transformers import RobertaConfig, RobertaModel

from lora_tutorial import (
    LoraWrapperRoberta,
    lora_modules,
)

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 36,
    "max_position_embeddings": 40,
}


def encoder(implementation="sdpa", seed=0):
    torch.manual_seed(seed)
    return RobertaModel._from_config(RobertaConfig(**SIZES), attn_implementation=implementation)


def by_hand(model, r=3, lora_alpha=6, random_B=True):
    LoraWrapperRoberta.replace_self_attention(model, r, lora_alpha)
    if random_B:
        for _, module in lora_modules(model):
            for _, lora_B in module.lora_factors().values():
                nn.init.normal_(lora_B)
    return model
