"""The first page and the README: what they show and promise is true."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from book_pages import run
from chapter_cards import BOOK, CARD, numbers, reading_minutes, run_time, seconds_stated, title_of
from rules import ROOT, read

from lora_tutorial.lora.layers import LoraLinear

STATIC = BOOK / "_static"
INDEX = (BOOK / "index.md").read_text(encoding="utf8")
COLOUR = re.compile(r"#[0-9a-f]{3,6}\b")


def test_the_picture_has_the_numbers_of_a_real_layer():
    layer = LoraLinear(768, 768)
    frozen, learnt = layer.weight.numel(), layer.lora_A.numel() + layer.lora_B.numel()
    for name in ("hero-light.svg", "hero-dark.svg"):
        picture = (STATIC / name).read_text()
        for words in (
            f"{frozen:,} values",
            f"{learnt:,} values",
            f"{learnt / frozen:.0%} as".replace("%", " %"),
        ):
            assert f">{words}" in picture or f"learnt: {words}" in picture, words
    for page in (INDEX, (ROOT / "README.md").read_text()):
        assert f"with {frozen:,} values" in page and f"with {learnt:,} values to learn" in page


def test_the_picture_is_the_same_in_both_schemes_but_for_its_colours():
    light, dark = ((STATIC / f"hero-{scheme}.svg").read_text() for scheme in ("light", "dark"))
    assert COLOUR.sub("", light) == COLOUR.sub("", dark)
    assert light != dark


def test_every_chapter_has_a_card_in_the_order_of_the_contents():
    named = [match["name"] for match in CARD.finditer(INDEX)]
    assert named[: len(numbers())] == list(numbers())
    assert {"try_it", "symptoms", "final_exam"} <= set(named)
    for name in named:
        title = re.search("<title>(.+?)</title>", (STATIC / "cards" / f"{name}.svg").read_text())[1]
        assert len(title.split()) >= 5
    assert numbers()["01_why_low_rank"] == 1
    assert title_of(BOOK / "19_capstone.ipynb").startswith("Capstone")


def test_a_longer_chapter_takes_longer_to_read():
    short, long = (
        reading_minutes(BOOK / f"{name}.ipynb") for name in ("final_exam", "12_debugging_the_original")
    )
    assert short < 10 < 40 < long < 80


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("about 20 seconds", 20),
        ("under a minute", 60),
        ("about half a minute", 30),
        ("about a minute and a half", 90),
        ("two to four minutes", 240),
    ],
)
def test_a_stated_time_is_read(words, seconds):
    assert seconds_stated(words) == seconds


def test_a_time_in_other_words_is_refused():
    with pytest.raises(ValueError, match="'a while' does not end in a number"):
        seconds_stated("a while")


@pytest.mark.parametrize("name", list(yaml.safe_load((BOOK / "data" / "run_seconds.json").read_text())))
def test_a_stated_time_covers_what_was_measured(name):
    """Seconds of one core are more than those of a clock on two, and less than twice as many."""
    measured = yaml.safe_load((BOOK / "data" / "run_seconds.json").read_text())[name]
    assert measured <= 2 * seconds_stated(run_time(BOOK / f"{name}.ipynb"))


def shown_commands():
    """The README's commands that come with what they print."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    found = re.findall(
        r"^\$ \.venv/bin/(lora-tutorial predict .+)\n((?:(?!\$|```).+\n)+)", text, re.MULTILINE
    )
    assert len(found) == 2
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), shown_commands())
def test_the_readme_shows_what_its_commands_print(command, printed):
    result = run(*shlex.split(command))
    assert result.returncode == 0, result.stdout
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    for line in printed.splitlines():
        # The last digit of a probability may differ between machines.
        words = re.escape(line.strip())
        assert any(re.fullmatch(re.sub(r"\\\.(\d\d)\d\b", r"\\.\1\\d", words), seen) for seen in lines), lines


def test_the_readme_begins_with_a_picture_and_a_command():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert (
        text.index("hero-light.svg")
        < text.index("lora-tutorial predict sst2")
        < text.index("## Two commands")
    )
    assert text.index("## Two commands") < text.index("550 MB")
    for source in re.findall(r'src(?:set)?="([^"]+)"', text):
        assert Path(ROOT / source).is_file(), source


def test_a_card_without_a_stated_time_is_refused(tmp_path):
    notebook = tmp_path / "x.ipynb"
    notebook.write_text('{"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# X"}]}')
    assert read(notebook)["cells"]
    with pytest.raises(ValueError, match="has no .*Run time"):
        run_time(notebook)
