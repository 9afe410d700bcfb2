"""How many parameters a model has, which of them train, and one hash over the rest. Knows only torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from lora_tutorial.lora.merge import factor_names, lora_modules


class ParameterCount(NamedTuple):
    """How many numbers train, of how many there are."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """100 * trainable / total; 0 for a model without parameters."""
        return 100 * self.trainable / self.total if self.total else 0.0


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model; one that two modules share counts once."""
    return _count(list(model.parameters()))


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the count in one line, in PEFT's words."""
    n = count_parameters(model)
    print(f"trainable params: {n.trainable:,} || all params: {n.total:,} || trainable%: {n.percent:.4f}")


PARTS = {
    "word embeddings": lambda n: "word_embeddings" in n,
    "other embeddings": lambda n: "_embeddings" in n,
    "LayerNorms": lambda n: "LayerNorm" in n,
    "attention": lambda n: ".attention." in n,
    "feed-forward": lambda n: ".intermediate." in n or ".output." in n,
    "pooler": lambda n: ".pooler." in n or n.startswith("pooler."),
    "head": lambda n: True,
}


def parameter_table(model: nn.Module) -> dict[str, ParameterCount]:
    """The counts of an encoder part by part, ``"LoRA"`` first and ``"all"`` last, without empty parts."""
    factors = factor_names(model)
    groups: dict[str, list[nn.Parameter]] = {"LoRA": [], **{part: [] for part in PARTS}}
    for name, parameter in model.named_parameters():
        part = "LoRA" if name in factors else next(p for p, holds in PARTS.items() if holds(name))
        groups[part].append(parameter)
    rows = {part: _count(parameters) for part, parameters in groups.items() if parameters}
    return rows | {"all": count_parameters(model)}


def _count(parameters: list[nn.Parameter]) -> ParameterCount:
    return ParameterCount(
        sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
    )


def parameters_hash(model: nn.Module, without: Iterable[str] = ()) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter but those named in ``without``.

    Merged weights count as they were before merging, so merging does not change the hash.
    """
    originals = {
        f"{name}.{weight}".lstrip("."): kept
        for name, module in lora_modules(model)
        for weight, kept in module.originals.items()
    }
    digest, skipped = hashlib.sha256(), set(without)
    for name, parameter in sorted(model.named_parameters()):
        if name not in skipped:
            value = originals.get(name, parameter).detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # any shape -> (bytes,)
            # 4-bit codes mean nothing without their scales, which bitsandbytes keeps beside the parameter.
            state = getattr(parameter, "quant_state", None)
            for part, tensor in sorted(state.as_dict(packed=True).items()) if state is not None else ():
                digest.update(part.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
