"""What came after LoRA, each as one row: rsLoRA, LoRA+, DoRA, PiSSA. Knows only torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.inject import inject_lora
from lora_tutorial.lora.layers import LoraLinear, LoraModule, lora_delta
from lora_tutorial.lora.merge import factor_names, lora_modules


class _FromLinear(LoraLinear):
    """A layer whose start depends on a pretrained weight, so that `from_linear` alone makes it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        raise TypeError(f"A {name} starts from a pretrained weight: {name}.from_linear(layer, config).")


class DoraLinear(_FromLinear):
    """A weight as magnitude times direction; LoRA moves the direction: ``W = m (W0 + s B A) / norm``.

    DoRA, equation 5 (Liu et al. 2024, arXiv:2402.09353). ``lora_magnitude`` (out,) starts as the norms of
    the rows of ``weight`` (out, in), so that with ``lora_B`` at zero the layer is the base, bit for bit. As
    in the authors' code and in PEFT there is one norm for each output, and it takes part in no gradient
    (section 4.3).

    Every forward pass forms the sum W0 + s B A for its norms: r in out multiplications, and memory for one
    more (out, in), however few the tokens. A row of zeros has no direction and raises ``ValueError``.
    """

    def add_lora(self, config: LoraConfig) -> None:
        """Add ``lora_magnitude`` (out,) to what plain LoRA makes."""
        super().add_lora(config)
        norms = torch.linalg.norm(self.weight.detach().to(self.lora_A.dtype), dim=1)  # (out, in) -> (out,)
        if not norms.is_meta and not norms.all():
            raise ValueError(
                f"{int((norms == 0).sum())} of {len(norms)} rows of this weight are zero and have no "
                "direction for DoRA to keep. Leave the layer out of target_modules, or use plain LoRA."
            )
        self.lora_magnitude = nn.Parameter(norms)

    def lora_factors(self) -> dict[str, tuple[Tensor, ...]]:
        """``weight``: lora_A (r, in), lora_B (out, r) and lora_magnitude (out,)."""
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


def principal_factors(weight: Tensor, r: int, scaling: float) -> tuple[Tensor, Tensor]:
    """PiSSA's start: A (r, in) and B (out, r), with which ``scaling * B @ A`` is the rank-r part of a weight.

    PiSSA, section 3 (Meng et al. 2024, arXiv:2404.02948). The part is the sum of the r largest singular
    values with their vectors, the best copy of ``weight`` (out, in) that has rank r.
    """
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)  # (out, k), (k,), (k, in)
    root = (S[:r] / scaling).sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root


class PissaLinear(_FromLinear):
    """LoRA that starts at the weight's r largest singular values; what is left of the weight is frozen.

    PiSSA (Meng et al. 2024, arXiv:2404.02948): with W0 = U S V', ``lora_B`` (out, r) is U_r sqrt(S_r / s),
    ``lora_A`` (r, in) is sqrt(S_r / s) V_r', and ``weight`` becomes the residual W0 - s B A. The parts sum to
    W0, so the layer computes what the base computed, up to rounding. The base's own tensor is not changed.

    The adapter means nothing beside W0, only beside the residual: before saving, `pissa_to_lora` turns it
    into plain LoRA. ``disable_lora`` gives W0 back, up to rounding. Dropout raises ``ValueError``: it would
    drop a part of the pretrained weight itself.
    """

    start_A: Tensor  # the factors as they started, on the layer's device
    start_B: Tensor

    def add_lora(self, config: LoraConfig) -> None:
        """Take the factors out of ``weight``, which becomes the residual."""
        if config.lora_dropout:
            raise ValueError(
                "PiSSA moves a part of the pretrained weight into the low-rank path, and dropout would drop "
                f"that. Set lora_dropout to 0; got {config.lora_dropout}."
            )
        super().add_lora(config)
        weight = self.weight.detach().to(self.lora_A.dtype)
        lora_A, lora_B = principal_factors(weight, config.r, self.scaling)
        with torch.no_grad():
            self.lora_A.copy_(lora_A)
            self.lora_B.copy_(lora_B)
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


Groups = list[dict[str, Any]]


@torch.no_grad()
def pissa_to_lora(model: nn.Module, base: nn.Module) -> nn.Module:
    """Write a model adapted with PiSSA as plain LoRA of twice the rank on the unchanged base.

    What training changed is s (B A - B0 A0) = s [B, -B0] [A; A0], with A0 and B0 as they started. The result
    saves, loads and exports like any other adapter.

    Parameters
    ----------
    model
        What ``inject_variant(..., "pissa")`` made, trained or not, merged or not. It stays as it is.
    base
        The model that PiSSA was injected into, loaded afresh. It is changed in place and returned, with its
        adapters and with whatever else was trained.

    Raises
    ------
    ValueError
        If ``model`` holds other adapters than PiSSA's, ``base`` has other weights, or twice the rank is above
        the smaller side of a layer.
    """
    layers = {name: layer for name, layer in lora_modules(model) if isinstance(layer, PissaLinear)}
    if not layers or len(layers) < len(dict(lora_modules(model))):
        raise ValueError("This model's adapters are not PiSSA's; there is nothing to convert.")
    own = dict(base.named_parameters())
    for name, layer in layers.items():
        weight, was = own.get(f"{name}.weight"), layer.pretrained()
        near = 1e-5 if layer.weight.dtype in (torch.float32, torch.float64) else 1e-2
        if weight is None or weight.shape != was.shape or (weight - was).norm() > near * was.norm():
            raise ValueError(
                f"base has another {name}.weight than the one that PiSSA took apart. Load that base again."
            )
    old = next(iter(layers.values())).lora_config
    alpha = old.lora_alpha * (math.sqrt(2) if old.use_rslora else 2)  # the scale stays what it was
    inject_lora(base, dataclasses.replace(old, r=2 * old.r, lora_alpha=alpha))
    for name, layer in layers.items():
        new: Any = base.get_submodule(name)
        new.lora_A.copy_(torch.cat([layer.lora_A, layer.start_A]))  # (2r, in)
        new.lora_B.copy_(torch.cat([layer.lora_B, -layer.start_B], dim=1))  # (out, 2r)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in factor_names(model):
            base.get_parameter(name).requires_grad_(True).copy_(parameter)
    return base


def _check_rates(lr: float, ratio: float, weight_decay: float) -> None:
    """Raise ``ValueError`` for a rate, a ratio or a decay that no optimiser could use."""
    for name, value, good in (("lr", lr, lr > 0), ("ratio", ratio, ratio > 0)):
        if not good or not math.isfinite(value):
            raise ValueError(f"{name} must be above 0 and finite; got {value!r}.")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0; got {weight_decay!r}.")


def loraplus_groups(model: nn.Module, lr: float, ratio: float = 16.0, weight_decay: float = 0.0) -> Groups:
    """Groups of parameters in which ``lora_B`` learns ``ratio`` times as fast as ``lora_A``.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354). Vectors (biases, gains, DoRA's magnitudes) learn at B's rate
    and without weight decay, other matrices (a head) at A's, as in the authors' code and in PEFT.

    Parameters
    ----------
    model
        With adapters that train; ``ValueError`` without.
    lr, ratio
        The learning rate of A, and that of B over it (the paper's lambda; 1 is plain LoRA). Both above 0.
    weight_decay
        For matrices, not below 0.

    Returns
    -------
    list of dict
        For any optimiser of torch: three groups with ``params``, ``lr`` and ``weight_decay``, less those that
        would be empty. Every trainable parameter is in one.
    """
    _check_rates(lr, ratio, weight_decay)
    second = {id(pair[1]) for _, m in lora_modules(model) for pair in m.lora_factors().values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not any(id(p) in second for p in trained):
        raise ValueError("No lora_B trains in this model; inject adapters first.")
    split: dict[str, list[nn.Parameter]] = {"A": [], "B": [], "vectors": []}
    for p in trained:
        split["B" if id(p) in second else "vectors" if p.ndim < 2 else "A"].append(p)
    rates = {"A": (lr, weight_decay), "B": (lr * ratio, weight_decay), "vectors": (lr * ratio, 0.0)}
    return [
        {"params": params, "lr": rates[key][0], "weight_decay": rates[key][1]}
        for key, params in split.items()
        if params
    ]


def plain_groups(model: nn.Module, lr: float) -> Groups:
    """Every trainable parameter in one group."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr}]


@dataclass(frozen=True)
class Variant:
    """One row: what a variant changes, and where that is written.

    Attributes
    ----------
    title, paper, changes
        For people.
    make
        For ``inject_lora``.
    settings
        Fields of `LoraConfig` that it fixes.
    groups
        ``groups(model, lr)``: what the optimiser is given.
    """

    title: str
    paper: str
    changes: str
    make: Callable[[nn.Linear, LoraConfig], LoraModule] = FastLoraLinear.from_linear
    settings: dict[str, Any] = field(default_factory=dict)
    groups: Callable[[nn.Module, float], Groups] = plain_groups


VARIANTS = {
    "lora": Variant("LoRA", "arXiv:2106.09685", "nothing"),
    "rslora": Variant("rsLoRA", "arXiv:2312.03732", "the scale", settings={"use_rslora": True}),
    "loraplus": Variant("LoRA+", "arXiv:2402.12354", "the learning rate of B", groups=loraplus_groups),
    "dora": Variant("DoRA", "arXiv:2402.09353", "how the weight is formed", DoraLinear.from_linear),
    "pissa": Variant("PiSSA", "arXiv:2404.02948", "where A and B start", PissaLinear.from_linear),
}


def inject_variant(model: nn.Module, config: LoraConfig, variant: str = "lora") -> nn.Module:
    """``inject_lora`` with the layers and settings of a row of `VARIANTS`.

    Raises
    ------
    TypeError, ValueError
        As for ``inject_lora``; if there is no such variant, or one layer cannot have it. No change then.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    row = VARIANTS[variant]
    return inject_lora(model, dataclasses.replace(config, **row.settings), make=row.make)


def variant_of(model: nn.Module) -> str:
    """Which kind of layer a model's adapters need: ``"dora"``, ``"pissa"``, or ``"lora"`` for all others."""
    kinds = {type(module) for _, module in lora_modules(model)}
    return "dora" if DoraLinear in kinds else "pissa" if PissaLinear in kinds else "lora"
