"""The built book: pages build without a warning, and have their buttons and pictures."""

import re

import pytest
from book_pages import listed_pages, run
from rules import ROOT, chapters


def build(source, out):
    flags = ["-W", "-n", "--keep-going", "--path-output", out]
    return run("jupyter-book", "build", source, *flags, cwd=source)


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


@pytest.fixture(scope="module")
def html_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("book")
    result = build(ROOT, out)
    assert result.returncode == 0, result.stdout[-6000:]
    return out / "_build" / "html"


@pytest.mark.slow
def test_book_builds_without_a_warning(html_folder):
    for page in listed_pages():
        assert (html_folder / f"{page}.html").is_file()
    assert "book/index.html" in (html_folder / "index.html").read_text()
    assert not (html_folder / "README.html").exists()
    assert not (html_folder / "book" / "_template.html").exists()


@pytest.mark.slow
def test_built_pages_have_their_buttons_and_pictures(html_folder):
    for path in chapters():
        page = (html_folder / "book" / f"{path.stem}.html").read_text()
        assert (
            f"colab.research.google.com/github/lora-from-scratch/lora-from-scratch/blob/main/book/{path.name}"
            in page
        )
        for image in re.findall(r"<img[^>]*>", page):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt, image
            assert not alt[1].endswith((".png", ".svg")), image
    for page in listed_pages():
        text = (html_folder / f"{page}.html").read_text()
        assert "custom.css" in text
        assert str(ROOT) not in text
