"""The repository's address: one command moves it, everywhere or nowhere."""

import shutil
import subprocess

import pytest
import yaml
from repository import current, main, move, places, slug_of
from rules import ROOT, TEMPLATE, chapters, code_cells, read, text_of

OLD, NEW = current(ROOT), "https://github.com/some-one/their.book"


@pytest.fixture
def tree(tmp_path):
    """A copy of every file that may name the address."""
    for path in places(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return tmp_path


def texts(tree):
    return {path.relative_to(tree): path.read_bytes() for path in places(tree)}


def test_the_address_moves_everywhere_and_nothing_else_changes(tree, capsys):
    before = texts(tree)
    assert main([NEW], tree) == 0
    after = texts(tree)
    assert current(tree) == NEW
    for path in [*chapters(), TEMPLATE]:
        cell = text_of(code_cells(read(tree / path.relative_to(ROOT)))[0]["source"])
        assert f'REPOSITORY = "{NEW}"' in cell
    assert not any(slug_of(OLD).encode() in text for text in after.values())
    assert {
        path: text.replace(slug_of(NEW).encode(), slug_of(OLD).encode()) for path, text in after.items()
    } == before
    assert f"the address is {NEW}" in capsys.readouterr().out


def test_the_same_address_again_changes_nothing(tree):
    move(tree, NEW)
    before = {path: path.stat().st_mtime_ns for path in places(tree)}
    assert move(tree, NEW) == []
    assert {path: path.stat().st_mtime_ns for path in places(tree)} == before


def test_there_and_back_gives_the_same_bytes(tree):
    before = texts(tree)
    move(tree, NEW)
    move(tree, OLD)
    assert texts(tree) == before


@pytest.mark.parametrize(
    "url",
    [
        "github.com/a/b",
        "http://github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/",
        "https://github.com/a/b.git",
        "https://github.com/a/b/tree/main",
        'https://github.com/a/b"; import os',
        "https://github.com/-a/b",
        "https://github.com/a/..",
        "https://github.com/a/b\n",
        "git@github.com:a/b",
    ],
)
def test_a_bad_address_is_refused_before_anything_is_written(tree, url, capsys):
    before = texts(tree)
    assert main([url], tree) == 2
    assert "https://github.com/OWNER/NAME" in capsys.readouterr().out
    assert texts(tree) == before


def test_a_chapter_that_names_another_address_stops_the_move(tree):
    path = tree / "book" / TEMPLATE.name
    path.write_text(path.read_text().replace(OLD, "https://github.com/else/where"))
    before = texts(tree)
    with pytest.raises(ValueError, match=r"_template\.ipynb"):
        move(tree, NEW)
    assert texts(tree) == before


def test_without_an_address_the_command_says_what_it_is(tree, capsys):
    assert main([""], tree) == 2
    assert OLD in capsys.readouterr().out


def test_no_other_file_names_the_address():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    slug = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"].split(".com/")[1].encode()
    known = {str(path.relative_to(ROOT)) for path in places(ROOT)}
    naming = {
        name
        for name in listed.stdout.split()
        if (ROOT / name).is_file() and slug in (ROOT / name).read_bytes()
    }
    assert naming <= known
