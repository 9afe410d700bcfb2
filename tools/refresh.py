"""Execute a chapter from top to bottom and store its outputs, without anything that differs between machines.

`python tools/refresh.py 05_lora_linear`, or `make refresh CHAPTER=05_lora_linear`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from chapter_cards import SECONDS, measured
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rules import BOOK, RULES

from lora_tutorial.storage.files import atomic_write_bytes

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def find(name: str) -> Path:
    """The chapter meant by `05_lora_linear`, `book/05_lora_linear.ipynb` or `05`."""
    stem = Path(name).name.removesuffix(".ipynb")
    matches = sorted(BOOK.glob(f"{stem}.ipynb")) or sorted(BOOK.glob(f"{stem}_*.ipynb"))
    if len(matches) != 1:
        names = ", ".join(path.stem for path in sorted(BOOK.glob("*.ipynb")))
        raise SystemExit(f"CHAPTER={name!r} names {len(matches)} chapters: choose one of {names}")
    return matches[0]


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Keep tags and picture options; drop times, widget state and what the kernel says of itself."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, max(5, notebook.nbformat_minor)
    used: set[str] = set()
    for number, cell in enumerate(notebook.cells, start=1):
        for key in ("execution", "collapsed", "ExecuteTime", "jupyter", "lines_to_next_cell", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.get("id") is None or cell.id in used:
            cell.id = f"cell-{number}"
        used.add(cell.id)


def keep_time(name: str, seconds: float) -> None:
    """Note how long a chapter ran, unless the last note is still about right."""
    times = measured()
    if not 2 / 3 < seconds / times.get(name, 1e-9) < 3 / 2:
        times[name] = round(seconds)
        text = json.dumps(dict(sorted(times.items())), indent=2) + "\n"
        atomic_write_bytes(SECONDS, text.encode())


def seconds_of_children() -> float:
    """Seconds of a processor core that finished child processes have used: others do not lengthen them."""
    used = os.times()
    return used.children_user + used.children_system


def refresh(path: Path) -> None:
    """Lay out the code at `path`, execute it in its own folder, and store it when every cell has run."""
    os.environ.pop("LORA_TUTORIAL_DATA", None)  # a chapter never depends on a folder of data
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the kernel's threads do not spin while they wait
    subprocess.run([Path(sys.executable).parent / "ruff", "format", "--quiet", path], check=True)
    notebook = nbformat.read(path, as_version=4)
    normalise(notebook)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    start, used = time.perf_counter(), seconds_of_children()
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(f"{error}\n{path.name} is as it was: a cell failed") from None
    normalise(notebook)
    atomic_write_bytes(path, (nbformat.writes(notebook) + "\n").encode())
    used = seconds_of_children() - used
    print(f"{path.name}: executed in {time.perf_counter() - start:.0f} s, {used:.0f} s of a processor core")
    if path.parent == BOOK:
        keep_time(path.stem, used)
    for problem in (problem for rule in RULES for problem in rule(notebook)):
        print(f"  {problem}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1]:
        raise SystemExit("say which chapter: make refresh CHAPTER=05_lora_linear")
    for argument in sys.argv[1:]:
        refresh(find(argument))
