"""A run's record of an earlier time, for the scripts that skip what is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_tutorial.training.recipes import Recipe, with_defaults
from lora_tutorial.training.records import RunRecord, load_record


def found_record(
    path: Path, config: Mapping[str, Any], recipe: Recipe, seed: int, finished: bool = True
) -> RunRecord | None:
    """The record at ``path`` if there is one; the hash of the base, not yet known, is not compared.

    Raises
    ------
    SystemExit
        If the record is of another run, or, with ``finished``, of one that did not finish.
    """
    if not path.is_file():
        return None
    record = load_record(path)
    same = {key: value for key, value in record.config.items() if key != "base_sha256"} == config
    same = same and (with_defaults(record.recipe), record.seed) == (recipe.to_dict(), seed)
    if not same or (finished and record.status != "finished"):
        raise SystemExit(f"{path} is the record of another run; move it away first.")
    return record
