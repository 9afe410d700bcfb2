"""What the build adds to a finished page, and what it leaves out of the folder."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from author_year import AuthorYearLabels, label
from book_pages import listed_pages
from bs4 import BeautifulSoup
from finished_pages import DESCRIPTION, add_card, fewer_icons, size_of, with_sizes
from glossary_cards import mentions
from mended_pages import mend, mended
from pybtex.database import Entry, Person
from rules import BOOK

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big")
ARTICLE = (
    '<img src="logo.svg"><article class="bd-article"><img alt="a" src="a.png"><img class="hero" src="b.svg">'
)


def test_pictures_get_the_size_of_their_file_and_wait(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.svg").write_text('<svg viewBox="0 0 80 40"></svg>')
    page = with_sizes(ARTICLE, tmp_path)
    assert '<img src="logo.svg">' in page  # the side bar is the theme's
    assert '<img loading="lazy" width="640" height="480" alt="a" src="a.png">' in page
    assert '<img loading="eager" width="80" height="40" class="hero" src="b.svg">' in page
    assert with_sizes(page, tmp_path) == page


@pytest.mark.parametrize(
    ("svg", "size"),
    [
        ('<svg viewBox="0 0 80.4 40">', (80, 40)),
        ('<?xml version="1.0"?><svg width="72pt" height="36pt" viewBox="0 0 72 36">', (96, 48)),
        ("<svg>", None),
    ],
)
def test_a_drawing_says_its_size_in_points_or_pixels(tmp_path, svg, size):
    (tmp_path / "x.svg").write_text(svg)
    assert size_of(tmp_path / "x.svg") == size


@pytest.mark.parametrize(
    ("configured", "environment", "address"),
    [
        ("https://a.org/book/", "", "https://a.org/book/_static/card.png"),
        ("https://a.org", "https://b.org", "https://a.org/_static/card.png"),
        ("", "https://b.org/", "https://b.org/_static/card.png"),
        ("", "", None),
    ],
)
def test_a_cards_picture_has_its_whole_address_or_is_left_out(monkeypatch, configured, environment, address):
    monkeypatch.setenv("BOOK_URL", environment)
    config = SimpleNamespace(html_baseurl=configured, project="LoRA", root_doc="book/index")
    page = {"title": "A <b>page</b>"}
    add_card(SimpleNamespace(config=config), "book/04_first", "page.html", page, None)
    tags = {
        tag.get("property") or tag["name"]: tag["content"]
        for tag in BeautifulSoup(page["metatags"], "html.parser").find_all("meta")
    }
    assert tags.get("og:image") == address and tags["og:title"] == "A page"
    assert tags["twitter:card"] == ("summary_large_image" if address else "summary")


def test_a_heading_without_text_becomes_a_cell():
    page = {"body": '<th></th><th colspan="3"></th><th>a</th><thead></thead>'}
    mend(None, "a", "", page, None)
    assert page["body"] == '<td></td><td colspan="3"></td><th>a</th><thead></thead>'


def table(*rows, head="<th></th><th>score</th><th>asks</th>"):
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table border="1" class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def test_a_column_of_words_is_marked_and_one_of_numbers_is_not():
    rows = (
        "<th>CoLA</th><td>7.1 [0.9, 13.5]</td><td>is it <b>English</b>?</td>",
        "<th>b</th><td>−2</td><td>why?</td>",
    )
    page = BeautifulSoup(mended(table(*rows)), "html.parser")
    words = [cell.get_text() for cell in page.find_all(class_="words")]
    assert words == ["asks", "is it English?", "why?"]
    uneven = table(rows[0], "<th>b</th><td>1</td>")
    assert "words" not in mended(uneven)


def test_the_name_of_a_tables_rows_moves_into_the_corner():
    given = table("<th>1</th><td>2</td><td>3</td>")
    named = given.replace("</thead>", "<tr>\n <th>rank</th>\n <th></th>\n <th></th>\n</tr></thead>")
    page = BeautifulSoup(mended(named), "html.parser")
    assert [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in page.find_all("tr")] == [
        ["rank", "score", "asks"],
        ["1", "2", "3"],
    ]
    both = named.replace("<th></th><th>score", "<th>column</th><th>score")  # nowhere to move it
    assert len(BeautifulSoup(mended(both), "html.parser").find_all("tr")) == 3


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("75.5 [73.3, 77.7] and", "75.5_[73.3,_77.7] and"),
        ("LoRA, r = 8, the rank", "LoRA, r_=_8, the rank"),
        ("for = 8", "for = 8"),
        ("12 % of 768 × 768", "12_% of 768_×_768"),
    ],
)
def test_a_number_stays_with_its_unit_and_its_interval(typed, shown):
    assert mended(typed).replace("\u00a0", "_") == shown


def test_icons_are_kept_by_any_of_their_names():
    script = (
        'var a={"sun":[512,512,[9728],"f185","M1z"],moon:[384,512,[127769,"crescent"],"f186",["M2z","M3z"]]};'
    )
    assert (
        fewer_icons(script, {"crescent"})
        == 'var a={moon:[384,512,[127769,"crescent"],"f186",["M2z","M3z"]]};'
    )
    assert fewer_icons(script, {"sun", "moon"}) == script


def entry(*names, year="2022", **fields):
    return Entry(
        "misc", {"year": year, "title": "A title"} | fields, {"author": [Person(name) for name in names]}
    )


def test_keys_are_authors_and_year():
    assert label(entry("Hu, Edward")) == "Hu, 2022"
    assert label(entry("Ba, Jimmy", "Frey, Brendan")) == "Ba and Frey, 2022"
    assert label(entry("Hu, Edward", "Shen, Yelong", "Wallis, Phillip")) == "Hu et al., 2022"
    assert label(entry("{bitsandbytes contributors}")) == "bitsandbytes contributors, 2022"
    same = [entry("Hu, Edward"), entry("Liu, Yinhan"), entry("Hu, Edward")]
    assert list(AuthorYearLabels().format_labels(same)) == ["Hu, 2022a", "Liu, 2022", "Hu, 2022b"]


def test_mentions_are_whole_words_and_the_longest_term_wins():
    found = mentions(["rank", "rank slider", "MiniLM"]).findall("Ranked: minilm's rank slider, and ranks.")
    assert found == [("minilm", ""), ("rank slider", ""), ("rank", "s")]


# --- the built book

pages = pytest.mark.parametrize("name", listed_pages())


@pytest.fixture(scope="module")
def soup(html_folder):
    kept = {}

    def read(name):
        if name not in kept:
            kept[name] = BeautifulSoup(
                (html_folder / f"{name}.html").read_text(encoding="utf8"), "html.parser"
            )
        return kept[name]

    return read


@pytest.mark.slow
@pages
def test_a_page_says_what_it_is_about(soup, name):
    tags = {
        tag.get("name") or tag.get("property"): tag["content"]
        for tag in soup(name).find_all("meta", content=True)
    }
    assert 20 < len(tags["description"]) <= DESCRIPTION + 1
    assert not re.search(r"[\\$`{}]", tags["description"]), tags["description"]
    assert tags["og:description"] == tags["description"] and tags["og:title"]
    assert {"og:type", "twitter:card"} <= tags.keys()
    assert tags.get("og:image", "https://").startswith("https://")


@pytest.mark.slow
def test_no_two_chapters_describe_themselves_alike(soup):
    about = [soup(name).find("meta", attrs={"name": "description"})["content"] for name in listed_pages()]
    assert len(set(about)) == len(about)


@pytest.mark.slow
@pages
def test_every_picture_of_a_page_has_its_size_and_its_time(soup, html_folder, name):
    for image in soup(name).select("article img"):
        here = "hero" in image.get("class", []) or image["src"].startswith("data:")  # nothing to wait for
        assert image["loading"] == ("eager" if here else "lazy")
        assert image.get("width") or "width" in image.get("style", ""), image


@pytest.mark.slow
def test_the_folder_has_what_pages_load_and_little_more(html_folder):
    static = html_folder / "_static"

    def size(folder):
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

    assert (static / "mathjax" / "tex-chtml.js").is_file()
    assert size(static / "mathjax") < 6e6
    assert size(static / "scripts") < 0.4e6 and size(static / "vendor") == 0
    assert not list(static.rglob("*.map"))
    assert (static / "card.png").is_file()


@pytest.mark.slow
def test_the_icons_that_pages_name_are_there(html_folder):
    script = (html_folder / "_static" / "scripts" / "fontawesome.js").read_text(encoding="utf8")
    pages = [page.read_text(encoding="utf8") for page in (html_folder / "book").glob("*.html")]
    classes = [words for page in pages for words in re.findall(r'<i class="(fa[^"]*)"', page)]
    named = {name for words in classes for name in re.findall(r"\bfa-([\w-]+)", words)}
    named -= {"solid", "brands", "lg"}
    assert len(named) > 5
    for name in named:
        assert re.search(rf'"?\b{name}"?:\[\d+,\d+,|"{name}"', script), name


@pytest.mark.slow
def test_the_bibliography_has_no_cryptic_key(soup):
    keys = [key.get_text() for key in soup("book/bibliography").select(".citation .label")]
    assert len(keys) > 30
    for key in keys:
        assert re.search(r"\w+.*, \d{4}[a-z]?", key), key


@pytest.mark.slow
def test_each_link_to_a_term_has_a_card(soup, html_folder):
    cards = (html_folder / "_static" / "glossary.js").read_text(encoding="utf8")
    assert not re.search(r"\\[a-zA-Z]|[$_]\{|\{cite", cards.replace('\\"', ""))
    linked = [
        (name, link["href"].partition("#")[2])
        for name in listed_pages()
        for link in soup(name).select('article p a[href*="#term-"]')
    ]
    assert len({name for name, _ in linked}) >= 15
    for name, term in linked:
        assert f'"{term}": ' in cards, (name, term)


def test_the_glossary_card_is_plain_text():
    assert (BOOK / "_static" / "terms.js").read_text().count("innerHTML") == 0


def test_a_number_keeps_its_unit_on_its_line_and_code_stays_as_it_is():
    page = mended(
        "<p>about 12 % of 40 MB, 768 × 768, [−0.1, 2.5], [1, a]</p>"
        "<code>12 % 5</code><pre>40 MB\n</pre><p>2 sentences</p>"
    )
    assert "12\u00a0% of 40\u00a0MB, 768\u00a0×\u00a0768, [−0.1,\u00a02.5], [1, a]" in page
    assert "<code>12 % 5</code><pre>40 MB\n</pre><p>2 sentences</p>" in page


def test_a_page_without_a_number_counts_its_figures_and_exercises_from_one():
    caption = '<span class="caption-number">{} </span>'
    title = '<p>Solution to<a class="reference internal" href="#ex"> Exercise 8 (Predict)</a></p>'
    reference = '<span class="std std-numref">Figure 5</span>'
    page = mended(
        "".join(map(caption.format, ("Figure 5", "Figure 6", "Exercise 8", "Figure 2.1"))) + reference + title
    )
    assert [
        caption.format(name) in page for name in ("Figure 1", "Figure 2", "Exercise 1", "Figure 2.1")
    ] == [True] * 4
    assert '<span class="std std-numref">Figure 1</span>' in page
    assert 'Solution to <a class="reference internal" href="#ex">Exercise 1 (Predict)</a>' in page
