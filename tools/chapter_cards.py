"""A Sphinx extension: the first page's cards, with what a chapter says of itself.

``:::{chapter-card} 05_lora_linear`` in the source of the first page becomes a card with the chapter's number
and title, its picture from ``_static/cards``, the time it takes to read, counted, and the time it takes to
run, as the chapter's own opening states it. ``book/data/run_seconds.json`` has what `tools/refresh.py`
measured, and a test holds the statements to it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from rules import BOOK, ROOT, read, text_of

#: In a minute one reads this many words of prose, or lines of code.
WORDS, LINES = 200, 20
SECONDS = BOOK / "data" / "run_seconds.json"
CARD = re.compile(r"^:::\{chapter-card\} (?P<name>\w+)\n(?P<body>.*?)^:::$", re.MULTILINE | re.DOTALL)
RUN_TIME = re.compile(r"\*\*Run time:\*\* (?P<time>.+?) on two cores")
NUMBERS = {"half": 0.5, "a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
MARKUP = re.compile(r"^`{3,}.*$|^:\w+:.*$|\{[a-z-]+\}", re.MULTILINE)


def title_of(path: Path) -> str:
    """A page's title, its first heading."""
    text = text_of(read(path)["cells"][0]["source"]) if path.suffix == ".ipynb" else path.read_text("utf8")
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1]  # type: ignore[index]


def numbers() -> dict[str, int]:
    """The number of each chapter, by its name, as the table of contents counts."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    numbered = [page["file"] for part in toc["parts"] if part.get("numbered") for page in part["chapters"]]
    return {Path(name).name: number for number, name in enumerate(numbered, start=1)}


def reading_minutes(path: Path) -> int:
    """How long a chapter takes to read, in whole steps of five minutes."""
    words = lines = 0
    for cell in read(path)["cells"]:
        text = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(MARKUP.sub("", text).split())
        elif not {"hide-cell", "hide-input", "remove-input"} & set(cell["metadata"].get("tags", [])):
            lines += sum(bool(line.strip()) for line in text.splitlines())
    return max(5, 5 * round((words / WORDS + lines / LINES) / 5))


def run_time(path: Path) -> str:
    """How long a chapter says that it runs: "about 20 seconds"."""
    found = RUN_TIME.search(text_of(read(path)["cells"][0]["source"]))
    if not found:
        raise ValueError(f"{path.name}: its opening has no '**Run time:** ... on two cores'")
    return found["time"]


def seconds_stated(words: str) -> float:
    """The seconds that words like "two to three minutes" allow at most."""
    if "a minute and a half" in words:
        return 90
    found = re.search(r"(?:(\d+)|\b(half a|a|one|two|three|four|five)) (second|minute)s?$", words)
    if not found:
        raise ValueError(f"{words!r} does not end in a number of seconds or minutes")
    amount = float(found[1]) if found[1] else NUMBERS[found[2].split()[0]]
    return amount * (60 if found[3] == "minute" else 1)


def card(match: re.Match[str]) -> str:
    """The source of one card."""
    name, number = match["name"], numbers().get(match["name"])
    path = next(path for path in (BOOK / f"{name}.ipynb", BOOK / f"{name}.md") if path.is_file())
    picture = f"_static/cards/{name}.svg"
    shows = re.search(r"<title>(.+?)</title>", (BOOK / picture).read_text(encoding="utf8"))[1]  # type: ignore[index]
    foot = ""
    if path.suffix == ".ipynb":
        foot = f"```{{card-footer}}\n{reading_minutes(path)} min to read · runs in {run_time(path)}\n```\n"
    return (
        f":::{{grid-item-card}} {f'{number}. ' if number else ''}{title_of(path)}\n"
        f":link: {name}\n:link-type: doc\n:class-card: chapter-card\n"
        f":img-top: {picture}\n:img-alt: {shows}\n\n"
        f"{match['body']}{foot}:::"
    )


def fill_in(app: Any, docname: str, source: list[str]) -> None:
    """Write the cards into the first page."""
    if docname == app.config.root_doc:
        source[0] = CARD.sub(card, source[0])


def measured() -> dict[str, int]:
    """Seconds of one processor core that each chapter took when it was last executed, by its name."""
    return json.loads(SECONDS.read_text(encoding="utf8")) if SECONDS.is_file() else {}


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("source-read", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
