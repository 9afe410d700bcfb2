"""The frame of every figure to touch: its data as JSON, its texts escaped, what all of them share.

A figure is one piece of HTML and JavaScript without a library. It asks for nothing, so it works from a file,
it works by keyboard, and without scripts it says the same in a sentence.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import HTML


def template(name: str) -> str:
    """The HTML of a figure, from the file beside this module."""
    return Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8").removesuffix("\n")


def touch(kind: str, data: dict[str, Any], **texts: str) -> HTML:
    """A figure from its template.

    Parameters
    ----------
    kind
        The template's name.
    data
        What stands for ``@DATA@`` in it, as JSON.
    texts
        What stands for each other ``@NAME@``, as plain text.
    """
    from IPython.display import HTML

    page = template(kind).replace("@DATA@", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    for mark, text in texts.items():
        page = page.replace(f"@{mark}@", html.escape(text))
    body = "\n".join((template("touch"), page, template("values")))
    return HTML(f'<figure class="touch" data-kind="{kind}">\n{body}\n</figure>')
