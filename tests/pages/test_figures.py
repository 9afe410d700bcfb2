"""The chapters' figures: one style, the same bytes twice, and words that can be read on both pages."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from bs4 import BeautifulSoup
from inline_figures import LINES, WORDS, inline
from rules import BOOK, chapters, code_cells, read

from lora_tutorial.pages.style import AXIS, OKABE_ITO, ROLES


def contrast(first, second):
    """The WCAG contrast ratio of two colours (#rrggbb)."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#14171c"])
def test_figures_read_on_both_pages(page):
    assert contrast(AXIS, page) > 4
    for name, colour in OKABE_ITO.items():
        assert contrast(colour, page) > 2, name


def colours_of(scheme):
    """The variables that the style sheet sets in a scheme, and what they are."""
    sheet = (BOOK / "_static" / "custom.css").read_text(encoding="utf8")
    block = re.search(rf'html\[data-theme="{scheme}"\] \{{(.*?)\}}', sheet, re.DOTALL)[1]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block))


GROUNDS = (
    "--pst-color-background",
    "--lora-wash",
    "--lora-wash-accent",
    "--lora-wash-learnt",
    "--lora-wash-ok",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_words_of_a_figure_can_be_read_in_both_schemes(scheme, ground):
    colours = colours_of(scheme)
    assert {AXIS, ROLES["frozen"], *OKABE_ITO.values()} == WORDS.keys()
    for variable in [*WORDS.values(), *LINES.values()]:
        assert contrast(colours[variable[4:-1]], colours[ground]) >= 4.5, variable


def test_pictures_are_the_same_twice(tmp_path):
    script = (
        "import sys, matplotlib; matplotlib.use('Agg')\n"
        "import matplotlib.pyplot as plt\n"
        "from lora_tutorial.pages.style import use_style\n"
        "use_style(); fig, ax = plt.subplots(); ax.plot([1, 3, 2]); fig.savefig(sys.argv[1])\n"
    )
    for name in ("a.png", "b.png"):
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


IN_A_NOTEBOOK = (
    "import matplotlib\n"
    "from IPython.core.interactiveshell import InteractiveShell\n"
    "shell = InteractiveShell.instance()\n"
    "matplotlib.use('module://matplotlib_inline.backend_inline')  # as a notebook's kernel does\n"
    "import matplotlib.pyplot as plt\n"
    "from lora_tutorial.pages.style import use_style\n"
    "use_style(); fig, ax = plt.subplots(); ax.plot([1, 3, 2], label='$W_0$'); ax.legend()\n"
    "shown, _ = shell.display_formatter.format(fig)\n"
    "assert set(shown) == {'image/svg+xml', 'text/plain'}, set(shown)\n"
    "print(shown['image/svg+xml'])\n"
)


def printed(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_a_notebook_stores_drawings_that_say_nothing_of_time_or_machine():
    svg = printed(IN_A_NOTEBOOK)
    assert svg == printed(IN_A_NOTEBOOK)
    assert svg.startswith("<?xml") and "<text" not in svg and "metadata" not in svg


def test_elsewhere_the_style_needs_no_notebook():
    script = "import sys; from lora_tutorial.pages.style import use_style; use_style()\n"
    assert printed(script + "print('IPython' in sys.modules)") == "False\n"


SVG = """<?xml version="1.0"?>
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="72pt" height="36pt" viewBox="0 0 72 36"
 xmlns="http://www.w3.org/2000/svg">
 <metadata>made today</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style></defs>
 <g id="patch_1"><path d="M 1.23456 2
L 3 4" clip-path="url(#p1)" style="fill: #d55e00; stroke: #7a7d82"/></g>
 <g id="text_1"><!-- x --><g style="fill: #d55e00"><use xlink:href="#x-1"/></g><g style="fill: #7a7d82"/></g>
 <defs><clipPath id="p1"><path id="x-1" d="z"/></clipPath></defs>
</svg>"""


def test_a_figure_in_a_page_has_a_name_a_size_and_ids_of_its_own():
    label = 'Two lines: "a" < "b"'
    drawn = inline(SVG, label, "one-")
    root = ET.fromstring(drawn)
    assert root.attrib | {"class": "drawn", "role": "img", "aria-label": label} == root.attrib
    assert (root.get("viewBox"), root.get("width"), root.get("height")) == ("0 0 72 36", "108", "54")
    assert [element.get("id") for element in root.iter() if element.get("id")] == ["one-0", "one-1"]
    assert 'clip-path="url(#one-0)"' in drawn and 'href="#one-1"' in drawn
    assert 'd="M 1.23 2 L 3 4"' in drawn
    for gone in ("<?xml", "xmlns", "metadata", "<style", "<!--", "made today"):
        assert gone not in drawn


def test_words_and_lines_take_the_colours_of_the_page():
    line, *words = re.findall(r' style="([^"]*)"', inline(SVG, "a", "one-"))[1:]
    assert line == "fill: #d55e00; stroke: var(--lora-soft)"
    assert words == ["fill: var(--figure-vermillion)", "fill: var(--lora-ink)"]


# --- the built book


def drawings(path):
    """How many figures of a chapter are stored as drawings."""
    cells = code_cells(read(path))
    return sum("image/svg+xml" in output.get("data", {}) for cell in cells for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_has_its_figures_in_the_page_and_counts_them(html_folder, path):
    page = (html_folder / "book" / f"{path.stem}.html").read_text(encoding="utf8")
    article = BeautifulSoup(page, "html.parser").find("article")
    assert len(article.select("figure > svg.drawn[role=img][aria-label]")) == drawings(path)
    numbers = [number.get_text().strip() for number in article.select("figcaption .caption-number")]
    assert len(numbers) >= drawings(path)
    if path.stem[:2].isdigit():
        assert numbers == [f"Figure {int(path.stem[:2])}.{n}" for n in range(1, len(numbers) + 1)]
    else:  # pages without a number share one count
        assert all(re.fullmatch(r"Figure \d+", number) for number in numbers)
