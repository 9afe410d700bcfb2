"""RoBERTa's self-attention as it trains: query, key and value of one input in one function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention, eager_attention_forward

from lora_tutorial.lora.fast import FastLoraLinear, adapted_product, in_working_precision, whole_gradient_pays
from lora_tutorial.lora.layers import SharingBlock
from lora_tutorial.lora.shared import Part, linears_together, products_together
from lora_tutorial.models.roberta import LoraRobertaSelfAttention


def has_cache(kwargs: Mapping[str, object]) -> bool:
    """Whether an attention is called with a cache, by either of the names that transformers has for it."""
    return any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))


def attend(
    attention: RobertaSelfAttention, projections: tuple[Tensor, ...], mask: Tensor | None, **kwargs: object
) -> tuple[Tensor, Tensor | None]:
    """From query, key and value, each (batch, tokens, hidden), to the mixture, of the same shape."""
    batch, tokens, _ = projections[0].shape
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    # each (batch, tokens, hidden) -> (batch, heads, tokens, head size)
    heads = (y.view(batch, tokens, attention.num_attention_heads, -1).transpose(1, 2) for y in projections)
    mixed, weights = interface(
        attention, *heads, mask, dropout=attention.dropout.p, scaling=attention.scaling, **kwargs
    )
    return mixed.reshape(batch, tokens, -1).contiguous(), weights  # (batch, tokens, hidden)


class FastRobertaSelfAttention(SharingBlock, RobertaSelfAttention):
    """``RobertaSelfAttention`` whose injected layers are computed together, see `linears_together`.

    `use_fast_attention` makes it. Names, parameters and answers in ``eval()`` are those of the original.
    """

    original = RobertaSelfAttention

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over ``hidden_states`` (batch, tokens, hidden) with the configured implementation."""
        if not self.training or args or has_cache(kwargs):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        projections = linears_together(hidden_states, (self.query, self.key, self.value))
        return attend(self, projections, attention_mask, **kwargs)


class FastLoraRobertaSelfAttention(LoraRobertaSelfAttention):
    """`LoraRobertaSelfAttention` with a faster training step; parameters, names and files are the same.

    In ``eval()`` and without gradients it computes as `LoraRobertaSelfAttention` does, bit for bit.

    To what `FastLoraLinear` saves on one layer comes what three layers of one input share: the low-rank
    products of query and value read the input once, and their three input gradients are added up where the
    first was written. Where the rank is so large that `whole_gradient_pays`, nothing is shared.

    `use_fast_attention` makes it from a `LoraRobertaSelfAttention`. Second derivatives raise
    ``RuntimeError``; hooks on ``query``, ``key`` and ``value`` are not called.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over ``hidden_states`` (batch, tokens, hidden) with the configured implementation."""
        linears = (self.query, self.key, self.value)
        trains = self.lora_active and self.training and torch.is_grad_enabled()
        if not trains or any(linear.weight.requires_grad for linear in linears):
            return super().forward(hidden_states, attention_mask, **kwargs)
        batch, tokens, hidden = hidden_states.shape
        x, dtype = in_working_precision(hidden_states, self.query.weight)
        projections = self._projections(x.reshape(-1, hidden), dtype)  # (batch * tokens, hidden) of each
        return attend(
            self, tuple(y.view(batch, tokens, -1) for y in projections), attention_mask, **kwargs
        )  # (batch * tokens, hidden) -> (batch, tokens, hidden)

    def _projections(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Query, key and value of ``x`` (tokens, in), each (tokens, hidden)."""
        query, key, value = self.query, self.key, self.value
        factors = self.lora_query_A, self.lora_query_B, self.lora_value_A, self.lora_value_B
        if whole_gradient_pays(x, query.out_features, len(self.lora_query_A)):
            q, v = (
                adapted_product(x, linear.weight, linear.bias, A, B, self.lora_scaling, None)
                for linear, A, B in ((query, *factors[:2]), (value, *factors[2:]))
            )
            return q, F.linear(x, key.weight, key.bias), v  # no hooks here either
        parts = (
            Part(query.weight, query.bias, *factors[:2], self.lora_scaling),
            Part(key.weight, key.bias),
            Part(value.weight, value.bias, *factors[2:], self.lora_scaling),
        )
        return products_together(x, parts, dtype)


def use_fast_attention(model: nn.Module) -> nn.Module:
    """Let every self-attention of ``model`` that has adapters compute as its fast form does. In place.

    That is `LoraRobertaSelfAttention`, and ``RobertaSelfAttention`` with a `FastLoraLinear` inside.
    """
    for module in model.modules():
        if type(module) is LoraRobertaSelfAttention:
            module.__class__ = FastLoraRobertaSelfAttention
        elif type(module) is RobertaSelfAttention and any(
            isinstance(part, FastLoraLinear) for part in module.children()
        ):
            module.__class__ = FastRobertaSelfAttention
    return model
