"""Put adapters into any model and freeze the rest. Knows only torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lora_tutorial.lora.config import ALL_LINEAR, LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.layers import LoraModule, check_rank
from lora_tutorial.lora.merge import lora_modules

#: Heads of transformers' models, by the name they have at the top level.
HEADS = ("classifier", "score", "qa_outputs")


def inject_lora(
    model: nn.Module,
    config: LoraConfig,
    make: Callable[[nn.Linear, LoraConfig], LoraModule] = FastLoraLinear.from_linear,
) -> nn.Module:
    """Replace the layers that ``config`` names by adapted ones and freeze everything else.

    The model is changed in place and returned, with ``config`` as its ``lora_config``; until ``lora_B`` moves
    from zero its outputs are the same bit for bit. Everything is checked before the first layer is replaced.

    Parameters
    ----------
    model
        Any module with ``nn.Linear`` layers.
    config
        What to adapt and how.
    make
        Builds the adapted layer from the plain one. By default that is `FastLoraLinear`; for the layer that
        the book reads, ``LoraLinear.from_linear``; a variant of LoRA is another function here.

    Raises
    ------
    TypeError, ValueError
        If a target is no linear layer or would have no effect, a name matches nothing, r is too large for a
        layer, or the model holds adapters already. No change then.
    """
    if any(True for _ in lora_modules(model)):
        raise ValueError("The model holds LoRA adapters already; inject into a fresh copy of the base.")
    saved = matching_modules(model, config.modules_to_save, "modules_to_save")
    targets = find_targets(model, config)
    # a layer may have two names
    linears: dict[str, Any] = {name: model.get_submodule(name) for name in targets}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        made = {linear: make(linear, config) for linear in dict.fromkeys(linears.values())}
    except Exception:  # ``make`` freezes as it goes; a refusal leaves the model as it was
        for parameter in trained:
            parameter.requires_grad_(True)
        raise
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[linear])
    freeze_parameters_except_lora_and_bias(model, config.bias)
    for name in saved:
        model.get_submodule(name).requires_grad_(True)
    model.lora_config = config  # type: ignore[assignment]  # torch knows of tensors and modules only
    return model


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The full names of the layers that ``config.target_modules`` selects, in the model's order.

    Modules inside ``modules_to_save`` are left out, since they train whole. ``"all-linear"`` leaves out the
    output embedding and a head (named as in `HEADS`) too, as PEFT does: a new head is random, and an
    adapter on frozen random numbers is not what anyone wants. It also leaves out the ``out_proj`` of
    ``nn.MultiheadAttention``, which is never called. A layer named one by one that would have no effect
    raises ``ValueError``.
    """
    saved = matching_modules(model, config.modules_to_save, "modules_to_save")
    if config.target_modules == ALL_LINEAR:
        find_output = getattr(model, "get_output_embeddings", lambda: None)
        output = find_output()
        inside = {id(m.out_proj) for _, m in _modules(model) if isinstance(m, nn.MultiheadAttention)}
        left_out = inside | {id(output)}
        linear = [n for n, m in _modules(model) if isinstance(m, nn.Linear) and id(m) not in left_out]
        names = [n for n in linear if n.partition(".")[0] not in HEADS]
    elif isinstance(config.target_modules, str):
        names = [n for n, _ in _modules(model) if re.fullmatch(config.target_modules, n)]
    else:
        names = matching_modules(model, config.target_modules, "target_modules")
    names = [n for n in names if n and not any(n == s or n.startswith(s + ".") for s in saved)]
    linears = f"Linear layers here end in: {_endings(model, nn.Linear)}."
    if not names:
        raise ValueError(f"target_modules {config.target_modules!r} leaves no layer to adapt. {linears}")
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            kind = type(module).__name__
            raise TypeError(f"target_modules selects {name}, a {kind}; LoRA adapts nn.Linear only. {linears}")
        check_rank(config.r, module.in_features, module.out_features, name)
        if why := _why_skipped(model.get_submodule(name.rpartition(".")[0]), module):
            raise ValueError(f"An adapter on {name} would have no effect: {why}")
    return names


def _why_skipped(parent: nn.Module, linear: nn.Linear) -> str:
    """What computes in the place of a layer, so that an adapter in it would never be called."""
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight and never calls it. Leave it out of target_modules."
    if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "in evaluation nn.TransformerEncoderLayer reads its weight and does not call it. Turn that off, "
            "torch.backends.mha.set_fastpath_enabled(False), wherever the model is used, then inject."
        )
    if "forward" in vars(linear):
        return (
            "its forward was replaced, as accelerate does in a model that it offloads or spreads over "
            "devices (device_map). Inject into the model first, and dispatch it after that."
        )
    if not isinstance(linear.weight, nn.Parameter):
        return "its weight is computed from others, as weight_norm does. Remove that first."
    return ""


def matching_modules(model: nn.Module, entries: Iterable[str], field: str) -> list[str]:
    """Names of modules that equal an entry or end in ``.entry``; an entry without a match raises."""
    found: set[str] = set()
    for entry in entries:
        names = {n for n, _ in _modules(model) if n == entry or n.endswith("." + entry)}
        if not names:
            known = _endings(model, nn.Linear if field == "target_modules" else nn.Module)
            raise ValueError(f"{field}: {entry!r} matches no module. Names here end in: {known}.")
        found |= names
    return [n for n, _ in _modules(model) if n in found]


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return model.named_modules(remove_duplicate=False)


def _endings(model: nn.Module, kind: type[nn.Module]) -> str:
    ends = {n.rpartition(".")[2] for n, m in _modules(model) if isinstance(m, kind)}
    return ", ".join(sorted(e for e in ends if not e.isdigit())) or "(none)"


def freeze_parameters_except_lora_and_bias(
    model: nn.Module, bias: str = "all", layer_norms: bool = False, embeddings: bool = False
) -> None:
    """Let only the adapters train, and what is asked for beside them.

    ``bias`` is ``"none"``, ``"all"`` (every parameter named ``bias``, those of LayerNorms too) or
    ``"lora_only"`` (those of adapted layers). ``layer_norms`` and ``embeddings`` say whether the parameters
    of ``nn.LayerNorm`` and ``nn.Embedding`` modules train as well.
    """
    model.requires_grad_(False)
    for _, module in lora_modules(model):
        for weight, factors in module.lora_factors().items():
            for factor in factors:
                factor.requires_grad_(True)
            owner = module.get_submodule(weight.rpartition(".")[0])
            if bias == "lora_only" and owner.bias is not None:
                owner.bias.requires_grad_(True)
    if bias == "all":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.rpartition(".")[2] == "bias")
    kinds = (nn.LayerNorm,) * layer_norms + (nn.Embedding,) * embeddings
    for part in model.modules():
        if isinstance(part, kinds):
            part.requires_grad_(True)


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the low-rank paths add nothing. Trained biases, norms and heads stay as they are.

    Merged adapters raise ``RuntimeError``: the weights hold the update, so there is nothing to switch off.
    """
    modules = [module for _, module in lora_modules(model)]
    if any(module.merged for module in modules):
        raise RuntimeError("Adapters are merged into the weights; call unmerge_lora(model) first.")
    before = [module.lora_enabled for module in modules]
    try:
        for module in modules:
            module.lora_enabled = False
        yield model
    finally:
        for module, enabled in zip(modules, before, strict=True):
            module.lora_enabled = enabled
