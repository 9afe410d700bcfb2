"""What the laws are held for: tiny models of many architectures, and the kinds of adapters in them.

A new kind is one row of KINDS: how it is injected, its class, and its adapted weight by the paper's formula,
written out here apart from the package. Every law of laws.py then holds it on every architecture that the row
names. A new architecture is one row of ARCHITECTURES.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft_models import base, batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from lora_tutorial import (
    DoraLinear,
    FastLoraLinear,
    LoraConfig,
    LoraLinear,
    LoraLinear4bit,
    LoraRobertaSelfAttention,
    LoraWrapperRoberta,
    PissaLinear,
    freeze_parameters_except_lora_and_bias,
    inject_lora,
    inject_lora_4bit,
    inject_variant,
    keep_codes,
    use_fast_attention,
    use_fast_blocks,
)
from lora_tutorial.lora.merge import factor_names
from lora_tutorial.models.fast_roberta import FastLoraRobertaSelfAttention
from lora_tutorial.quant.linear4bit import quantize_linears

# ---- the architectures: tiny, random, never square where that can be ---------------------------------------

TEXT = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4}
SPREAD = {"initializer_range": 0.2}


class Layers(nn.Module):
    """Two layers, one without a bias, and a head; float64 and 4 bits are cheap to try in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 20, bias=False))
        self.classifier = nn.Linear(20, 3)
        self.recomputing: dict[str, bool] | None = None

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, bool]) -> None:
        self.recomputing = activation_checkpointing_kwargs

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        y = self.body(x) if self.recomputing is None else checkpoint(self.body, x, **self.recomputing)
        logits = self.classifier(y).mean(1)  # (rows, tokens, 3) -> (rows, 3)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def llama(**changes: Any) -> nn.Module:
    sizes = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**TEXT, **sizes, **SPREAD, **changes))


def t5() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**TEXT, **sizes, decoder_start_token_id=0))


def vit() -> nn.Module:
    return ViTForImageClassification(ViTConfig(**SIZE, **SPREAD, image_size=16, patch_size=4, num_labels=5))


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**TEXT, **SIZE, **SPREAD, max_position_embeddings=32))


@functools.cache
def _encoder_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    base().roberta.save_pretrained(folder.name)
    return folder


def wrapper() -> nn.Module:
    options = {"head": "roberta", "train_biases": False, "train_layer_norms": False}
    return LoraWrapperRoberta("glue", 3, model_id=_encoder_folder().name, lora_rank=None, **options)


class Architecture(NamedTuple):
    """A model, what all-linear selects in it (ending to count), and what trains whole."""

    build: Callable[[], nn.Module]
    linear: dict[str, int]
    head: tuple[str, ...] = ()


_LLAMA = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)
ARCHITECTURES = {
    "layers": Architecture(Layers, {"0": 1, "2": 1}, ("classifier",)),
    "roberta": Architecture(base, {"query": 2, "key": 2, "value": 2, "dense": 6}, ("classifier",)),
    "wrapper": Architecture(wrapper, {}, ("finetune_head_classifier",)),
    "llama": Architecture(llama, _LLAMA),
    "llama, tied": Architecture(lambda: llama(tie_word_embeddings=True), _LLAMA),
    "t5": Architecture(t5, dict.fromkeys("qkvo", 6) | {"wi": 4, "wo": 4}),
    "vit": Architecture(
        vit, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"), 2), ("classifier",)
    ),
    "neox": Architecture(
        neox, dict.fromkeys(("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), 2)
    ),
}
ENCODERS, DECODERS = ("layers", "roberta"), ("llama", "llama, tied", "t5", "vit", "neox")

# ---- the kinds ---------------------------------------------------------------------------------------------


def low_rank(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor) -> Tensor:
    return W + config.lora_alpha / config.r ** (0.5 if config.use_rslora else 1) * B @ A


def dora(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor, magnitude: Tensor) -> Tensor:
    V = low_rank(W, config, A, B)
    return magnitude[:, None] * V / V.norm(dim=1, keepdim=True).detach()


def pissa(W: Tensor, config: LoraConfig, A: Tensor, B: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(W)
    return low_rank(W - U[:, : config.r] * S[: config.r] @ Vh[: config.r], config, A, B)


def by_hand(model: nn.Module, config: LoraConfig) -> nn.Module:
    LoraWrapperRoberta.replace_self_attention(model.model, config.r, config.lora_alpha)
    freeze_parameters_except_lora_and_bias(model.model, "none")
    model.init_args |= {"lora_rank": config.r, "lora_alpha": config.lora_alpha}
    return model


def in_4_bits(model: nn.Module) -> nn.Module:
    for child in model.children():
        if not isinstance(child, nn.Linear) and "Head" not in type(child).__name__:
            quantize_linears(child)
    return keep_codes(model)


@dataclass(frozen=True)
class Kind:
    """One row: how an adapter is put in, its class, its adapted weight by the formula, and what it cannot."""

    inject: Callable[[nn.Module, LoraConfig], nn.Module]
    layer: type[nn.Module] = LoraLinear
    weight: Callable[..., Tensor] = low_rank
    settings: dict[str, Any] = field(default_factory=dict)
    on: tuple[str, ...] = ENCODERS
    peft: dict[str, Any] = field(default_factory=dict)  # what PEFT's configuration says for it
    prepare: Callable[[nn.Module], nn.Module] = nn.Module.eval
    exact: bool = True  # starts as the base bit for bit; PiSSA does up to rounding
    loads_as: type[nn.Module] | None = None
    refuses: dict[str, str] = field(default_factory=dict)  # "merge", "save", "export": what is said
    rate: float = 1e-2


def variant(name: str) -> Callable[[nn.Module, LoraConfig], nn.Module]:
    return lambda model, config: inject_variant(model, config, name)


def made_by(layer: type[LoraLinear]) -> Callable[[nn.Module, LoraConfig], nn.Module]:
    return lambda model, config: inject_lora(model, config, make=layer.from_linear)


ALL = ENCODERS + DECODERS
KINDS = {
    "lora": Kind(made_by(LoraLinear), on=ALL, loads_as=FastLoraLinear),
    "dropout": Kind(inject_lora, FastLoraLinear, settings={"lora_dropout": 0.3, "init": "gaussian"}),
    "fast": Kind(inject_lora, FastLoraLinear, on=ALL),
    "fast together": Kind(
        lambda model, config: use_fast_blocks(use_fast_attention(inject_lora(model, config))),
        FastLoraLinear,
        on=("roberta", "llama", "llama, tied"),
    ),
    "rslora": Kind(
        variant("rslora"), FastLoraLinear, settings={"use_rslora": True}, peft={"use_rslora": True}
    ),
    "loraplus": Kind(variant("loraplus"), FastLoraLinear, rate=1e-3),
    "dora": Kind(
        variant("dora"), DoraLinear, dora, on=ALL, peft={"use_dora": True}, refuses={"export": "DoraLinear"}
    ),
    "pissa": Kind(
        variant("pissa"),
        PissaLinear,
        pissa,
        peft={"init_lora_weights": "pissa"},
        exact=False,
        refuses={"save": "pissa_to_lora", "export": "PissaLinear"},
    ),
    "4-bit": Kind(
        inject_lora_4bit,
        LoraLinear4bit,
        on=("layers", "roberta", "llama"),
        prepare=in_4_bits,
        refuses={"merge": "4 bits.*dequantize_linears"},
    ),
    "attention": Kind(by_hand, LoraRobertaSelfAttention, on=("wrapper",)),
    "fast attention": Kind(
        lambda model, config: use_fast_attention(by_hand(model, config)),
        FastLoraRobertaSelfAttention,
        on=("wrapper",),
        loads_as=LoraRobertaSelfAttention,
    ),
}


class Case(NamedTuple):
    """A kind on an architecture. The base and the adapted model are the same at every call."""

    kind: Kind
    architecture: str

    @property
    def config(self) -> LoraConfig:
        head = ARCHITECTURES[self.architecture].head
        settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "modules_to_save": head}
        return LoraConfig(**settings | self.kind.settings)

    def base(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.kind.prepare(ARCHITECTURES[self.architecture].build().eval())

    def fresh(self, base: nn.Module | None = None) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.kind.inject(self.base() if base is None else base, self.config)

    def moved(self, base: nn.Module | None = None, head: bool = True) -> nn.Module:
        """As after training: every factor, and the head, off its start."""
        model, generator = self.fresh(base), torch.Generator().manual_seed(2)
        factors = factor_names(model)
        for name, p in model.named_parameters():
            if p.requires_grad and (head or name in factors):
                p.data += 0.15 * torch.randn(p.shape, generator=generator).to(p.dtype)
        return model

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        if self.architecture == "layers":
            x = torch.randn(2, 5, 32, generator=generator).to(dtype)
            return {"x": x, "labels": torch.tensor([0, 2])}
        if self.architecture == "vit":
            images = torch.randn(2, 3, 16, 16, generator=generator).to(dtype)
            return {"pixel_values": images, "labels": torch.tensor([1, 4])}
        if self.architecture in ("roberta", "wrapper"):
            return batch() | {"labels": torch.tensor([0, 2])}
        ids = torch.randint(3, 48, (2, 7), generator=generator)
        return {"input_ids": ids, "labels": ids}

    @torch.no_grad()
    def logits(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        return model.eval()(**self.inputs(dtype)).logits
