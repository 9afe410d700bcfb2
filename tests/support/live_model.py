"""What the page "Try it" computes, in torch: the book's own model on the weights that the page has."""

import copy
import functools

import torch
from torch import nn

from lora_tutorial.adapters.files import load_adapter, stored_adapter
from lora_tutorial.lora.merge import lora_modules, merge_lora
from lora_tutorial.pages.live import restored, stored
from lora_tutorial.quant.int8 import dequantize_int8, quantize_int8
from lora_tutorial.quant.nf4 import dequantize_nf4, quantize_nf4

AS_SHIPPED = {"on": True, "alpha": 1, "rank": 8, "merge": "apart", "base": "full"}
#: Every control of the page, alone and together with others.
SETTINGS = [
    {},
    {"on": False},
    {"alpha": 0},
    {"alpha": 0.35},
    {"alpha": 2},
    {"rank": 1},
    {"rank": 5, "alpha": 1.5},
    {"merge": "merged"},
    {"merge": "rounded", "rank": 3},
    {"base": "int8"},
    {"base": "nf4"},
    {"base": "nf4", "merge": "merged", "alpha": 1.7},
    {"base": "nf4", "merge": "rounded"},
]


@functools.cache
def shipped(task):
    """The adapter as it ships, on the encoder in full precision."""
    return load_adapter(stored_adapter(task)).eval()


def again(weight, base):
    """A sum of weight and update, rounded to the base's levels once more."""
    return dequantize_nf4(quantize_nf4(weight)) if base == "nf4" else dequantize_int8(quantize_int8(weight))


@torch.no_grad()
def page_model(task, **settings):
    """The model that the page has at these settings."""
    settings = AS_SHIPPED | settings
    model = copy.deepcopy(shipped(task))
    for name, module in model.model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.copy_(restored(stored(f"{name}.weight", module.weight)))
    for name, module in shipped(task).model.named_modules():
        if isinstance(module, nn.Linear) and settings["base"] != "full":
            weight = module.weight if settings["base"] == "int8" else model.model.get_submodule(name).weight
            model.model.get_submodule(name).weight.copy_(again(weight, settings["base"]))
    for _, module in lora_modules(model):
        for lora_A, lora_B in module.lora_factors().values():
            U, S, Vh = torch.linalg.svd(lora_B @ lora_A, full_matrices=False)
            kept, full = settings["rank"], len(lora_A)
            S[kept if settings["on"] else 0 :] = 0
            lora_A.copy_(Vh[:full])
            lora_B.copy_(U[:, :full] * S[:full] * settings["alpha"])
    if settings["merge"] != "apart":
        merge_lora(model)
    if settings["merge"] == "rounded" and settings["on"] and settings["alpha"]:
        for _, module in lora_modules(model):
            for name in module.lora_factors():
                weight = module.get_parameter(name)
                weight.copy_(again(weight, settings["base"]))
    return model
