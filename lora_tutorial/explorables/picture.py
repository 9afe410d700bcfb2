"""Small drawings in SVG: what a figure to touch shows where no script runs, and on paper.

A drawing is text, made from the numbers that the figure shows at first. It stands in an ``<img>`` as a data
URI, because viewers that allow no script (GitHub, a notebook that is not trusted) remove ``<svg>`` from HTML
and keep such a picture. There it can't take its colours from the page, so its grey suits a white page and a
dark one alike.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLUE, GREEN, SKY, ORANGE = "#0072B2", "#009E73", "#56B4E9", "#D55E00"
#: Lines and text, and what is frozen: the greys of the book's figures.
GREY, FROZEN = "#7a7d82", "#8a8d92"
#: What stands in a cell, which has a light ground on every page.
INK = "#1b1f24"


class Picture(NamedTuple):
    """A drawing, and what it shows in words."""

    svg: str
    alt: str

    @property
    def tag(self) -> str:
        """The picture as HTML that needs no other file."""
        width, height = self.svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split(" ")
        source = base64.b64encode(self.svg.encode()).decode()
        return (
            f'<img class="touch-still" alt="{html.escape(self.alt)}" width="{width}" height="{height}" '
            f'loading="eager" src="data:image/svg+xml;base64,{source}">'
        )


def mark(name: str, content: str = "", /, **attributes: Any) -> str:
    """An element of a drawing. Numbers are rounded to a hundredth, ``_`` in a name stands for ``-``."""
    told = "".join(f' {key.replace("_", "-")}="{_plain(value)}"' for key, value in attributes.items())
    return f"<{name}{told}>{content}</{name}>" if content else f"<{name}{told}/>"


def words(x: float, y: float, text: str, **attributes: Any) -> str:
    """A line of text with its baseline at ``y``."""
    return mark("text", html.escape(text, quote=False), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: Any) -> str:
    """A straight line, thin and grey."""
    return mark(
        "path", d=f"M{_plain(x1)} {_plain(y1)}L{_plain(x2)} {_plain(y2)}", **{"stroke": GREY} | attributes
    )


def drawing(width: int, height: int, *marks: str) -> str:
    """The marks in their order, as one SVG on a ground that shows through."""
    return mark(
        "svg",
        "".join(marks),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        font_family="sans-serif",
        font_size=14,
        fill=GREY,
    )


def cell(colour: str, share: float) -> str:
    """So much of a colour on white, as a colour."""
    parts = (round(255 + (int(colour[k : k + 2], 16) - 255) * share) for k in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def tint(value: float, top: float) -> str:
    """How a number looks in a cell: orange above zero, blue below, at most half of the colour."""
    return cell(BLUE if value < 0 else ORANGE, 0.5 * min(1, abs(value) / top))


def digits(value: float, count: int) -> str:
    """A number in so many digits that count, without zeros at the end, its minus sign a proper one."""
    return f"{float(f'{value:.{count - 1}e}') + 0.0:g}".replace("-", "\u2212")


def heat(values: NDArray[np.float64], white: float) -> str:
    """A square matrix as a data URI of a PNG, blue below zero and orange above, pale at zero.

    Fifteen colours, four bits an entry, stored as they are: every machine writes the same bytes.
    """
    side = len(values)
    share = np.linspace(-1, 1, 15)[:, None]
    ends = np.where(share < 0, [0, 114, 178], [230, 159, 0])
    palette = np.rint(245 + (ends - 245) * np.abs(share)).astype(np.uint8)
    level = np.rint(7 + 7 * np.clip(values / white, -1, 1)).astype(np.uint8)
    level = np.pad(level, ((0, 0), (0, side % 2)))
    rows = np.pad(level[:, ::2] << 4 | level[:, 1::2], ((0, 0), (1, 0)))  # each row begins with its filter
    header = struct.pack(">IIBBBBB", side, side, 4, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 0)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _plain(value: str | float) -> str:
    return html.escape(value) if isinstance(value, str) else f"{round(value, 2) + 0.0:g}"
