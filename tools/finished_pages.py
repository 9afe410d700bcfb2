"""A Sphinx extension: what a finished page is given, and what the built folder does not need.

A page says in a sentence what it is about, for search engines and for the card that a shared link shows. The
card has its picture where the pages' address is known, from ``html.baseurl`` in _config.yml or from BOOK_URL
in the environment. A picture on a page has the size of its file, so that the text does not jump, and is
loaded when it comes into view. Of the theme's icons and of MathJax only what a page can load stays, which
saves a third of the folder.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from docutils import nodes

#: The longest description that search engines show.
DESCRIPTION = 158
CARD = "_static/card.png"
#: The address where _config.yml has none, as whoever publishes the pages sets it.
ADDRESS = "BOOK_URL"
IMAGE = re.compile(r"<img\b[^>]*>")
SOURCE = re.compile(r'src="([^":]+)"')
#: MathJax's own parts that a page loads: always, for a rarer command, or from the menu on a formula.
MATHJAX_KEPT = (
    "tex-chtml.js",
    "output/chtml/fonts/woff-v2/",
    "output/svg.js",
    "output/svg/fonts/tex.js",
    "input/tex/extensions/",
    "a11y/",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)
#: The theme's side bar holds the logo and is no landmark, so a screen reader's user could pass it by.
SIDEBAR = '<div id="pst-primary-sidebar" class="'
ICON = re.compile(
    r'(?:"(?P<quoted>[\w-]+)"|(?P<bare>\w+)):\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]+",'
    r'(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?'
)
ICON_NAME = re.compile(r"\bfa-([a-z0-9-]+)")
#: The theme loads its icons twice: as drawings, which are kept, and as fonts.
ICON_FONT = re.compile(r"@font-face\s*\{[^}]*fontawesome/webfonts[^}]*\}")


def describe(doctree: Any) -> str:
    """The first words of a page's own text, cut at a word, without its boxes and formulas."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree is not None else ():
        boxed = paragraph.parent
        while boxed is not None and not isinstance(boxed, (nodes.Admonition, nodes.table, nodes.list_item)):
            boxed = boxed.parent
        text = " ".join(paragraph.astext().split())
        if boxed is None and not list(paragraph.findall(nodes.math)) and len(text) > 60:
            short = text if len(text) <= DESCRIPTION else text[: DESCRIPTION - 2].rpartition(" ")[0] + " …"
            return short
    return ""


def add_card(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Give a page the tags of its description and of its card."""
    title = re.sub(r"<[^>]+>", "", context.get("title") or "")
    about = describe(doctree) or f"{title}: a page of {app.config.project}."
    base = (app.config.html_baseurl or os.environ.get(ADDRESS, "")).rstrip("/")
    tags = {
        'name="description"': about,
        'property="og:title"': html.unescape(title) or app.config.project,
        'property="og:description"': about,
        'property="og:type"': "book" if pagename == app.config.root_doc else "article",
        'property="og:site_name"': app.config.project,
        'name="twitter:card"': "summary_large_image" if base else "summary",
    }
    if base:  # whoever shows the card fetches its picture from elsewhere, and needs all of the address
        tags['property="og:image"'] = f"{base}/{CARD}"
    context["metatags"] = context.get("metatags", "") + "".join(
        f'\n    <meta {name} content="{html.escape(text)}" />' for name, text in tags.items()
    )


def size_of(path: Path) -> tuple[int, int] | None:
    """The width and height in pixels of a PNG or an SVG, or None where the file does not say."""
    data = path.read_bytes()
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack(">II", data[16:24])
    tag = re.search(rb"<svg\b[^>]*>", data[:4000])
    box = re.search(rb'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', tag[0]) if tag else None
    if not tag or not box:
        return None
    # Matplotlib gives a drawing its size in points.
    stated = re.search(rb'\bwidth="([\d.]+)(pt|px)?"', tag[0])
    factor = float(stated[1]) * (4 / 3 if stated[2] == b"pt" else 1) / float(box[1]) if stated else 1
    return round(float(box[1]) * factor), round(float(box[2]) * factor)


def with_sizes(page: str, folder: Path) -> str:
    """The HTML of a page in ``folder`` whose pictures have a size and wait until they come into view."""

    def tell(match: re.Match[str]) -> str:
        tag, source = match[0], SOURCE.search(match[0])
        if "loading=" in tag or not source:
            return tag
        path = folder / source[1].partition("?")[0]
        size = size_of(path) if path.is_file() else None
        if size and not re.search(r"\b(width|height)[=:]", tag):
            tag = tag.replace("<img", f'<img width="{size[0]}" height="{size[1]}"', 1)
        wait = "eager" if "hero" in tag else "lazy"
        return tag.replace("<img", f'<img loading="{wait}"', 1)

    head, mark, article = page.partition('<article class="bd-article">')
    return head + mark + IMAGE.sub(tell, article)


def fewer_icons(script: str, used: set[str]) -> str:
    """The icons' script with no drawing that is not in ``used``, by its name or by one of its other names."""

    def keep(match: re.Match[str]) -> str:
        names = {match["quoted"] or match["bare"], *re.findall(r"[\w-]+", match["aliases"])}
        return match[0] if names & used else ""

    return ICON.sub(keep, script)


def finish(app: Any, error: Exception | None) -> None:
    """When all pages are written: sizes, and what no page loads."""
    out = Path(app.outdir)
    if error or app.builder.format != "html":
        return
    used: set[str] = set()
    for path in out.rglob("*.html"):
        if "_static" in path.parts:
            continue
        page = path.read_text(encoding="utf8")
        used |= set(ICON_NAME.findall(page))
        done = with_sizes(page, path.parent)
        done = done.replace(SIDEBAR, f'<div role="complementary" aria-label="The book" {SIDEBAR[5:]}')
        if done != page:
            path.write_text(done, encoding="utf8")
    prune(out / "_static", used)


def prune(static: Path, used: set[str]) -> None:
    """Remove what no page loads from the folder ``static``, of the icons all but those in ``used``."""
    for path in (static / "mathjax").rglob("*"):
        name = path.relative_to(static / "mathjax").as_posix()
        if path.is_file() and not name.startswith(MATHJAX_KEPT):
            path.unlink()
    icons = static / "scripts" / "fontawesome.js"
    for script in (static / "scripts").glob("*.js"):
        used |= set(ICON_NAME.findall(script.read_text(encoding="utf8"))) if script != icons else set()
    icons.write_text(fewer_icons(icons.read_text(encoding="utf8"), used), encoding="utf8")
    theme = static / "styles" / "pydata-sphinx-theme.css"
    theme.write_text(ICON_FONT.sub("", theme.read_text(encoding="utf8")), encoding="utf8")
    shutil.rmtree(static / "vendor" / "fontawesome" / "webfonts", ignore_errors=True)
    for path in [*static.rglob("*.js.map"), *static.rglob("*.css.map")]:
        path.unlink()


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("html-page-context", add_card)
    app.connect("build-finished", finish, priority=900)  # after MathJax was copied
    return {"parallel_read_safe": True, "parallel_write_safe": True}
