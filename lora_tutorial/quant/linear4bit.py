"""LoRA on layers that bitsandbytes holds in 4 bits (QLoRA), and the way back to floating point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.inject import inject_lora, matching_modules
from lora_tutorial.lora.layers import LoraLinear, LoraModule, keep_hooks


class LoraLinear4bit(LoraLinear, Linear4bit):
    """``Linear4bit`` plus a low-rank path: ``y = x dequantised(W)' + b + scaling * x A' B'``.

    QLoRA, equation 5 (arXiv:2305.14314). ``weight`` keeps its packed codes and scales; ``lora_A`` (r, in) and
    ``lora_B`` (out, r) are float32 and train. Made by `from_linear` from a layer that is quantised already.
    """

    packed = True
    weight: Params4bit

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            "A LoraLinear4bit is made from a quantised layer: LoraLinear4bit.from_linear(layer, config)."
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: LoraConfig) -> Self:
        """Adapt a quantised layer: the same codes, scales and bias, not copies.

        Raises
        ------
        TypeError, ValueError
            If the layer is no ``Linear4bit``, is not quantised yet, or has been repacked for inference.
        """
        if not isinstance(linear, Linear4bit):
            raise TypeError(f"LoraLinear4bit adapts bitsandbytes' Linear4bit; got {type(linear).__name__}.")
        _check_codes(linear)
        layer = super().from_linear(linear, config)
        layer.weight.module = layer  # where bitsandbytes puts the scales when the weight is moved
        _never_repack(layer)
        return layer

    def plain(self) -> Linear4bit:
        """The layer without its adapter: the same codes, scales and bias, not copies."""
        linear = Linear4bit(
            self.in_features,
            self.out_features,
            self.bias is not None,
            self.compute_dtype,
            quant_storage=self.quant_storage,
            device="meta",
        )
        linear.weight, linear.bias, linear.quant_state = self.weight, self.bias, self.weight.quant_state
        linear.weight.module = linear
        _never_repack(linear)
        keep_hooks(self, linear)
        return linear.train(self.training)

    def merge(self) -> None:
        """Refuse: sixteen levels lose a small update and add noise to a large one.

        Raises
        ------
        ValueError
            Always; the message says what to do instead.
        """
        raise ValueError(
            "This weight is stored in 4 bits, and rounding the sum to sixteen levels would lose a small "
            "update and add noise to a large one. "
            "Call dequantize_linears(model) and merge into what it gives, or inject the same configuration "
            "into the base in floating point, copy lora_A and lora_B there, and merge that."
        )


def lora_layer(linear: nn.Linear, config: LoraConfig) -> LoraModule:
    """A maker for ``inject_lora``: `LoraLinear4bit` on a ``Linear4bit``, `FastLoraLinear` on any other."""
    kind = LoraLinear4bit if isinstance(linear, Linear4bit) else FastLoraLinear
    return kind.from_linear(linear, config)


def linears_4bit(model: nn.Module) -> Iterator[tuple[str, Linear4bit]]:
    """Every 4-bit layer of ``model``, adapted or not, with its name; each once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit))


def keep_codes(model: nn.Module) -> nn.Module:
    """Keep the 4-bit weights of ``model`` as they are, whatever is evaluated. In place; right after loading.

    On a CPU with AVX-512 BF16 instructions bitsandbytes rewrites a 4-bit weight when it is first evaluated:
    scales are rounded to bfloat16, and in training no gradient passes the layer any more.

    Raises
    ------
    ValueError
        If a layer is not quantised yet or has been rewritten.
    """
    layers = list(linears_4bit(model))
    for name, layer in layers:
        _check_codes(layer, name)
    for _, layer in layers:
        _never_repack(layer)
    return model


def inject_lora_4bit(model: nn.Module, config: LoraConfig) -> nn.Module:
    """``inject_lora`` for a model that bitsandbytes has quantised, all or in part, and `keep_codes` on it.

    Raises
    ------
    TypeError, ValueError
        As for ``inject_lora`` and `keep_codes`; or if ``config.modules_to_save`` names a 4-bit layer, which
        cannot train.
    """
    saved = matching_modules(model, config.modules_to_save, "modules_to_save")
    for name, _ in linears_4bit(model):
        if any(name == s or name.startswith(s + ".") for s in saved):
            raise ValueError(
                f"modules_to_save: {name} is a 4-bit layer and cannot train. Load the model again with it in "
                "llm_int8_skip_modules of BitsAndBytesConfig."
            )
    return inject_lora(keep_codes(model), config, make=lora_layer)


def quantize_linears(model: nn.Module) -> nn.Module:
    """Hold every ``nn.Linear`` of a model in NF4 with quantised scales, computing in float32. In place.

    The output embedding stays as it is, as in transformers: it is often one tensor with the input embedding.

    What ``BitsAndBytesConfig`` does while it loads a checkpoint (QLoRA, section 3), for a model that is there
    already. Biases stay as they are.
    """
    settings: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for name, linear in list(model.named_modules()):
        if type(linear) is nn.Linear and linear is not output:
            layer = Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, torch.float32, **settings
            )
            layer.weight = Params4bit(linear.weight.detach().clone(), requires_grad=False, **settings)
            layer.bias = linear.bias
            parent, _, child = name.rpartition(".")
            # moving it to its device is what quantises it
            setattr(model.get_submodule(parent), child, layer.to(linear.weight.device).train(linear.training))
    return model


@torch.no_grad()
def dequantize_linears(model: nn.Module) -> nn.Module:
    """Replace every 4-bit layer by one in the type it was loaded in, with dequantised weights. In place.

    Adapters stay, with their factors, and can be merged now. The weights are those that the 4-bit model
    computed with, not those it was quantised from.

    Raises
    ------
    ValueError
        If there is no 4-bit layer, or one is not quantised yet or has been rewritten for inference.
    """
    layers = list(linears_4bit(model))
    if not layers:
        raise ValueError("The model holds no Linear4bit layer; there is nothing to dequantise.")
    for name, layer in layers:
        _check_codes(layer, name)
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _dequantized(layer))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # else it would be saved as a 4-bit model
        quantizer.remove_quantization_config(model)
        model.is_loaded_in_4bit = False  # type: ignore[assignment]
    return model


def _dequantized(layer: Linear4bit) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    weight: Any = layer.weight  # Params4bit, which has the scales
    values = dequantize_4bit(weight.data, weight.quant_state)  # (out, in)
    linear.weight, linear.bias = nn.Parameter(values, requires_grad=False), layer.bias
    linear.train(layer.training)
    keep_hooks(layer, linear)
    if not isinstance(layer, LoraLinear):
        return linear
    trains = layer.bias is not None and layer.bias.requires_grad
    adapted = FastLoraLinear.from_linear(linear, layer.lora_config)
    adapted.lora_A, adapted.lora_B, adapted.lora_enabled = layer.lora_A, layer.lora_B, layer.lora_enabled
    if trains:
        adapted.bias.requires_grad_(True)
    return adapted


def _check_codes(layer: Linear4bit, name: str = "this layer") -> None:
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        raise ValueError(f"{name} is not quantised yet: move the model to its device first.")
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            f"{name} was evaluated before: bitsandbytes has rewritten its weights for this CPU, with scales "
            "rounded to bfloat16, and no gradient passes them. Load the model again and inject at once."
        )


def _never_repack(layer: Linear4bit) -> None:
    layer.support_avx512bf16_for_cpu = False
