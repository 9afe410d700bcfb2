"""What a LoRA adapter is made of: rank, scale, place. Every bad value is refused here, by name."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

ALL_LINEAR = "all-linear"


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
        Which linear layers to adapt: a list of names or name endings (``"attention.output.dense"``), one
        regular expression that must match the whole name, or ``"all-linear"``.
    bias
        Which biases train: ``"none"``, ``"all"``, or those of adapted layers (``"lora_only"``).
    modules_to_save
        Names or name endings of modules that train whole and are saved with the adapter (a head).
    use_rslora
        Scale by ``lora_alpha / sqrt(r)`` (rsLoRA, arXiv:2312.03732) instead of ``lora_alpha / r``
        (LoRA paper, section 4.1).
    init
        How ``lora_A`` starts: ``"kaiming"`` uniform in ±1/sqrt(in), or ``"gaussian"`` with standard
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
        def require(field: str, good: bool, accepted: str) -> None:
            if not good:
                raise ValueError(f"{field} must be {accepted}; got {getattr(self, field)!r}.")

        require("r", type(self.r) is int and self.r > 0, "the rank, a positive integer")
        require("lora_alpha", _is_number(self.lora_alpha) and self.lora_alpha > 0, "positive and finite")
        require("lora_dropout", _is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1, "in [0, 1)")
        require("bias", self.bias in ("none", "all", "lora_only"), "none, all or lora_only")
        require("use_rslora", isinstance(self.use_rslora, bool), "True or False")
        require("init", self.init in ("kaiming", "gaussian"), "kaiming or gaussian")
        require("target_modules", bool(self.target_modules), 'names of layers, a pattern or "all-linear"')
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                message = f"target_modules {self.target_modules!r} is not a regular expression: {error}."
                raise ValueError(message) from error
        else:
            object.__setattr__(self, "target_modules", _names("target_modules", self.target_modules))
        object.__setattr__(self, "modules_to_save", _names("modules_to_save", self.modules_to_save))

    @property
    def scaling(self) -> float:
        """The factor before ``B @ A``: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoraConfig:
        """The inverse of `to_dict`; an unknown key raises ``ValueError``."""
        if unknown := sorted(set(values) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"Unknown LoRA settings: {', '.join(unknown)}. Known are: {known}.")
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _names(field: str, value: object) -> tuple[str, ...]:
    """A list of names as a tuple; a bare string would otherwise be read letter by letter."""
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(v, str) and v for v in value):
        raise TypeError(f"{field} must be a list of module names, as in ['query', 'value']; got {value!r}.")
    return tuple(sorted(value) if isinstance(value, set) else value)
