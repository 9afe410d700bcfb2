"""A Sphinx extension: what a page's HTML gets wrong is mended before it is written.

Docutils gives the bibliography's entries the role doc-biblioentry, which ARIA has withdrawn; what has it is
no item of a list, and a screen reader does not count it. sphinx_exercise gives the body of every exercise on
a page the same id, and that of every solution. In the corner of a table pandas leaves a heading without text.
"""

from __future__ import annotations

import re
from typing import Any

MENDED = {
    ' role="doc-biblioentry"': ' role="listitem"',
    ' id="exercise-content"': "",
    ' id="solution-content"': "",
}
EMPTY_HEADING = re.compile(r"<th((?: [^>]*)?)>\s*(?:<p>\s*</p>)?\s*</th>")


def mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Rewrite a page's body."""
    if "body" in context:
        for wrong, right in MENDED.items():
            context["body"] = context["body"].replace(wrong, right)
        context["body"] = EMPTY_HEADING.sub(r"<td\1></td>", context["body"])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
