"""Adapters for whatever base a model has: floating point, or bitsandbytes' 4 bits."""

from __future__ import annotations

from torch import nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.variants import inject_variant


def inject_into_base(model: nn.Module, config: LoraConfig, variant: str = "lora") -> nn.Module:
    """`inject_variant`, or LoRA in its 4-bit form where the base holds bitsandbytes' 4-bit layers."""
    if variant == "lora" and any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        from lora_tutorial.quant.linear4bit import inject_lora_4bit  # imports bitsandbytes

        return inject_lora_4bit(model, config)
    return inject_variant(model, config, variant)
