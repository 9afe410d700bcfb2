"""The adapters that come with the book, and where they lie."""

from __future__ import annotations

from pathlib import Path

from lora_tutorial.adapters.files import SETTINGS
from lora_tutorial.storage.files import bundled_folder


def stored_adapters() -> dict[str, Path]:
    """The folder of each adapter that comes with the book, by task, in order of name.

    They are in ``benchmarks/adapters`` of the repository; an installed package carries a copy.
    """
    return {path.parent.name: path.parent for path in sorted(bundled_folder("shipped").glob(f"*/{SETTINGS}"))}


def stored_adapter(task: str) -> Path:
    """The folder of one of them, for ``load_adapter`` or an ``AdapterShelf``.

    Raises
    ------
    FileNotFoundError
        If none comes for that task.
    """
    stored = stored_adapters()
    if task not in stored:
        raise FileNotFoundError(
            f"There is no adapter folder {task!r}, and the adapters that come with the book are "
            f"{', '.join(stored) or 'not installed'}."
        )
    return stored[task]
