"""Which weights are these? One hash over everything in a model that an adapter does not carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from lora_tutorial.merging import lora_modules


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
