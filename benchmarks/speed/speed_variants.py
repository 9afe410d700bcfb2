"""The ways to fine-tune that the speed benchmark compares, all at the same weights: one loss for all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import loralib
import peft
import torch
from speed_settings import Setting
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaForSequenceClassification

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.inject import find_targets, inject_lora
from lora_tutorial.lora.layers import LoraLinear, lora_delta
from lora_tutorial.lora.merge import lora_modules, merge_lora
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.models.fast_roberta import use_fast_attention
from lora_tutorial.models.roberta import LoraRobertaSelfAttention

DTYPES = {"fp32": torch.float32, "autocast": torch.float32, "bf16": torch.bfloat16}


class OneLinear(nn.Module):
    """A layer in the middle of a network: its input needs a gradient, and one comes for its output."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, grad: Tensor) -> Tensor:
        """The loss: ``x`` (tokens, in) through the layer, times ``grad`` (tokens, out), averaged."""
        y = self.linear(x)
        return (y * grad).sum() / y.numel()


class FloorLinear(nn.Linear):
    """A frozen layer whose output needs a gradient as if an adapter stood here, one that costs nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.requires_grad or not torch.is_grad_enabled() else y.requires_grad_()


class MaterialisedLinear(LoraLinear):
    """As in the tutorial this book follows: B A is formed, added to the weight, and left to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.lora_delta().to(self.weight.dtype), self.bias)


@dataclass
class Bench:
    """What all variants of one setting share: the base, where adapters go, their factors, one batch."""

    setting: Setting
    base: nn.Module
    config: LoraConfig
    names: list[str]
    factors: dict[str, tuple[Tensor, Tensor]]
    batch: dict[str, Tensor]


def make_bench(setting: Setting, seed: int = 0) -> Bench:
    """Draw base, factors (``lora_B`` not zero, as after some training) and batch.

    Raises
    ------
    ValueError
        If r is too large for a layer, or the device is not there.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch sees none here; use cpu.")
    torch.manual_seed(seed)
    if setting.layer_sizes:
        base: nn.Module = OneLinear(*setting.layer_sizes)
    else:
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        base = load_encoder(
            setting.model, weights="random", model_class=RobertaForSequenceClassification, **no_dropout
        ).model
    base = base.to(setting.device, DTYPES[setting.precision]).requires_grad_(False)
    targets = "all-linear" if setting.targets == "all-linear" else ("query", "value")
    config = LoraConfig(
        r=setting.r, lora_alpha=2 * setting.r, lora_dropout=setting.lora_dropout, target_modules=targets
    )
    names = find_targets(base, config)
    factors = {}
    for name in names:
        layer = base.get_submodule(name)
        lora_A = torch.randn(setting.r, layer.in_features) / layer.in_features**0.5
        lora_B = torch.randn(layer.out_features, setting.r) * 0.01 / setting.r**0.5
        factors[name] = lora_A.to(setting.device), lora_B.to(setting.device)
    return Bench(setting, base, config, names, factors, _batch(setting, base))


def _batch(setting: Setting, base: nn.Module) -> dict[str, Tensor]:
    if setting.layer_sizes:
        n_in, n_out = setting.layer_sizes
        dtype = DTYPES[setting.precision]
        x = torch.randn(setting.tokens, n_in).to(setting.device, dtype)
        grad = torch.randn(setting.tokens, n_out).to(setting.device, dtype)
        return {"x": x.requires_grad_(setting.phase == "train"), "grad": grad}
    ids = torch.randint(200, base.config.vocab_size, (setting.batch, setting.length), device=setting.device)
    return {"input_ids": ids, "labels": torch.arange(setting.batch, device=setting.device) % 2}


def build(bench: Bench, variant: str) -> nn.Module:
    """One variant, on the shared base; what it trains is its own copy. A wrong name raises ``ValueError``."""
    if variant not in VARIANTS:
        raise ValueError(f"No variant {variant!r}; there are {', '.join(VARIANTS)}.")
    # The same storage, so ten models take the memory of one, but each with its own requires_grad.
    own = {id(p): nn.Parameter(p.data, requires_grad=False) for p in bench.base.parameters()}
    model = VARIANTS[variant](copy.deepcopy(bench.base, own), bench)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    if bench.setting.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(bench.setting.phase == "train")
    return torch.compile(model) if bench.setting.compiled else model


def _folded(model: nn.Module, bench: Bench) -> nn.Module:
    """Without adapters, but at the same weights: W + scaling * B A."""
    for name, (lora_A, lora_B) in bench.factors.items():
        weight = model.get_submodule(name).weight
        weight.data = weight.data + lora_delta(lora_A, lora_B, bench.config.scaling).to(weight.dtype)
    return model


def _full(model: nn.Module, bench: Bench) -> nn.Module:
    return _folded(model, bench).requires_grad_(True)


def _floor(model: nn.Module, bench: Bench) -> nn.Module:
    for name in bench.names:
        model.get_submodule(name).__class__ = FloorLinear
    return _folded(model, bench)


def _head(model: nn.Module, bench: Bench) -> nn.Module:
    _folded(model, bench).classifier.requires_grad_(True)
    return model


def _bitfit(model: nn.Module, bench: Bench) -> nn.Module:
    for name, parameter in _folded(model, bench).named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    return model


def _ours(kind: type[LoraLinear]) -> Callable[[nn.Module, Bench], nn.Module]:
    @torch.no_grad()
    def make(model: nn.Module, bench: Bench) -> nn.Module:
        inject_lora(model, bench.config, make=kind.from_linear)
        for name, layer in lora_modules(model):
            layer.lora_A.copy_(bench.factors[name][0])
            layer.lora_B.copy_(bench.factors[name][1])
        return model

    return make


@torch.no_grad()
def _fused(model: nn.Module, bench: Bench) -> nn.Module:
    for name in [n for n in bench.names if n.endswith(".query")]:
        place = name.removesuffix(".query")
        attention = LoraRobertaSelfAttention.from_attention(
            model.get_submodule(place), bench.config.r, bench.config.lora_alpha
        ).requires_grad_(False)
        for linear in ("query", "value"):
            pair = attention.lora_factors()[f"{linear}.weight"]
            for factor, value in zip(pair, bench.factors[f"{place}.{linear}"], strict=True):
                factor.copy_(value).requires_grad_(True)
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, attention)
    return use_fast_attention(model)


def _merged(model: nn.Module, bench: Bench) -> nn.Module:
    for name, layer in lora_modules(_ours(LoraLinear)(model, bench)):
        layer.weight = nn.Parameter(bench.base.get_submodule(name).weight.clone(), requires_grad=False)
    return merge_lora(model)


@torch.no_grad()
def _peft(model: nn.Module, bench: Bench) -> nn.Module:
    config = peft.LoraConfig(
        r=bench.config.r,
        lora_alpha=bench.config.lora_alpha,
        lora_dropout=bench.config.lora_dropout,
        target_modules=bench.names,
    )
    model = peft.inject_adapter_in_model(config, model)
    for name, (lora_A, lora_B) in bench.factors.items():
        layer = model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(lora_A)
        layer.lora_B["default"].weight.copy_(lora_B)
    return model


@torch.no_grad()
def _loralib(model: nn.Module, bench: Bench) -> nn.Module:
    config = bench.config
    for name, (lora_A, lora_B) in bench.factors.items():
        plain = model.get_submodule(name)
        layer = loralib.Linear(
            plain.in_features,
            plain.out_features,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            merge_weights=False,
            device=plain.weight.device,
            dtype=plain.weight.dtype,
        )
        layer.weight, layer.bias = plain.weight, plain.bias
        layer.lora_A.copy_(lora_A)
        layer.lora_B.copy_(lora_B)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return model


VARIANTS: dict[str, Callable[[nn.Module, Bench], nn.Module]] = {
    "base": _folded,
    "full": _full,
    "floor": _floor,
    "head": _head,
    "bitfit": _bitfit,
    "materialised": _ours(MaterialisedLinear),
    "teaching": _ours(LoraLinear),
    "fast": _ours(FastLoraLinear),
    "fused": _fused,
    "merged": _merged,
    "peft": _peft,
    "loralib": _loralib,
}
