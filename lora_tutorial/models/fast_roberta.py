"""`LoraRobertaSelfAttention` as it trains: query, key and value of one input in one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import eager_attention_forward

from lora_tutorial.lora.fast import (
    adapted_product,
    gather,
    in_working_precision,
    project,
    sum_pays,
    whole_gradient_pays,
)
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.roberta import LoraRobertaSelfAttention


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
        mixed, weights = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )(
            self,
            *(
                y.view(batch, tokens, self.num_attention_heads, -1).transpose(1, 2)
                for y in self._projections(x.reshape(-1, hidden), dtype)  # (batch * tokens, hidden)
            ),  # each (batch * tokens, hidden) -> (batch, heads, tokens, head size)
            attention_mask,
            dropout=self.dropout.p,
            scaling=self.scaling,
            **kwargs,
        )
        return mixed.reshape(batch, tokens, -1).contiguous(), weights  # (batch, tokens, hidden)

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
        frozen = (tensor for linear in (query, key, value) for tensor in (linear.weight, linear.bias))
        return _QueryKeyValue.apply(x, *frozen, *factors, self.lora_scaling, dtype)


def use_fast_attention(model: nn.Module) -> nn.Module:
    """Let every `LoraRobertaSelfAttention` of ``model`` compute as the fast form does. In place."""
    for _, module in lora_modules(model):
        if type(module) is LoraRobertaSelfAttention:
            module.__class__ = FastLoraRobertaSelfAttention
    return model


class _QueryKeyValue(torch.autograd.Function):
    """Three linear layers with frozen weights on one ``x`` (tokens, in), the outer two adapted.

    The biases may train. ``A`` below is lora_A of query and of value, one on the other, (2r, in).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        query: Tensor,
        query_bias: Tensor,
        key: Tensor,
        key_bias: Tensor,
        value: Tensor,
        value_bias: Tensor,
        query_A: Tensor,
        query_B: Tensor,
        value_A: Tensor,
        value_B: Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        A = torch.cat([query_A, value_A]).to(dtype)
        h = project(x, A)  # (tokens, 2r)
        halves = (None, None) if sum_pays(x) else h.chunk(2, dim=1)

        def adapted(W: Tensor, b: Tensor, A: Tensor, B: Tensor, h: Tensor | None) -> Tensor:
            return adapted_product(x, W.to(dtype), b.to(dtype), A, B.to(dtype), scaling, h)

        q = adapted(query, query_bias, A[: len(query_A)], query_B, halves[0])
        k = F.linear(x, key.to(dtype), key_bias.to(dtype))
        v = adapted(value, value_bias, A[len(query_A) :], value_B, halves[1])
        ctx.save_for_backward(x, query, key, value, query_A, query_B, value_A, value_B, h)
        ctx.scaling = scaling
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor) -> tuple[Tensor | None, ...]:
        x, query, key, value, query_A, query_B, value_A, value_B, h = ctx.saved_tensors
        dtype, wants = of_q.dtype, ctx.needs_input_grad
        thin = [project(g, (ctx.scaling * B).to(dtype).T) for g, B in ((of_q, query_B), (of_v, value_B))]
        of_h = torch.cat(thin, dim=1)  # (tokens, 2r)
        of_x = None
        if wants[0]:
            of_x = of_q @ query.to(dtype)  # (tokens, in)
            of_x.addmm_(of_k, key.to(dtype)).addmm_(of_v, value.to(dtype))
            of_x.addmm_(of_h, torch.cat([query_A, value_A]).to(dtype))
        of_query_A, of_value_A = gather(of_h, x).chunk(2)  # (2r, in) -> twice (r, in)
        of_query, of_value = (ctx.scaling * h).chunk(2, dim=1)  # (tokens, 2r) -> twice (tokens, r)
        biases = [g.sum(0) if w else None for g, w in zip((of_q, of_k, of_v), wants[2:7:2], strict=True)]
        return (
            of_x,
            None,
            biases[0],
            None,
            biases[1],
            None,
            biases[2],
            of_query_A,
            gather(of_query, of_q).T,  # (r, out) -> (out, r)
            of_value_A,
            gather(of_value, of_v).T,
            None,
            None,
        )
