"""A linear layer with a low-rank adapter. Knows only torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_tutorial.arithmetic import LoraModule, new_factors
from lora_tutorial.config import LoraConfig


class LoraLinear(LoraModule, nn.Linear):
    """``nn.Linear`` plus a low-rank path: ``y = x W' + b + scaling * x A' B'`` (LoRA paper, equation 3).

    ``weight`` (out, in) and ``bias`` (out,) keep their names, so a checkpoint of the plain layer loads; they
    are frozen. ``lora_A`` (r, in) starts at random, ``lora_B`` (out, r) at zero. The product B A is never
    formed while training: two thin products cost r (in + out) multiplications a token, B A alone r in out.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for ``nn.Linear``.
    config
        Rank, scale, dropout and start; where to adapt does not concern a single layer.

    Raises
    ------
    ValueError
        If r is above the smaller of the two sizes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        config: LoraConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self._add_lora(config or LoraConfig())

    def _add_lora(self, config: LoraConfig) -> None:
        self.lora_config = config
        # Half precision or 4 bits are for what stays frozen: an update of 1e-4 would be lost in them.
        dtype = self.weight.dtype if self.weight.dtype in (torch.float32, torch.float64) else torch.float32
        self.lora_A, self.lora_B = new_factors(
            self.in_features, self.out_features, config, self.weight.device, dtype
        )
        self.lora_dropout = nn.Dropout(config.lora_dropout)

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LoraConfig) -> LoraLinear:
        """Adapt an existing layer: same weight and bias (not copies), same device, dtype and mode.

        A layer with packed weights raises ``TypeError``, unless it comes with a subclass of its own.
        """
        if cls is LoraLinear and not linear.weight.is_floating_point():
            raise TypeError(
                f"LoraLinear needs a floating-point weight; this {type(linear).__name__} holds "
                f"{linear.weight.dtype}. For bitsandbytes' 4-bit layers use inject_lora_4bit."
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.__dict__.update({k: v for k, v in linear.__dict__.items() if not k.startswith("_")})
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.requires_grad_(False)
        layer._add_lora(config)
        return layer.train(linear.training)

    def plain(self) -> nn.Linear:
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA."""
        return self.lora_config.scaling

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {"weight": (self.lora_A, self.lora_B)}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out)."""
        y = super().forward(x)
        if not self.lora_active:
            return y
        x = self.lora_dropout(x.to(self.lora_A.dtype))  # (..., in)
        update = F.linear(F.linear(x, self.lora_A), self.lora_B)  # (..., in) -> (..., r) -> (..., out)
        return (y + update * self.scaling).to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.lora_config.r}, lora_alpha={self.lora_config.lora_alpha}"
