"""A Sphinx extension: a chapter's figures stand in the page itself, in the page's colours.

What a cell draws is stored as SVG in the greys and colours of `lora_tutorial.pages.style`, which must do on a
white and on a dark page. In the built page its lines and its text take colours of the page's own style sheet,
so that text is as legible as the rest in either scheme.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from lora_tutorial.pages.style import AXIS, OKABE_ITO, ROLES

#: CSS pixels for a point of the figure, where the column has room for it.
SCALE = 1.5
#: The style sheet's names for the colours that a figure is stored in.
LINES = {AXIS: "var(--lora-soft)"}
WORDS = {colour: f"var(--figure-{name})" for name, colour in OKABE_ITO.items()}
WORDS |= {AXIS: "var(--lora-ink)", ROLES["frozen"]: "var(--figure-grey)"}
COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
#: Matplotlib says this in a style sheet, which would reach every drawing of the page.
ROOT_STYLE = "stroke-linejoin: round; stroke-linecap: butt"
REFERENCE = re.compile(r"url\(#([^)]+)\)")
DECIMALS = re.compile(r"-?\d+\.\d{3,}")
UNUSED = ("metadata", "style", "title")


def _local(name: str) -> str:
    """A tag or attribute without its namespace: HTML has no use for one."""
    return name.rpartition("}")[2]


def _short(number: re.Match[str]) -> str:
    """A number with two decimals; what is smaller, such as a scale, stays as it is."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".") if abs(float(number[0])) >= 1 else number[0]


def _recoloured(style: str, colours: dict[str, str]) -> str:
    known = {colour.lower(): name for colour, name in colours.items()}
    return COLOUR.sub(lambda match: known.get(match[0].lower(), match[0]), style)


def _with_colours(element: ET.Element, is_text: bool = False) -> Iterator[tuple[ET.Element, bool]]:
    """Every element below, and whether it is part of a text."""
    is_text = is_text or element.get("id", "").startswith("text_")
    yield element, is_text
    for child in element:
        yield from _with_colours(child, is_text)


def inline(svg: str, label: str, prefix: str) -> str:
    """The markup of a figure for a page of HTML.

    Parameters
    ----------
    svg
        What matplotlib wrote.
    label
        What the figure shows, for those who do not see it.
    prefix
        The start of its ids: matplotlib's repeat from figure to figure.
    """
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in [child for child in parent if _local(child.tag) in UNUSED]:
            parent.remove(child)
    used = sorted({*REFERENCE.findall(svg), *re.findall(r'href="#([^"]+)"', svg)})
    names = {used_id: f"{prefix}{number}" for number, used_id in enumerate(used)}
    for element, is_text in list(_with_colours(root)):
        given = {_local(name): value for name, value in element.attrib.items()}
        if given.get("id") not in names:
            given.pop("id", None)
        for name, value in given.items():
            if name == "style":
                given[name] = _recoloured(value, WORDS if is_text else LINES)
            elif name == "id":
                given[name] = names[value]
            elif name == "href" and value.startswith("#"):
                given[name] = f"#{names[value[1:]]}"
            elif name in ("d", "x", "y") or value.startswith("translate"):
                given[name] = DECIMALS.sub(_short, " ".join(value.split()))
            given[name] = REFERENCE.sub(lambda match: f"url(#{names[match[1]]})", given[name])
        element.attrib.clear()
        element.attrib.update(given)
        element.tag = _local(element.tag)
        element.text = element.tail = None
    width, height = (round(SCALE * float(number)) for number in root.attrib["viewBox"].split()[2:])
    box = {"class": "drawn", "role": "img", "aria-label": " ".join(label.split())}
    size = {"viewBox": root.attrib["viewBox"], "width": str(width), "height": str(height)}
    root.attrib.clear()
    root.attrib.update(box | size | {"style": ROOT_STYLE})
    return ET.tostring(root, encoding="unicode")


class InlineFigures(SphinxPostTransform):
    """Put the drawing of a cell's output into the page."""

    default_priority = 50  # after MyST-NB has chosen what to show of an output
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace each image of a chapter that is a drawing."""
        numbers = count(1)
        for image in list(self.document.findall(nodes.image)):
            if _is_output(image) and image["uri"].endswith(".svg"):
                svg = (Path(self.env.srcdir) / image["uri"].lstrip("/")).read_text(encoding="utf8")
                markup = inline(svg, image.get("alt", ""), f"d{next(numbers)}-")
                image.replace_self(nodes.raw("", markup, format="html"))


def _is_output(node: nodes.Node | None) -> bool:
    while node is not None and not (isinstance(node, nodes.container) and "cell_output" in node["classes"]):
        node = node.parent
    return node is not None


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.add_post_transform(InlineFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
