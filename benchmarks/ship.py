"""Put the adapters of finished runs among those that come with the book, each with its card.

Run it from the repository with names of runs: ``python benchmarks/ship.py glue/mrpc-all-8-lr0.0005-seed0``.
Each needs its folder in ``runs`` and its record in ``benchmarks/results``. The adapter, with a card written
from the record, goes to ``benchmarks/adapters/<task>``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lora_tutorial.experiments.ship import ship_adapter

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"


def main(names: list[str]) -> None:
    """Ship each run named."""
    if not names:
        raise SystemExit(__doc__)
    for name in names:
        try:
            folder = ship_adapter(RUNS / name, HERE / "results" / f"{name}.json", HERE / "adapters")
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"{name}: {error}") from error
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {folder.relative_to(HERE.parent)}, {size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
