"""A Sphinx extension: the bibliography's entries are items of its list, so that a screen reader counts them.

Docutils gives them the role doc-biblioentry, which ARIA has withdrawn; what has it is no item of a list.
"""

from __future__ import annotations

from typing import Any


def _mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Rewrite the roles in a page's body before the page is written."""
    if "body" in context:
        context["body"] = context["body"].replace(' role="doc-biblioentry"', ' role="listitem"')


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
