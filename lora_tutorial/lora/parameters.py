"""How many parameters a model has, which of them train, and one hash over the rest. Knows only torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from lora_tutorial.lora.merge import lora_modules


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
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the count in one line, in PEFT's words."""
    n = count_parameters(model)
    print(f"trainable params: {n.trainable:,} || all params: {n.total:,} || trainable%: {n.percent:.4f}")


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
