"""Print the built book into one PDF, a bookmark for each page: `python tools/pdf.py`, or `make pdf`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import yaml
from pypdf import PdfReader, PdfWriter
from reader import NAMES, find_browser, launched, served
from rules import ROOT

from lora_tutorial.storage.files import atomic_write_bytes

OUT = ROOT / "_build" / "lora-from-scratch.pdf"
#: A sheet shows every picture, those too that wait to be scrolled to.
PICTURES = """() => Promise.all([...document.images].map(image => {
  image.loading = "eager";
  return image.decode().catch(() => null);
}))"""
NO_BROWSER = (
    f"Printing needs a browser, one of {', '.join(NAMES)}, and none is installed. "
    "On Debian: apt install chromium. Or open a page of the book and print it there."
)


def pages_in_order() -> list[str]:
    """The book's pages as the table of contents has them, without an ending."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def printed(browser: Any, url: str) -> tuple[str, bytes]:
    """A page's title and its PDF on A4, formulas set and folded solutions open."""
    page = browser.new_page(color_scheme="light")
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(PICTURES)
    title = page.evaluate("() => document.querySelector('article h1').textContent.replace(/#$/, '').trim()")
    pdf = page.pdf(format="A4", prefer_css_page_size=True, print_background=True)
    page.close()
    return title, pdf


def print_book(html_folder: Path, names: list[str], browser_path: str) -> bytes:
    """The pages `names` of `html_folder` as one PDF."""
    book = PdfWriter()
    with served(html_folder) as site, launched(browser_path) as browser:
        for name in names:
            title, pdf = printed(browser, f"{site}/{name}.html")
            book.append(PdfReader(io.BytesIO(pdf)), outline_item=title, import_outline=False)
    book.add_metadata({"/Title": "LoRA from scratch", "/Author": "The LoRA from scratch authors"})
    written = io.BytesIO()
    book.write(written)
    return written.getvalue()


def main() -> int:
    """Print every page; say where the file is."""
    path = find_browser()
    if path is None:
        print(NO_BROWSER)
        return 2
    pdf = print_book(ROOT / "_build" / "html", pages_in_order(), path)
    atomic_write_bytes(OUT, pdf)
    count = len(PdfReader(io.BytesIO(pdf)).pages)
    print(f"{OUT.relative_to(ROOT)}: {count} sheets, {len(pdf) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
