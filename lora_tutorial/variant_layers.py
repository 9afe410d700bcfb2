"""Adapted layers that came after LoRA: DoRA and PiSSA. Knows only torch.

Both stand on the mechanism of `LoraModule`: a layer says in ``lora_delta`` what its update of the weight is,
and in ``lora_factors`` which tensors it trains for that. Merging, freezing, counting and saving follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_tutorial.arithmetic import lora_delta
from lora_tutorial.config import LoraConfig
from lora_tutorial.layers import LoraLinear


class _FromLinear(LoraLinear):
    """A layer whose start depends on the pretrained weight, so that there has to be one."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        raise TypeError(f"A {name} starts from a pretrained weight: {name}.from_linear(layer, config).")

    def _add_lora(self, config: LoraConfig) -> None:
        if not self.weight.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} needs a floating-point weight; this layer holds {self.weight.dtype}. "
                "Call dequantize_linears(model) first, or use plain LoRA on it."
            )
        super()._add_lora(config)


class DoraLinear(_FromLinear):
    """A weight as magnitude times direction; LoRA moves the direction: ``W = m (W0 + s B A) / norm``.

    DoRA, equation 5 (Liu et al. 2024, arXiv:2402.09353). ``lora_magnitude`` (out,) starts as the norms of
    the rows of ``weight`` (out, in), so that with ``lora_B`` at zero the layer is the base, bit for bit. As
    in the authors' code and in PEFT there is one norm for each output, and it takes part in no gradient
    (section 4.3).

    Every forward pass forms the sum W0 + s B A for its norms: r in out multiplications, and memory for one
    more (out, in), however few the tokens.

    Raises
    ------
    TypeError
        If the weight is packed, or the layer is not made by `from_linear`.
    ValueError
        If a row of the weight is zero: it has no direction.
    """

    def _add_lora(self, config: LoraConfig) -> None:
        super()._add_lora(config)
        norms = torch.linalg.norm(self.weight.detach().to(self.lora_A.dtype), dim=1)  # (out, in) -> (out,)
        if not norms.is_meta and not norms.all():
            raise ValueError(
                f"{int((norms == 0).sum())} of {len(norms)} rows of this weight are zero and have no "
                "direction for DoRA to keep. Leave the layer out of target_modules, or use plain LoRA."
            )
        self.lora_magnitude = nn.Parameter(norms)

    def lora_factors(self) -> dict[str, tuple[Tensor, ...]]:
        return {"weight": (self.lora_A, self.lora_B, self.lora_magnitude)}

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """Norms (out,) of the rows of W0 + s B A, as constants."""
        weight = self.originals.get("weight", self.weight).to(self.lora_A.dtype)
        return torch.linalg.norm(weight + lora_delta(self.lora_A, self.lora_B, self.scaling), dim=1)

    def lora_delta(self, weight: str = "weight") -> Tensor:
        """The update of ``weight``, (out, in): the new weight minus W0. Its rank may well be above r."""
        base = self.originals.get(weight, self.weight).to(self.lora_A.dtype)
        ratio = (self.lora_magnitude / self._norms())[:, None]  # (out,) -> (out, 1)
        return ratio * (base + lora_delta(self.lora_A, self.lora_B, self.scaling)) - base

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out)."""
        y = nn.Linear.forward(self, x)
        if not self.lora_active:
            return y
        ratio = self.lora_magnitude / self._norms()
        x = self.lora_dropout(x.to(self.lora_A.dtype))
        if self.training and self.lora_dropout.p:  # then the frozen weight needs a second product
            plain = F.linear(x, self.weight.to(x.dtype))
        else:
            plain = y if self.bias is None else y - self.bias
        update = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
        return (y + (ratio - 1) * plain + ratio * update).to(y.dtype)


class PissaLinear(_FromLinear):
    """LoRA that starts at the weight's r largest singular values; what is left of the weight is frozen.

    PiSSA (Meng et al. 2024, arXiv:2404.02948): with W0 = U S V', ``lora_B`` (out, r) is U_r sqrt(S_r / s),
    ``lora_A`` (r, in) is sqrt(S_r / s) V_r', and ``weight`` becomes the residual W0 - s B A. The parts sum to
    W0, so the layer computes what the base computed, up to rounding. The base's own tensor is not changed.

    The adapter means nothing beside W0, only beside the residual: before saving, `pissa_to_lora` turns it
    into plain LoRA. ``disable_lora`` gives W0 back, up to rounding.

    Raises
    ------
    TypeError
        If the weight is packed, or the layer is not made by `from_linear`.
    ValueError
        If ``lora_dropout`` is not 0: it would drop a part of the pretrained weight itself.
    """

    def _add_lora(self, config: LoraConfig) -> None:
        if config.lora_dropout:
            raise ValueError(
                "PiSSA moves a part of the pretrained weight into the low-rank path, and dropout would drop "
                f"that. Set lora_dropout to 0; got {config.lora_dropout}."
            )
        super()._add_lora(config)
        weight = self.weight.detach().to(self.lora_A.dtype)
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)  # (out, k), (k,), (k, in)
        root = (S[: config.r] / self.scaling).sqrt()
        with torch.no_grad():
            self.lora_B.copy_(U[:, : config.r] * root)
            self.lora_A.copy_(root[:, None] * Vh[: config.r])
            residual = (weight - self.lora_delta()).to(self.weight.dtype)
        self.weight = nn.Parameter(residual, requires_grad=False)
        self.register_buffer("start_A", self.lora_A.detach().clone(), persistent=False)
        self.register_buffer("start_B", self.lora_B.detach().clone(), persistent=False)

    def pretrained(self) -> Tensor:
        """W0 (out, in) again, up to rounding: the residual and the part that training started from."""
        residual = self.originals.get("weight", self.weight).to(self.start_A.dtype)
        return residual + lora_delta(self.start_A, self.start_B, self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out)."""
        if self.lora_enabled or self.merged:
            return super().forward(x)
        return F.linear(x, self.pretrained().to(x.dtype), self.bias)
