"""A linear layer with a low-rank adapter, and the arithmetic it stands on. Knows only torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_tutorial.lora.config import LoraConfig


def lora_delta(lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """The update of a weight, ``scaling * B @ A`` (LoRA paper, equation 3 and section 4.1).

    ``lora_A`` is (r, in), ``lora_B`` (out, r), the result (out, in) and of rank at most r. Factors that do
    not share the rank raise ``ValueError``.
    """
    if lora_A.ndim != 2 or lora_B.ndim != 2 or lora_A.shape[0] != lora_B.shape[1]:
        raise ValueError(
            "lora_A must be (r, in) and lora_B (out, r) with one r; "
            f"got {tuple(lora_A.shape)} and {tuple(lora_B.shape)}."
        )
    return scaling * (lora_B @ lora_A)


def check_rank(r: int, in_features: int, out_features: int, layer: str = "a layer") -> None:
    """Refuse a rank that no matrix of this shape can have."""
    if r > min(in_features, out_features):
        raise ValueError(
            f"r = {r} is above {min(in_features, out_features)}, the smaller side of {layer} ({in_features} "
            f"to {out_features}); choose a smaller r or leave the layer out of target_modules."
        )


def new_factors(
    in_features: int,
    out_features: int,
    config: LoraConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[nn.Parameter, nn.Parameter]:
    """Draw ``lora_A`` (r, in) at random and set ``lora_B`` (out, r) to zero, so that the update starts at 0.

    A rank above the smaller side of the weight raises ``ValueError``: B @ A could not have it.
    """
    check_rank(config.r, in_features, out_features)
    lora_A = nn.Parameter(torch.empty(config.r, in_features, device=device, dtype=dtype))
    lora_B = nn.Parameter(torch.zeros(out_features, config.r, device=device, dtype=dtype))
    if config.init == "gaussian":
        nn.init.normal_(lora_A, std=1 / config.r)
    else:
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))  # uniform in ±1/sqrt(in), as nn.Linear itself
    return lora_A, lora_B


def factors_for(linear: nn.Linear, config: LoraConfig) -> tuple[nn.Parameter, nn.Parameter]:
    """`new_factors` on the device of a layer, in float32 or, where its weight is that, float64."""
    # Half precision or 4 bits are for what stays frozen: an update of 1e-4 would be lost in them.
    dtype = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
    return new_factors(linear.in_features, linear.out_features, config, linear.weight.device, dtype)


def keep_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` call the hooks of the module it replaces; their handles still remove them."""
    for key, value in vars(old).items():
        if value and "_hook" in key and ("forward" in key or "backward" in key):
            vars(new)[key] = value


class LoraModule(nn.Module, ABC):
    """What every module that holds an adapter can do: say its update, merge it, and undo that exactly.

    A subclass sets `lora_config` and says in `lora_factors` which of its weights are adapted. Merging is
    explicit: neither ``train()`` nor ``eval()`` changes a weight.
    """

    lora_config: LoraConfig
    lora_enabled: bool = True
    _originals: dict[str, Tensor] | None = None  # set while merged

    @classmethod
    def around(cls, module: nn.Module) -> Self:
        """A new module with the parts, settings and hooks of ``module`` (not copies), and no adapter yet."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        vars(new).update({key: value for key, value in vars(module).items() if key[0] != "_"})
        for parts in ("_parameters", "_buffers", "_modules"):
            vars(new)[parts].update(vars(module)[parts])
        keep_hooks(module, new)
        return new

    @abstractmethod
    def lora_factors(self) -> dict[str, tuple[Tensor, ...]]:
        """Each adapted weight, as named in ``state_dict``: lora_A, lora_B, and what else a variant trains."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """The module without its adapter, with the weights (not copies) as they are now."""

    def lora_delta(self, weight: str = "weight") -> Tensor:
        """The update of ``weight``, shape (out, in): ``scaling * B @ A``."""
        lora_A, lora_B = self.lora_factors()[weight]
        return lora_delta(lora_A, lora_B, self.lora_config.scaling)

    @property
    def merged(self) -> bool:
        """Whether the weights hold their updates."""
        return self._originals is not None

    @property
    def originals(self) -> dict[str, Tensor]:
        """The weights that `merge` replaced, by name; empty unless merged."""
        return self._originals or {}

    @property
    def lora_active(self) -> bool:
        """Whether the forward pass has to add the low-rank path."""
        return self.lora_enabled and not self.merged

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights; a second call does nothing.

        The weights as they were are kept, because ``(w + d) - d`` is not ``w`` in floating point: merging
        costs one more copy of every adapted weight until `unmerge`.

        Raises
        ------
        ValueError
            If a merged weight would hold an infinity or NaN; nothing is changed then.
        """
        if self.merged:
            return
        weights = {name: self.get_parameter(name) for name in self.lora_factors()}
        new = {name: (w + self.lora_delta(name)).to(w.dtype) for name, w in weights.items()}
        for name, value in new.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"Merging would make {name} infinite or NaN in {value.dtype}; nothing was merged."
                )
        self._originals = {name: w.detach().clone() for name, w in weights.items()}
        for name, w in weights.items():
            w.copy_(new[name])

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weights back, bit for bit; without a merge it does nothing."""
        for name, original in self.originals.items():
            self.get_parameter(name).copy_(original)
        self._originals = None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[f"{prefix}lora_merged"] = torch.tensor(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.merged or f"{prefix}lora_merged" in state_dict:  # the update would count twice, or be lost
            raise ValueError(
                f"{prefix[:-1] or 'The layer'} is merged in "
                f"{'this model' if self.merged else 'what is loaded'}: its weight holds the update already. "
                "Call unmerge_lora(model) before state_dict() and before load_state_dict()."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class SharingBlock(nn.Module):
    """A block that computes those of its layers that read one input together, see `linears_together`.

    Made by giving a block of ``original`` this class; `unload_lora` gives it back its own.
    """

    original: type[Any]


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
        Rank, scale, dropout and start; where to adapt does not concern a single layer. A rank above the
        smaller of the two sizes raises ``ValueError``.
    """

    packed = False  # whether the weight may hold packed codes

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
        self.add_lora(config or LoraConfig())

    def add_lora(self, config: LoraConfig) -> None:
        """Make the parameters of the low-rank path; what a variant adds to them, it adds here."""
        self.lora_config = config
        self.lora_A, self.lora_B = factors_for(self, config)
        self.lora_dropout = nn.Dropout(config.lora_dropout)

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LoraConfig) -> Self:
        """Adapt an existing layer: same weight and bias (not copies), same device, dtype, mode and hooks.

        A layer with packed weights raises ``TypeError``, unless it comes with a subclass of its own.
        """
        if not linear.weight.is_floating_point() and not cls.packed:
            raise TypeError(
                f"{cls.__name__} needs a floating-point weight; this {type(linear).__name__} holds "
                f"{linear.weight.dtype}. On bitsandbytes' 4-bit layers use inject_lora_4bit, or call "
                "dequantize_linears(model) first."
            )
        layer = cls.around(linear).requires_grad_(False)
        layer.add_lora(config)
        return layer.train(linear.training)

    def plain(self) -> nn.Linear:
        """The layer without its adapter: the same weight and bias, not copies."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        keep_hooks(self, linear)
        return linear.train(self.training)

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA."""
        return self.lora_config.scaling

    def lora_factors(self) -> dict[str, tuple[Tensor, ...]]:
        """``weight``: lora_A (r, in) and lora_B (out, r)."""
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
        """What ``print(model)`` says of the layer: its sizes, the rank and alpha."""
        return f"{super().extra_repr()}, r={self.lora_config.r}, lora_alpha={self.lora_config.lora_alpha}"
