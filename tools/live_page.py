"""A Sphinx extension: the page "Try it" gets its model and its script when the book is built.

The model's files are made from MiniLM and the book's adapters, and only when those have changed. The script
is one file, because a page opened from a folder cannot load modules: what runs in the worker is a text inside
it. Where MiniLM cannot be had the page is built all the same, and says so.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from sphinx.util import logging

PAGE = "book/try_it"
SOURCES = Path(__file__).resolve().parents[1] / "book" / "_static" / "live"
IN_WORKER = ("tokenizer", "arithmetic", "weights", "model", "answers", "worker")
IN_PAGE = ("loader", "examples", "python", "view", "page")

logger = logging.getLogger(__name__)


def bundle(sources: Path = SOURCES) -> str:
    """The page's script: its modules in one scope, and the worker's as a text."""

    def joined(names: tuple[str, ...]) -> str:
        return "\n".join((sources / f"{name}.js").read_text(encoding="utf-8") for name in names)

    worker = json.dumps('"use strict";\n' + joined(IN_WORKER), ensure_ascii=False)
    return f'(() => {{\n"use strict";\nconst WORKER_SOURCE = {worker};\n{joined(IN_PAGE)}\n}})();\n'


def write(folder: Path) -> dict[str, str]:
    """Make the page's script and the model's files in ``folder``.

    Returns
    -------
    dict
        What the page's marks stand for: ``@SIZE@``, the download in megabytes, and ``@MISSING@``, why there
        is none, or an empty text.
    """
    from lora_tutorial.pages.live import write_live
    from lora_tutorial.storage.downloads import AssetError
    from lora_tutorial.storage.files import atomic_write_bytes

    atomic_write_bytes(folder / "live.js", bundle().encode())
    try:
        made = write_live(folder / "data")
    except AssetError as error:
        logger.info("The page %s is built without its model: %s", PAGE, error)
        return {"@SIZE@": "", "@MISSING@": html.escape(str(error))}
    return {"@SIZE@": f"{sum(made['files'].values()) / 1e6:.0f}", "@MISSING@": ""}


def prepare(app: Any) -> None:
    """Before the pages are read: make what the page loads."""
    app.live_marks = write(Path(app.outdir) / "_static" / "live") if app.builder.format == "html" else {}


def fill_in(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the page its script and its look, and put numbers in the place of its marks."""
    if pagename == PAGE and "body" in context:
        for mark, value in app.live_marks.items():
            context["body"] = context["body"].replace(mark, value)
        app.add_css_file("live/live.css")
        app.add_js_file("live/live.js")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("builder-inited", prepare)
    app.connect("html-page-context", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
