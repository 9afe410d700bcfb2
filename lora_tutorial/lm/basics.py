"""What is asked of language models before torch is loaded: whether something is one, and what scores it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any


def is_language_model(class_name: object) -> bool:
    """Whether a class of transformers, by its name, is a causal language model such as ``LlamaForCausalLM``.

    A checkpoint has the name among its ``architectures``, an adapter as its base's ``class``. What was read
    from a file may be anything, and nothing but such a name is one.
    """
    return isinstance(class_name, str) and class_name.endswith("ForCausalLM")


def is_lm_adapter(settings: Mapping[str, Any]) -> bool:
    """Whether an adapter's settings, as its folder keeps them, are those of a language model."""
    return is_language_model(settings["base"].get("class"))


def check_chrf() -> None:
    """Raise ``ModuleNotFoundError`` where torchmetrics, which computes chrF, is not installed."""
    if find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(
            "What a language model writes is scored by torchmetrics, which is not installed: pip install "
            "'lora-tutorial[lm]'."
        )
