"""Merge every adapter of a model into its weights, undo that, or leave LoRA behind. Knows only torch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lora_tutorial.lora.layers import LoraModule, SharingBlock


def lora_modules(model: nn.Module) -> Iterator[tuple[str, LoraModule]]:
    """Every module of ``model`` that holds an adapter, with its name; each once."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraModule))


def factor_names(model: nn.Module) -> set[str]:
    """Names, as in ``named_parameters``, of every lora_A and lora_B in ``model``."""
    factors = {id(f) for _, m in lora_modules(model) for pair in m.lora_factors().values() for f in pair}
    return {name for name, parameter in model.named_parameters() if id(parameter) in factors}


def merge_lora(model: nn.Module) -> nn.Module:
    """Add every update to its weight, so that inference costs what the base costs. In place, idempotent.

    Raises
    ------
    ValueError
        If the model has no adapter, an adapted weight is tied to another module (merging would change that
        one too), or a merged weight would not be finite. The model is then as it was.
    """
    modules = list(lora_modules(model))
    if not modules:
        raise ValueError("The model holds no LoRA adapter; nothing to merge.")
    _refuse_tied_weights(model, modules)
    fresh = [module for _, module in modules if not module.merged]
    try:
        for module in fresh:
            module.merge()
    except ValueError:
        for module in fresh:
            module.unmerge()
        raise
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Put back the weights that `merge_lora` replaced, bit for bit. In place, idempotent."""
    for _, module in lora_modules(model):
        module.unmerge()
    return model


def unload_lora(model: nn.Module) -> nn.Module:
    """Merge, then replace each adapted layer by the plain one it came from. In place; the end of training.

    What comes back has no trace of this package: it saves and runs as the base model does.
    """
    merge_lora(model)
    for name, module in list(lora_modules(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.plain())
    for block in model.modules():
        if isinstance(block, SharingBlock):
            block.__class__ = block.original
    if hasattr(model, "lora_config"):
        del model.lora_config
    return model


def _refuse_tied_weights(model: nn.Module, modules: list[tuple[str, LoraModule]]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, module in modules:
        for weight in module.lora_factors():
            tied = owners[id(module.get_parameter(weight))]
            if len(tied) > 1:
                raise ValueError(
                    f"{name}.{weight} is tied: {', '.join(tied)} share it, and merging would change them "
                    "all. Leave the layer out of target_modules, or do not merge."
                )
