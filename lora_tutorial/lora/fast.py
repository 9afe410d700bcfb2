"""`LoraLinear` as it trains: the same numbers from fewer passes over memory. Knows only torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_tutorial.lora.layers import LoraLinear
from lora_tutorial.lora.merge import lora_modules


class FastLoraLinear(LoraLinear):
    """`LoraLinear` with a faster training step: same parameters, names and files. `inject_lora` makes these.

    It is fast in ``train()`` mode and with gradients, which is where a training step spends its time. In
    ``eval()`` and under ``torch.no_grad`` it computes as `LoraLinear` does, so a model's answers are the same
    bit for bit, whichever of the two it holds. A training step differs, by rounding.

    The arithmetic of LoRA is small beside that of the frozen weight, so what an adapter costs is mostly
    passes over arrays as large as the layer's output. `LoraLinear` makes five of them beside its products
    (the update, its scaling, the sum, the scaled gradient, the sum of two input gradients). Here the products
    write straight into the output and the input gradient, and the scale multiplies only (tokens, r) and
    smaller arrays. For the thin products themselves see ``project`` and ``gather``. Under autocast, and on a
    frozen weight in half precision, the low-rank path is computed in that precision too, from factors that
    stay float32.

    Second derivatives raise ``RuntimeError``: for them, and to read, there is
    ``inject_lora(model, config, make=LoraLinear.from_linear)``.

    On a CPU, with many more tokens than the layer has inputs, the last of the forward products is not taken
    for each token but once, in W + scaling * B A; with many more than outputs, so it goes backward
    (`sum_pays`). Neither the whole gradient of that sum is formed then, nor is the sum kept. From about a
    third or a quarter of the layer's width, the rank is so large that both pay (`whole_gradient_pays`).
    RunLoRA (arXiv:2312.03415) chooses among such orders by their operations, too. In lower precision the sum
    would round a small update away, so there it is never formed.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out)."""
        if not (self.lora_active and self.training and torch.is_grad_enabled()):
            return super().forward(x)
        x, dtype = in_working_precision(x, self.weight)
        keep, scaling, p = None, self.scaling, self.lora_dropout.p
        if not p and whole_gradient_pays(x, self.out_features, len(self.lora_A)):
            return F.linear(x, torch.addmm(self.weight, scaling * self.lora_B, self.lora_A), self.bias)
        if p:
            keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p).view(-1, self.in_features)
            scaling = scaling / (1 - p)
        return _LowRankLinear.apply(x, self.weight, self.bias, self.lora_A, self.lora_B, scaling, keep, dtype)


def use_fast_layers(model: nn.Module) -> nn.Module:
    """Let every `LoraLinear` of ``model`` compute as `FastLoraLinear` does. In place; parameters stay.

    For a model whose adapters were made with ``make=LoraLinear.from_linear``. Other kinds of adapted layers
    (4-bit ones, variants) are left as they are.
    """
    for _, module in lora_modules(model):
        if type(module) is LoraLinear:
            module.__class__ = FastLoraLinear
    return model


def in_working_precision(x: Tensor, weight: Tensor) -> tuple[Tensor, torch.dtype]:
    """``x`` and the type of the products: autocast's where that is on, else that of the weight."""
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # "meta" has none
    if not casts or x.dtype == torch.float64:  # which autocast leaves alone
        return x, weight.dtype
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), dtype


def sum_pays(rows: Tensor) -> bool:
    """Whether forming W + scaling * B A is cheaper than adding the low-rank path's product to every row.

    ``rows`` are (tokens, in) on the way forward, (tokens, out) on the way back. Forming takes r operations
    and a pass over memory for each of in * out numbers; adding takes the same for tokens * out or
    tokens * in. The factor 2 is for a new array, which costs more than one that is there.
    """
    return _may_be_formed(rows) and _forming_is_less(*rows.shape)


def whole_gradient_pays(x: Tensor, n_out: int, r: int) -> bool:
    """Whether to form W + scaling * B A, to keep it, and to take A's and B's gradients from its own.

    Beside the frozen products that is one product of the same size, x' g, and three times r operations for
    each of in * out numbers: forming the sum, and two products with the whole gradient. The other way takes
    six low-rank products; where `sum_pays`, forming stands for one of them. ``x`` is (..., in).
    """
    n_in = x.shape[-1]
    tokens = x.numel() // max(n_in, 1)
    forming, by_A, by_B = r * n_in * n_out, tokens * r * n_in, tokens * r * n_out
    forward = by_A + (forming if _forming_is_less(tokens, n_in) else by_B)
    backward = by_B + (forming if _forming_is_less(tokens, n_out) else by_A) + by_A + by_B
    return _may_be_formed(x) and tokens * n_in * n_out + 3 * forming < forward + backward


def _forming_is_less(tokens: int, width: int) -> bool:
    """Writing the sum once costs about two passes over a weight; adding the path, one over the rows."""
    return tokens > 2 * width


def _may_be_formed(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"


#: From so many columns on a result is computed fast as it stands: 16 floats fill a register of AVX-512.
TILE = 16


def project(rows: Tensor, factor: Tensor) -> Tensor:
    """Return rows factor', (tokens, r), of ``rows`` (tokens, n) and ``factor`` (r, n).

    CPU libraries cut a product into tiles. A result with fewer columns than a tile fills none, and takes
    several times as long as its transpose, which has few rows; for a wider one the order hardly matters.
    """
    return (factor @ rows.T).T if len(factor) < TILE else rows @ factor.T


def gather(h: Tensor, rows: Tensor) -> Tensor:
    """Return h' rows, (r, n), of ``h`` (tokens, r) and ``rows`` (tokens, n), in the faster of two orders."""
    return h.T @ rows if h.shape[1] < TILE else (rows.T @ h).T


def adapted_product(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scaling: float, h: Tensor | None
) -> Tensor:
    """Return x (W + scaling * B A)' + b, (tokens, out); with ``h`` = x A' given, without forming the sum."""
    if h is None:
        return F.linear(x, torch.addmm(W, B, A, alpha=scaling), b)
    return F.linear(x, W, b).addmm_(h, B.T, alpha=scaling)


class _LowRankLinear(torch.autograd.Function):
    """y = x W' + b + scaling * x A' B', and its first derivatives.

    ``x`` is (..., in), ``keep`` the inputs that dropout leaves to the low-rank path, (tokens, in) or None.
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
        wants, shape = ctx.needs_input_grad, x.shape
        x = x.reshape(-1, shape[-1])  # (..., in) -> (tokens, in); here autograd keeps no account of it
        W, A, B = weight.to(dtype), lora_A.to(dtype), lora_B.to(dtype)
        b = None if bias is None else bias.to(dtype)
        h, formed = None, keep is None and sum_pays(x)
        if wants[4] or not formed:
            h = project(x if keep is None else x * keep, A)  # (tokens, r)
        y = adapted_product(x, W, b, A, B, scaling, None if formed else h)
        ctx.save_for_backward(
            x if wants[1] or wants[3] else None,
            weight if wants[0] else None,
            lora_A if wants[0] else None,
            lora_B if wants[0] or wants[3] else None,
            h if wants[4] else None,
            keep if wants[0] or wants[3] else None,
        )
        ctx.scaling, ctx.shape = scaling, shape
        return y.view(*shape[:-1], len(weight))  # (tokens, out) -> (..., out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B, h, keep = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # (..., out) -> (tokens, out)
        of_x = of_weight = of_bias = of_A = of_B = None
        formed = wants[0] and keep is None and sum_pays(grad)
        if wants[3] or (wants[0] and not formed):
            of_h = project(grad, lora_B.to(grad.dtype).T).mul_(ctx.scaling)  # (tokens, r)
        if formed:
            of_x = grad @ torch.addmm(weight, lora_B, lora_A, alpha=ctx.scaling)  # (tokens, in)
        elif wants[0]:
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
            of_A = gather(of_h, x if keep is None else x * keep)  # (r, in)
        if wants[4]:
            of_B = gather(ctx.scaling * h, grad).T  # (r, out) -> (out, r)
        of_x = None if of_x is None else of_x.view(ctx.shape)  # (tokens, in) -> (..., in)
        return of_x, of_weight, of_bias, of_A, of_B, None, None, None
