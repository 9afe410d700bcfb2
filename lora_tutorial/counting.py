"""How many numbers there are in a model, how many of them train, and where. Knows only torch."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from lora_tutorial.merging import factor_names


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
