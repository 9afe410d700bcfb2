"""What comes with the project beside its code: records, adapters, a text file."""

from __future__ import annotations

from pathlib import Path

#: Name of the installed package's copy (``package-dir`` in pyproject.toml) to the folder of the repository.
FOLDERS = {"records": "benchmarks/results", "shipped": "benchmarks/adapters", "texts": "book/data"}


def carried_folder(name: str) -> Path:
    """The folder ``name`` of `FOLDERS`: the installed package's copy, or the repository's own.

    A checkout has no copy, so there the repository's own is read.
    """
    here = Path(__file__).parent
    copy = here / name
    return copy if copy.is_dir() else here.parent / FOLDERS[name]
