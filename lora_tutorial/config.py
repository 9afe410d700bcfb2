"""What a LoRA adapter is made of: rank, scale, place. Every bad value is refused here, by name."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

ALL_LINEAR = "all-linear"
BIASES = ("none", "all", "lora_only")
INITS = ("kaiming", "gaussian")


@dataclass(frozen=True)
class LoraConfig:
    """The settings of one adapter, named as in PEFT and in the LoRA paper (arXiv:2106.09685).

    Parameters
    ----------
    r
        Rank of the update, a positive integer; at most the smaller side of every adapted layer.
    lora_alpha
        Numerator of the scale, positive and finite.
    lora_dropout
        Probability in [0, 1) of dropping an input of the low-rank path while training.
    target_modules
        Which linear layers to adapt: a sequence of names or name endings (``"query"``,
        ``"attention.output.dense"``), one regular expression that must match the whole name, or
        ``"all-linear"``.
    bias
        Which biases train: ``"none"``, ``"all"``, or those of adapted layers (``"lora_only"``).
    modules_to_save
        Names or name endings of modules that train whole and are saved with the adapter (a head).
    use_rslora
        Scale by ``lora_alpha / sqrt(r)`` (Kalajdzievski 2023, arXiv:2312.03732) instead of
        ``lora_alpha / r`` (LoRA paper, section 4.1).
    init
        How ``lora_A`` starts: ``"kaiming"`` uniform in ±1/sqrt(in) or ``"gaussian"`` with standard
        deviation 1/r. ``lora_B`` starts at zero.

    Raises
    ------
    TypeError, ValueError
        If a setting is not of the kind above; the message names it.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ("query", "value")
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False
    init: str = "kaiming"

    def __post_init__(self) -> None:
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ValueError(f"r is the rank, a positive integer; got {self.r!r}.")
        if not _is_number(self.lora_alpha) or not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha must be a positive, finite number; got {self.lora_alpha!r}.")
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is a probability in [0, 1); got {self.lora_dropout!r}.")
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}; got {self.bias!r}.")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}; got {self.init!r}.")
        if not isinstance(self.use_rslora, bool):
            raise TypeError(f"use_rslora must be True or False; got {self.use_rslora!r}.")
        if isinstance(self.target_modules, str):
            _check_pattern(self.target_modules)
        else:
            names = _names("target_modules", self.target_modules)
            if not names:
                raise ValueError('target_modules is empty; name a layer, or use "all-linear".')
            object.__setattr__(self, "target_modules", names)
        object.__setattr__(self, "modules_to_save", _names("modules_to_save", self.modules_to_save))

    @property
    def scaling(self) -> float:
        """The factor before ``B @ A``: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoraConfig:
        """The inverse of `to_dict`; an unknown key raises ``ValueError``."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"Unknown LoRA settings: {', '.join(unknown)}. Known are: {known}.")
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_pattern(pattern: str) -> None:
    if not pattern:
        raise ValueError('target_modules is empty; name a layer, or use "all-linear".')
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"target_modules {pattern!r} is not a regular expression: {error}.") from error


def _names(field: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{field} must be a list of names; got the string {value!r}. Write [{value!r}].")
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"{field} must be a list of names; got {value!r}.")
    names = tuple(sorted(value) if isinstance(value, (set, frozenset)) else value)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{field} must hold names of modules; got {name!r}.")
    return names
