"""The built book: pages build without a warning, and have their buttons and pictures."""

import re
from collections import Counter
from urllib.parse import unquote, urlsplit

import pytest
from book_pages import build, listed_pages
from bs4 import BeautifulSoup
from repository import current, slug_of
from rules import ROOT, chapters


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (tmp_path / "_config.yml").write_text("execute:\n  execute_notebooks: 'off'\n")
    (tmp_path / "index.md").write_text("# Title\n\nSee [](nowhere).\n")
    result = build(tmp_path, tmp_path / "bad")
    assert result.returncode != 0
    assert "nowhere" in result.stdout
    (tmp_path / "index.md").write_text("# Title\n\nSee [](index).\n")
    result = build(tmp_path, tmp_path / "good")
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_book_builds_without_a_warning(html_folder):
    for page in listed_pages():
        assert (html_folder / f"{page}.html").is_file()
    assert "book/index.html" in (html_folder / "index.html").read_text()
    assert not (html_folder / "README.html").exists()
    assert not (html_folder / "book" / "_template.html").exists()


@pytest.mark.slow
def test_built_pages_have_their_buttons_and_pictures(html_folder):
    slug = slug_of(current(ROOT))
    for path in chapters():
        page = (html_folder / "book" / f"{path.stem}.html").read_text()
        assert f"colab.research.google.com/github/{slug}/blob/main/book/{path.name}" in page
        for image in re.findall(r"<img[^>]*>", page):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt, image
            assert not alt[1].endswith((".png", ".svg")), image
    for page in listed_pages():
        text = (html_folder / f"{page}.html").read_text()
        assert "custom.css" in text
        assert str(ROOT) not in text
        assert "thebe" not in text  # its script declares a constant twice, and names another host


def soup_of(path):
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


def local_targets(page, soup):
    """What a page refers to on its own site: (the file, the fragment or an empty text)."""
    for tag, name in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")):
        for found in soup.find_all(tag, attrs={name: True}):
            url = urlsplit(found[name])
            if not url.scheme and not url.netloc and "headerlink" not in found.get("class", []):
                yield (page.parent / unquote(url.path)).resolve() if url.path else page, unquote(url.fragment)


def broken_links(html_folder):
    pages = [path for path in html_folder.rglob("*.html") if "_static" not in path.parts]
    soups = {path.resolve(): soup_of(path) for path in pages}
    names = {
        path: {tag.get("id") or tag.get("name") for tag in soup.find_all(True)}
        for path, soup in soups.items()
    }
    return sorted(
        f"{page.name} -> {target.name}#{fragment}"
        for page, soup in soups.items()
        for target, fragment in set(local_targets(page, soup))
        if not target.is_file() or (fragment and target in names and fragment not in names[target])
    )


def repeated_ids(path):
    count = Counter(tag["id"] for tag in soup_of(path).find_all(id=True))
    return sorted(name for name, times in count.items() if times > 1)


@pytest.mark.slow
def test_no_id_stands_twice_on_a_page(html_folder):
    assert {name: repeated_ids(html_folder / f"{name}.html") for name in listed_pages()} == {
        name: [] for name in listed_pages()
    }


def test_a_repeated_id_is_seen(tmp_path):
    (tmp_path / "a.html").write_text('<p id="one"></p><p id="two"></p><b id="one"></b>')
    assert repeated_ids(tmp_path / "a.html") == ["one"]


@pytest.mark.slow
def test_internal_links_and_citations_lead_somewhere(html_folder):
    assert broken_links(html_folder) == []


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a> <a href="#here">up</a></p>')
    (tmp_path / "b.html").write_text('<p id="there"><img src="none.png"> <a href="a.html#nowhere">a</a></p>')
    assert broken_links(tmp_path) == ["b.html -> a.html#nowhere", "b.html -> none.png#"]


@pytest.mark.slow
def test_a_page_with_its_own_pictures_is_under_a_megabyte(html_folder):
    for name in listed_pages():
        page = html_folder / f"{name}.html"
        sources = [image["src"] for image in soup_of(page).select("article img[src]")]
        pictures = {(page.parent / src).resolve() for src in sources if not src.startswith("data:")}
        size = page.stat().st_size + sum(path.stat().st_size for path in pictures if path.is_file())
        assert size < 1_000_000, name
