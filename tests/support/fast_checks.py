"""Pairs of a fast and a taught layer, and what they may differ by."""

import copy

import torch
from layer_checks import relative
from torch import nn

from lora_tutorial import (
    LoraConfig,
    LoraLinear,
    use_fast_layers,
)


def pair(n_in=24, n_out=17, bias=True, dtype=torch.float32, seed=0, **config):
    """The teaching layer and the fast one with the same parameters, lora_B not zero."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 3, "lora_alpha": 7, **config})
    teaching = LoraLinear.from_linear(nn.Linear(n_in, n_out, bias, dtype=dtype), config)
    nn.init.normal_(teaching.lora_B)
    return teaching, use_fast_layers(nn.Sequential(copy.deepcopy(teaching)))[0]


def assert_same(fast, teaching, tolerance):
    assert fast.keys() == teaching.keys()
    for name, value in teaching.items():
        if value is None:
            assert fast[name] is None, name
        else:
            assert fast[name].shape == value.shape and fast[name].dtype == value.dtype, name
            assert relative(fast[name].double(), value.double()) < tolerance, name
