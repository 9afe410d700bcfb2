"""`LoraLinear` again, for speed: the same numbers from fewer passes over memory. Knows only torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_tutorial.config import LoraConfig
from lora_tutorial.layers import LoraLinear
from lora_tutorial.merging import lora_modules


class FastLoraLinear(LoraLinear):
    """`LoraLinear` with another forward and backward pass; nothing else differs, parameters and names least.

    The arithmetic of LoRA is small beside that of the frozen weight, so what an adapter costs is mostly
    passes over arrays as large as the layer's output. `LoraLinear` makes five of them beside its products
    (the update, its scaling, the sum, the scaled gradient, the sum of two input gradients). Here the products
    write straight into the output and the input gradient, and the scale multiplies only (tokens, r) and
    smaller arrays. Under autocast, and on a frozen weight in half precision, the low-rank path is computed
    in that precision too, from factors that stay float32.

    Use it with ``inject_lora(model, config, make=FastLoraLinear.from_linear)``, or on a model that holds
    adapters already with `use_fast_layers`. Second derivatives raise ``RuntimeError``: for them, and to
    read, there is `LoraLinear`.

    The order x (W + scaling * B A)', one of those that RunLoRA chooses from (arXiv:2312.03415), is not used:
    it saves a little only with many more tokens than the layer has inputs, and in lower precision the sum
    rounds a small update away.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LoraConfig) -> FastLoraLinear:
        """Adapt an existing layer, as `LoraLinear.from_linear` does; packed weights raise ``TypeError``."""
        if not linear.weight.is_floating_point():
            return LoraLinear.from_linear(linear, config)  # which says why not
        return super().from_linear(linear, config)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out)."""
        if not self.lora_active:
            return nn.Linear.forward(self, x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
            x = x.to(torch.get_autocast_dtype(kind))
            weight_dtype = x.dtype
        else:
            weight_dtype = self.weight.dtype
        rows = x.reshape(-1, self.in_features)  # (..., in) -> (tokens, in)
        keep, scaling, p = None, self.scaling, self.lora_dropout.p
        if self.training and p:
            keep = torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - p)
            scaling = scaling / (1 - p)
        y = _LowRankLinear.apply(
            rows, self.weight, self.bias, self.lora_A, self.lora_B, scaling, keep, weight_dtype
        )
        return y.view(*x.shape[:-1], self.out_features)  # (tokens, out) -> (..., out)


def use_fast_layers(model: nn.Module) -> nn.Module:
    """Let every `LoraLinear` of ``model`` compute as `FastLoraLinear` does. In place; parameters stay.

    For models that come with adapters, as from ``load_adapter`` or ``import_peft``. Other kinds of adapted
    layers (4-bit ones, variants) are left as they are.
    """
    for _, module in lora_modules(model):
        if type(module) is LoraLinear:
            module.__class__ = FastLoraLinear
    return model


class _LowRankLinear(torch.autograd.Function):
    """y = x W' + b + scaling * x A' B', and its first derivatives.

    ``x`` is (tokens, in), ``keep`` the inputs that dropout leaves to the low-rank path, (tokens, in) or None.
    Parameters are saved as they are and converted where they are used, so a half precision copy of the weight
    lives only as long as one product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        keep: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        y = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))  # (tokens, out)
        h = F.linear(x if keep is None else x * keep, lora_A.to(dtype))  # (tokens, r)
        y.addmm_(h, lora_B.to(dtype).T, alpha=scaling)
        wants = ctx.needs_input_grad
        ctx.save_for_backward(
            x if wants[1] or wants[3] else None,
            weight if wants[0] else None,
            lora_A if wants[0] else None,
            lora_B if wants[0] or wants[3] else None,
            h if wants[4] else None,
            keep if wants[0] or wants[3] else None,
        )
        ctx.scaling = scaling
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, h, keep = ctx.saved_tensors
        wants = ctx.needs_input_grad
        of_x = of_weight = of_bias = of_A = of_B = None
        if wants[0] or wants[3]:
            of_h = grad @ (ctx.scaling * lora_B).to(grad.dtype)  # (tokens, r)
        if wants[0]:
            of_x = grad @ weight.to(grad.dtype)  # (tokens, in)
            if keep is None:
                of_x.addmm_(of_h, lora_A.to(grad.dtype))
            else:
                of_x += (of_h @ lora_A.to(grad.dtype)).mul_(keep)
        if wants[1]:
            of_weight = grad.T @ x  # (out, in)
        if wants[2]:
            of_bias = grad.sum(0)  # (out,)
        if wants[3]:
            of_A = of_h.T @ (x if keep is None else x * keep)  # (r, in)
        if wants[4]:
            of_B = ((ctx.scaling * h).T @ grad).T  # (r, out) -> (out, r): BLAS is faster this way round
        return of_x, of_weight, of_bias, of_A, of_B, None, None, None
