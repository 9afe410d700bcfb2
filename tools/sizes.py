"""Refuse files too large for the repository: `python tools/sizes.py PATH ...`."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_tutorial.storage.files import LIMIT, LM_LIMIT

#: One language model's adapter comes with the book.
LARGER = {"benchmarks/adapters/docstrings/adapter.safetensors": LM_LIMIT}


def too_large(paths: list[Path]) -> list[str]:
    """A line for each file of `paths` above the limit."""
    sizes = [(path, path.stat().st_size, _limit(path)) for path in paths if path.is_file()]
    return [
        f"{path}: {size:,} bytes, and {limit:,} are allowed" for path, size, limit in sizes if size > limit
    ]


def _limit(path: Path) -> int:
    named = path.resolve().as_posix()
    return next((limit for name, limit in LARGER.items() if named.endswith("/" + name)), LIMIT)


if __name__ == "__main__":
    found = too_large([Path(name) for name in sys.argv[1:]])
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
