"""A Sphinx extension: a chapter's first mention of a glossary's term becomes a link, and links have cards.

The links are plain ones. ``_static/terms.js`` shows beside them what this module writes to ``glossary.js``,
so that a page opened from a folder has it too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "book/notation"
#: The pages whose words are linked: the chapters, and what is read beside them.
LINKED = re.compile(r"book/(\d\d_\w+|symptoms|summary)")
#: These mean something else too often to be linked by themselves: attention has heads, code a base class.
BY_HAND = {"head", "base"}
#: In the plural it is a statistician's word too.
SINGULAR = {"rank"}
#: A card is plain text: the few formulas of the glossary, as letters.
LETTERS = {r"\Delta ": "Δ", "W_0": "W₀", "s\\,": "s\u2009"}


def definitions(env: Any) -> dict[str, str]:
    """What each term of the glossary means, by the term's id on the page, as plain text."""
    found: dict[str, str] = {}
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        for citation in [node for node in item.findall(addnodes.pending_xref) if node["refdomain"] == "cite"]:
            citation.parent.remove(citation)
        term = next(item.findall(nodes.term))
        if not term["ids"]:
            continue
        text = " ".join(" ".join(body.astext() for body in item.findall(nodes.definition)).split())
        for formula, letters in LETTERS.items():
            text = text.replace(formula, letters)
        found[term["ids"][0]] = re.sub(r"\s+([.,;:])", r"\1", text)
    return found


def mentions(terms: list[str]) -> re.Pattern[str]:
    """Any of the terms as whole words, in the singular or plural; a longer one goes before its part."""
    named = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])({named})(s?)(?![\w-])", re.IGNORECASE)


def in_running_text(text: nodes.Text) -> bool:
    """Whether these words stand in a paragraph of the page itself: in no link, heading, box or table."""
    node = text.parent
    if not isinstance(node, nodes.paragraph):
        return False
    while node is not None:
        if isinstance(node, (nodes.Admonition, nodes.table, nodes.reference, nodes.Titular)):
            return False
        node = node.parent
    return True


def link_terms(app: Any, doctree: Any, page: str) -> None:
    """Make a link of the first mention of each term on ``page``."""
    if app.builder.format != "html" or not LINKED.fullmatch(page):
        return
    objects = app.env.get_domain("std").objects
    places = {
        name.lower(): entry[1]
        for (kind, name), entry in objects.items()
        if kind == "term" and name.lower() not in BY_HAND
    }
    pattern, to = mentions(list(places)), app.builder.get_relative_uri(page, GLOSSARY)
    linked = {node.get("refuri", "").partition("#")[2] for node in doctree.findall(nodes.reference)}
    places = {term: place for term, place in places.items() if place not in linked}
    for text in [node for node in doctree.findall(nodes.Text) if in_running_text(node)]:
        parts: list[Any] = []
        words, done = text.astext(), 0
        for match in pattern.finditer(words):
            term = match[1].lower()
            if term in places and not (match[2] and term in SINGULAR):
                link = nodes.reference("", match[0], internal=True, refuri=f"{to}#{places.pop(term)}")
                parts += [nodes.Text(words[done : match.start()]), link]
                done = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(words[done:])])


def write_cards(app: Any, env: Any) -> None:
    """Write the cards' texts before the pages are written."""
    if app.builder.format == "html" and GLOSSARY in env.all_docs:
        path = Path(app.outdir) / "_static" / "glossary.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = json.dumps(definitions(env), ensure_ascii=False, indent=0)
        path.write_text(f"window.GLOSSARY = {texts};\n", encoding="utf8")


def add_script(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """A page with a link to a term loads the cards."""
    if "#term-" in context.get("body", ""):
        app.add_js_file("glossary.js")
        app.add_js_file("terms.js")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("env-updated", write_cards)
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
