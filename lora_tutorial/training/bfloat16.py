"""Products of matrices in bfloat16, on a processor that has no instructions for it.

There torch takes some twelve times as long for them as in float32. The instructions multiply exactly and add
up in float32, and so does the float32 product of the same rounded factors, in another order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

BF16 = torch.bfloat16


def has_bfloat16() -> bool:
    """Whether torch has fast products in bfloat16 on this processor, as far as oneDNN can tell."""
    supported = getattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None
    )  # a torch without oneDNN has none
    return supported is None or bool(supported())


def mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, (n, k) and (k, m)."""
    if a.dtype is BF16:
        return torch.mm(a.float(), b.float()).to(BF16)
    return torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * c`` plus ``alpha`` times the product of two matrices, (n, k) and (k, m)."""
    if a.dtype is BF16:
        return torch.addmm(c.float(), a.float(), b.float(), beta=beta, alpha=alpha).to(BF16)
    out = a.new_empty(a.shape[0], b.shape[1])
    return torch.ops.aten.addmm.out(c, a, b, beta=beta, alpha=alpha, out=out)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """The products of a batch of matrices, (p, n, k) and (p, k, m)."""
    if a.dtype is BF16:
        return torch.bmm(a.float(), b.float()).to(BF16)
    return torch.ops.aten.bmm.out(a, b, out=a.new_empty(*a.shape[:2], b.shape[2]))


def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * c`` plus ``alpha`` times the products of a batch, (p, n, k) and (p, k, m)."""
    if a.dtype is BF16:
        return torch.baddbmm(c.float(), a.float(), b.float(), beta=beta, alpha=alpha).to(BF16)
    out = a.new_empty(*a.shape[:2], b.shape[2])
    return torch.ops.aten.baddbmm.out(c, a, b, beta=beta, alpha=alpha, out=out)


PRODUCTS: dict[str, Callable[..., Tensor]] = {"mm": mm, "addmm": addmm, "bmm": bmm, "baddbmm": baddbmm}


@cache
def add_up_in_float32() -> torch.library.Library:
    """Have torch compute these four products on the CPU as above, from now on and in the whole process.

    Other types keep torch's own kernels, and gradients follow by themselves: theirs are such products too.
    """
    kernels = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verrid")  # that is the purpose
        for name, product in PRODUCTS.items():
            kernels.impl(name, product, "CPU")
    return kernels
