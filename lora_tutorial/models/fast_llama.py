"""Llama's blocks as they train: the layers that read one input in one function."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.layers import SharingBlock
from lora_tutorial.lora.shared import linears_together
from lora_tutorial.models.fast_roberta import has_cache


class FastLlamaAttention(SharingBlock, LlamaAttention):
    """``LlamaAttention`` whose query, key and value are computed together, see `linears_together`."""

    original = LlamaAttention

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over ``hidden_states`` (batch, tokens, hidden) with the configured implementation."""
        if not self.training or args or has_cache(kwargs) or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, *args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
        batch, tokens, _ = hidden_states.shape
        query, key, value = (
            y.view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for y in linears_together(hidden_states, (self.q_proj, self.k_proj, self.v_proj))
        )  # each (batch, tokens, heads * head size) -> (batch, heads, tokens, head size)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )
        mixed = mixed.reshape(batch, tokens, -1).contiguous()  # (batch, tokens, heads * head size)
        return self.o_proj(mixed), weights  # (batch, tokens, hidden)


class FastLlamaMLP(SharingBlock, LlamaMLP):
    """``LlamaMLP`` whose gate and up projections are computed together, see `linears_together`."""

    original = LlamaMLP

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., hidden) to the same shape."""
        gate, up = linears_together(x, (self.gate_proj, self.up_proj))
        return self.down_proj(self.act_fn(gate) * up)


_FAST: dict[type[nn.Module], type[SharingBlock]] = {
    LlamaAttention: FastLlamaAttention,
    LlamaMLP: FastLlamaMLP,
}


def use_fast_blocks(model: nn.Module) -> nn.Module:
    """Let every attention and MLP of a Llama compute what its adapted layers share once. In place.

    Parameters, names and files stay, and so do the answers in ``eval()``, bit for bit. Blocks of other
    models, and those without a `FastLoraLinear`, are left as they are.
    """
    for module in model.modules():
        fast = _FAST.get(type(module))
        if fast is not None and any(isinstance(part, FastLoraLinear) for part in module.children()):
            module.__class__ = fast
    return model
