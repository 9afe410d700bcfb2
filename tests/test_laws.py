"""Every kind of adapter keeps every law in every architecture, and each law finds what breaks it."""

import copy
import itertools

import laws
import pytest
import torch
from adapted_models import KINDS, Case, Kind, made_by
from laws import LAWS, parametrize_with_laws
from torch import nn

from lora_tutorial import LoraLinear

pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


@parametrize_with_laws(KINDS)
def test_law(case, law, tmp_path):
    law(case, tmp_path)


# ---- what breaks each law ----------------------------------------------------------------------------------


class NoZero(LoraLinear):
    @classmethod
    def from_linear(cls, linear, config):
        layer = super().from_linear(linear, config)
        nn.init.ones_(layer.lora_B)
        return layer


class OneFactorForgotten(LoraLinear):
    def lora_factors(self):
        return {"weight": (self.lora_A,)}


class CopiesItsWeight(LoraLinear):
    @classmethod
    def from_linear(cls, linear, config):
        return super().from_linear(copy.deepcopy(linear), config)


class WrongScale(LoraLinear):
    scaling = property(lambda self: 1.01 * self.lora_config.scaling)


class MovesItsWeight(LoraLinear):
    def forward(self, x):
        if self.training:
            self.weight.data.mul_(1.001)
        return super().forward(x)


class MergesTooLittle(LoraLinear):
    def lora_delta(self, weight="weight"):
        return 0.9 * super().lora_delta(weight)


class SubtractsToUnmerge(LoraLinear):
    @torch.no_grad()
    def unmerge(self):
        if self.merged:
            less = self.weight - self.lora_delta()
            super().unmerge()
            self.weight.copy_(less)


class NeverOff(LoraLinear):
    lora_active = property(lambda self: not self.merged)


class DrawsSomethingUnsaved(LoraLinear):
    @classmethod
    def from_linear(cls, linear, config):
        layer = super().from_linear(linear, config)
        layer.extra = next(DRAWN)
        return layer

    def forward(self, x):
        return super().forward(x) * self.extra


DRAWN = itertools.count(1.0)


class OneMoreKey(LoraLinear):
    @classmethod
    def from_linear(cls, linear, config):
        layer = super().from_linear(linear, config)
        layer.register_buffer("rank", torch.tensor(config.r))
        return layer


class HalfPrecisionFactors(LoraLinear):
    @classmethod
    def from_linear(cls, linear, config):
        return super().from_linear(linear, config).to(linear.weight.dtype)


class NeverCopied(LoraLinear):
    def __deepcopy__(self, memo):
        return self


class CountsItsCalls(LoraLinear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.1 * (self.calls > 1))


Disguised = type("LoraLinear", (WrongScale,), {"__module__": "lora_tutorial.lora.layers"})
BREAKS = [
    ("starts_as_the_base", NoZero),
    ("trains_what_it_says", OneFactorForgotten),
    ("takes_over_what_was_there", CopiesItsWeight),
    ("computes_the_formula", WrongScale),
    ("computes_the_formula", MergesTooLittle),
    ("training_moves_nothing_else", MovesItsWeight),
    ("merges_and_unmerges", MergesTooLittle),
    ("merges_and_unmerges", SubtractsToUnmerge),
    ("switches_off", NeverOff),
    ("is_saved_and_loads", DrawsSomethingUnsaved),
    ("reads_a_plain_checkpoint", OneMoreKey),
    ("equals_peft", WrongScale),
    ("goes_to_peft_and_back", Disguised),
    ("keeps_to_the_types", HalfPrecisionFactors),
    ("is_copied_whole", NeverCopied),
    ("computes_activations_again", CountsItsCalls),
]


@pytest.mark.parametrize(("name", "layer"), BREAKS)
def test_a_layer_that_breaks_a_law_is_found(name, layer, tmp_path):
    case = Case(Kind(made_by(layer), layer), "roberta" if "peft_and" in name else "layers")
    with pytest.raises(AssertionError):
        getattr(laws, name)(case, tmp_path)


def test_every_law_was_seen_broken():
    assert {name for name, _ in BREAKS} == {law.__name__ for law in LAWS}
