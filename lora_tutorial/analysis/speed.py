"""The stored measurements of time and memory, for the chapters that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_tutorial.storage.files import bundled_folder

FORMAT = 1


def speed_records(
    kind: str = "times", folder: str | Path | None = None, **wanted: object
) -> list[dict[str, Any]]:
    """The records that ``benchmarks/speed/speed.py`` has stored, in order of file name.

    Parameters
    ----------
    kind
        ``"times"`` or ``"memory"``.
    folder
        Where to look; by default ``benchmarks/results/speed`` of the repository, or the copy that an
        installed package carries.
    **wanted
        What the setting must be: ``model="minilm", r=8``.

    Raises
    ------
    FileNotFoundError
        If there is no such record.
    ValueError
        If a file is of another format.
    """
    folder = Path(folder) if folder else bundled_folder("records") / "speed"
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ValueError(f"{path.name} has format {record.get('format')!r}; this version reads {FORMAT}.")
        if record["kind"] == kind and all(record["setting"].get(k) == v for k, v in wanted.items()):
            found.append(record)
    if not found:
        given = ", ".join(f"{key}={value!r}" for key, value in wanted.items()) or "any setting"
        raise FileNotFoundError(
            f"No stored record of {kind} for {given}; benchmarks/speed/speed.py makes them."
        )
    return found
