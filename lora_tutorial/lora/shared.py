"""Linear layers that read one input, computed together: what each of them does alone is done once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_tutorial.lora.fast import (
    FastLoraLinear,
    adapted_product,
    gather,
    in_working_precision,
    project,
    sum_pays,
    whole_gradient_pays,
)


class Part(NamedTuple):
    """One of the layers: ``weight`` (out, in), frozen, ``bias`` (out,), and the factors where it has some."""

    weight: Tensor
    bias: Tensor | None
    lora_A: Tensor | None = None
    lora_B: Tensor | None = None
    scaling: float = 0.0


def linears_together(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Return ``tuple(layer(x) for layer in layers)``, in a training step with fewer passes over memory.

    The low-rank products of all layers read ``x`` once, forward and backward, and the gradients of ``x`` are
    added up where the first was written, instead of in arrays of their own. A training step differs from that
    of the single layers by rounding.

    Where that cannot be had, the layers are called one after another: outside a training step, when a weight
    trains, with dropout, at ranks so high that `whole_gradient_pays`, when a layer is neither a
    `FastLoraLinear` nor a plain ``nn.Linear``, or has hooks.

    Parameters
    ----------
    x
        (..., in).
    layers
        Each from in to its own out.
    """
    if not _go_together(x, layers):
        return tuple(layer(x) for layer in layers)
    parts = [
        Part(layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.scaling)
        if _adapts(layer)
        else Part(layer.weight, layer.bias)
        for layer in layers
    ]
    shape = x.shape
    x, dtype = in_working_precision(x, parts[0].weight)
    outputs = products_together(x.reshape(-1, shape[-1]), parts, dtype)  # (..., in) -> (tokens, in)
    return tuple(y.view(*shape[:-1], y.shape[-1]) for y in outputs)  # (tokens, out) -> (..., out)


def _go_together(x: Tensor, layers: Sequence[nn.Linear]) -> bool:
    if not torch.is_grad_enabled() or not all(layer.training and _is_bare(layer) for layer in layers):
        return False
    if len({layer.weight.dtype for layer in layers}) > 1:
        return False
    adapted = [layer for layer in layers if _adapts(layer)]
    return bool(adapted) and not any(
        layer.lora_dropout.p or whole_gradient_pays(x, layer.out_features, len(layer.lora_A))
        for layer in adapted
    )


def _adapts(layer: nn.Linear) -> TypeGuard[FastLoraLinear]:
    return isinstance(layer, FastLoraLinear) and layer.lora_active


def _is_bare(layer: nn.Linear) -> bool:
    """Whether calling the layer does what its class says and no more, and its weight does not train."""
    hooks = (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )
    return type(layer) in (FastLoraLinear, nn.Linear) and not (hooks or layer.weight.requires_grad)


def products_together(x: Tensor, parts: Sequence[Part], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Each part's product with ``x`` (tokens, in), in ``dtype``: (tokens, out) of each."""
    tensors = [tensor for part in parts for tensor in part[:4]]
    return _SharedInput.apply(x, dtype, [part.scaling for part in parts], *tensors)


class _SharedInput(torch.autograd.Function):
    """y_i = x W_i' + b_i + scaling_i * x A_i' B_i' for several layers i, and the first derivatives.

    ``A`` below is all lora_A, one on the other, (sum of r, in); a layer without factors has no rows in it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, scalings: list[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, lora_A, lora_B = (tensors[i::4] for i in range(4))
        ranks = [0 if A is None else len(A) for A in lora_A]
        A = torch.cat([A for A in lora_A if A is not None]).to(dtype)
        h = project(x, A)  # (tokens, sum of r)
        formed, outputs = sum_pays(x), []
        for W, b, A_i, B, h_i, scaling in zip(
            weights, biases, A.split(ranks), lora_B, h.split(ranks, dim=1), scalings, strict=True
        ):
            b = None if b is None else b.to(dtype)
            if B is None:
                outputs.append(F.linear(x, W.to(dtype), b))
            else:
                low = None if formed else h_i
                outputs.append(adapted_product(x, W.to(dtype), b, A_i, B.to(dtype), scaling, low))
        ctx.save_for_backward(x, h, *weights, *lora_A, *lora_B)
        ctx.scalings, ctx.ranks = scalings, ranks
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *saved = ctx.saved_tensors
        count, dtype, wants = len(grads), grads[0].dtype, ctx.needs_input_grad
        weights, lora_A, lora_B = saved[:count], saved[count : 2 * count], saved[2 * count :]
        thin = [
            project(g, (s * B).to(dtype).T)  # (tokens, r)
            for g, B, s in zip(grads, lora_B, ctx.scalings, strict=True)
            if B is not None
        ]
        of_h = torch.cat(thin, dim=1)  # (tokens, sum of r)
        of_x = None
        if wants[0]:
            of_x = grads[0] @ weights[0].to(dtype)  # (tokens, in)
            for g, W in zip(grads[1:], weights[1:], strict=True):
                of_x.addmm_(g, W.to(dtype))
            of_x.addmm_(of_h, torch.cat([A for A in lora_A if A is not None]).to(dtype))
        of_A = gather(of_h, x).split(ctx.ranks)  # (sum of r, in) -> (r, in) of each
        found: list[Tensor | None] = []
        for i, (g, s, h_i) in enumerate(zip(grads, ctx.scalings, h.split(ctx.ranks, dim=1), strict=True)):
            of_bias = g.sum(0) if wants[3 + 4 * i + 1] else None  # (out,)
            if lora_B[i] is None:
                found += [None, of_bias, None, None]
            else:
                found += [None, of_bias, of_A[i], gather(s * h_i, g).T]  # (r, out) -> (out, r)
        return of_x, None, None, *found
