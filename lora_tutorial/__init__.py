"""Low-Rank Adaptation, explained and proved: the package under the book.

Names are loaded when they are first used, so ``import lora_tutorial`` costs next to nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "LoraConfig": "config",
    "LoraModule": "arithmetic",
    "lora_delta": "arithmetic",
    "LoraLinear": "layers",
    "FastLoraLinear": "fast_layers",
    "use_fast_layers": "fast_layers",
    "inject_lora": "inject",
    "freeze_parameters_except_lora_and_bias": "inject",
    "disable_lora": "inject",
    "count_parameters": "counting",
    "print_trainable_parameters": "counting",
    "lora_modules": "merging",
    "merge_lora": "merging",
    "unmerge_lora": "merging",
    "unload_lora": "merging",
    "LoraRobertaSelfAttention": "attention",
    "LoraWrapperRoberta": "wrapper",
    "save_adapter": "adapters",
    "load_adapter": "adapters",
    "AdapterShelf": "swapping",
    "load_encoder": "encoders",
    "load_task": "tasks",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
