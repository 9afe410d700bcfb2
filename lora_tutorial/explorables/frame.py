"""The frame of every figure to touch: its data as JSON, its texts escaped, what all of them share.

A figure is one piece of HTML and JavaScript without a library. It asks for nothing, so it works from a file,
and it works by keyboard. Until its script runs, and on paper, it is a picture with a sentence.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML

    from lora_tutorial.explorables.picture import Picture

#: A figure's file: its style (some need none), what a reader moves, a caption and a script.
PARTS = re.compile(
    r"(?:<style>\n(?P<STYLE>.*?)</style>\n)?(?P<LIVE>.*?)\n<figcaption>(?P<CAPTION>.*?)</figcaption>\n"
    r"<script>\n(?P<SCRIPT>.*?)</script>\n",
    flags=re.DOTALL,
)


def template(name: str) -> str:
    """The HTML of a figure, from the file beside this module."""
    return Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8")


def touch(kind: str, data: dict[str, Any], picture: Picture, said: str, **texts: str) -> HTML:
    """A figure from its template.

    What a reader moves waits inside a script element of a type that no browser runs, and the figure's script
    puts it in place of the picture. So where scripts are removed there is no dead slider either.

    Parameters
    ----------
    kind
        The template's name.
    data
        What its script calls ``d``.
    picture
        What the figure shows at first, drawn.
    said
        The same in a sentence.
    texts
        What stands for each ``@NAME@`` in the template, as plain text.
    """
    parts = PARTS.fullmatch(template(kind))
    assert parts is not None, f"{kind}.html is not style, controls, figcaption and script"
    page = template("touch")
    for name, part in parts.groupdict(default="").items():
        page = page.replace(f"@{name}@", part)
    page = page.replace("@DATA@", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    for name, text in {"KIND": kind, "STATIC": said, **texts}.items():
        page = page.replace(f"@{name}@", html.escape(text))
    return _figure(page.replace("@PICTURE@", picture.tag).removesuffix("\n"), said)


def _figure(page: str, said: str) -> HTML:
    """The page as what a cell shows; where only text can be shown, the sentence."""
    from IPython.display import HTML

    class Figure(HTML):
        def __repr__(self) -> str:
            return said

    return Figure(page)
