"""The ways to fine-tune that the speed benchmark compares, all at the same weights: one loss for all."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import loralib
import peft
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from speed_settings import Setting
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, RobertaForSequenceClassification

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.inject import find_targets, inject_lora
from lora_tutorial.lora.layers import LoraLinear, lora_delta
from lora_tutorial.lora.merge import lora_modules, merge_lora
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.models.fast_llama import use_fast_blocks
from lora_tutorial.models.fast_roberta import use_fast_attention
from lora_tutorial.models.roberta import LoraRobertaSelfAttention
from lora_tutorial.quant.linear4bit import LoraLinear4bit, keep_codes, linears_4bit, quantize_linears

HALF = torch.bfloat16
DTYPES = {"fp32": torch.float32, "autocast": torch.float32, "bf16": HALF, "nf4": HALF}
#: The shape of SmolLM2-135M; grouped keys and values, and one tensor for both embeddings.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "use_cache": False,
}
QUERY_VALUE = {"smollm2": ("q_proj", "v_proj")}
BACKEND = "inductor"  # of torch.compile


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


class FloorLinear4bit(FloorLinear, Linear4bit):
    """The same on a packed weight."""


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
    base = _base(setting).to(setting.device, DTYPES[setting.precision]).requires_grad_(False)
    if setting.precision == "nf4":
        for _, packed in linears_4bit(keep_codes(quantize_linears(base))):
            packed.compute_dtype = HALF
    query_value = QUERY_VALUE.get(setting.model, ("query", "value"))
    targets = "all-linear" if setting.targets == "all-linear" else query_value
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


def _base(setting: Setting) -> nn.Module:
    if setting.layer_sizes:
        return OneLinear(*setting.layer_sizes)
    if setting.model == "smollm2":
        return LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return load_encoder(
        setting.model, weights="random", model_class=RobertaForSequenceClassification, **no_dropout
    ).model


def _batch(setting: Setting, base: nn.Module) -> dict[str, Tensor]:
    if setting.layer_sizes:
        n_in, n_out = setting.layer_sizes
        dtype = DTYPES[setting.precision]
        x = torch.randn(setting.tokens, n_in).to(setting.device, dtype)
        grad = torch.randn(setting.tokens, n_out).to(setting.device, dtype)
        return {"x": x.requires_grad_(setting.phase == "train"), "grad": grad}
    ids = torch.randint(200, base.config.vocab_size, (setting.batch, setting.length), device=setting.device)
    classes = torch.arange(setting.batch, device=setting.device) % 2
    return {"input_ids": ids, "labels": ids if setting.model == "smollm2" else classes}


def build(bench: Bench, variant: str) -> nn.Module:
    """One variant, on the shared base; what it trains is its own copy. A wrong name raises ``ValueError``."""
    if variant not in VARIANTS:
        raise ValueError(f"No variant {variant!r}; there are {', '.join(VARIANTS)}.")
    # The same storage, so ten models take the memory of one, but each with its own requires_grad.
    own: dict[int, object] = {}
    for p in bench.base.parameters():
        own[id(p)] = p if isinstance(p, Params4bit) else nn.Parameter(p.data, requires_grad=False)
    own |= {id(layer.quant_state): layer.quant_state for _, layer in linears_4bit(bench.base)}
    model = VARIANTS[variant](copy.deepcopy(bench.base, own), bench)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.clone()
    if bench.setting.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(bench.setting.phase == "train")
    return _compiled(model) if bench.setting.compiled else model


def _compiled(model: nn.Module) -> nn.Module:
    """Compile each layer of the stack in place: all have one code, so it takes the time of two or three."""
    # Every form is another case for that code. Past the limit torch would go on without compiling.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for layer in next((m for m in model.modules() if isinstance(m, nn.ModuleList)), [model]):
        layer.compile(backend=BACKEND, dynamic=False)
    return model


def _folded(model: nn.Module, bench: Bench) -> nn.Module:
    """Without adapters, but at the same weights: W + scaling * B A; packed ones stay as they are."""
    if bench.setting.precision == "nf4":
        return model
    for name, (lora_A, lora_B) in bench.factors.items():
        weight = model.get_submodule(name).weight
        weight.data = weight.data + lora_delta(lora_A, lora_B, bench.config.scaling).to(weight.dtype)
    return model


def _full(model: nn.Module, bench: Bench) -> nn.Module:
    return _folded(model, bench).requires_grad_(True)


def _floor(model: nn.Module, bench: Bench) -> nn.Module:
    for name in bench.names:
        layer = model.get_submodule(name)
        layer.__class__ = FloorLinear4bit if isinstance(layer, Linear4bit) else FloorLinear
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
        own = LoraLinear4bit if bench.setting.precision == "nf4" else kind
        inject_lora(model, bench.config, make=own.from_linear)
        for name, layer in lora_modules(model):
            layer.lora_A.copy_(bench.factors[name][0])
            layer.lora_B.copy_(bench.factors[name][1])
        return model

    return make


@torch.no_grad()
def _fused(model: nn.Module, bench: Bench) -> nn.Module:
    """What `train` takes: the attention written by hand, or the blocks whose layers share an input."""
    if bench.setting.targets == "all-linear" or bench.setting.model == "smollm2":
        return use_fast_blocks(use_fast_attention(_ours(FastLoraLinear)(model, bench)))
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
def _peft(model: nn.Module, bench: Bench, dtype: torch.dtype = torch.float32) -> nn.Module:
    """PEFT's layers; its factors in float32, which ``get_peft_model`` makes them, or as ``dtype`` says."""
    model.is_loaded_in_4bit = bench.setting.precision == "nf4"  # PEFT asks for it
    config = peft.LoraConfig(
        r=bench.config.r,
        lora_alpha=bench.config.lora_alpha,
        lora_dropout=bench.config.lora_dropout,
        target_modules=bench.names,
    )
    model = peft.inject_adapter_in_model(config, model)
    for name, (lora_A, lora_B) in bench.factors.items():
        layer = model.get_submodule(name)
        layer.lora_A["default"].to(dtype).weight.copy_(lora_A)
        layer.lora_B["default"].to(dtype).weight.copy_(lora_B)
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
    "peft-half": functools.partial(_peft, dtype=HALF),
    "loralib": _loralib,
}
