"""Low-Rank Adaptation, explained and proved: the package under the book.

``__init__.pyi`` lists the public names and where each one lives. A name is loaded when it is first used, so
``import lora_tutorial`` costs next to nothing.
"""

import re
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME = {name: home for home, name in re.findall(r"^from \.([\w.]+) import (\w+) as", _STUB, re.MULTILINE)}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        module = import_module(f"{__name__}.{_HOME[name]}")
        # A name is something in its module, or a module of its folder.
        return getattr(module, name) if hasattr(module, name) else import_module(f"{module.__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
