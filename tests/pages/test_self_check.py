"""Self-checks: a form for each question, an explanation for each answer, bad input refused."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lora_tutorial.pages.self_check import choice, number

OPTIONS = {"`W` is frozen": "Yes: only A and B train.", "`B` is frozen": "B trains; it only starts at zero."}


def page_of(check):
    return check._repr_html_()


def asked(question="What is frozen?", options=OPTIONS, right="`W` is frozen"):
    return choice(question, options, right)


def counted(**changes):
    settings = {
        "question": "How many numbers do A and B hold?",
        "answer": 8 * (768 + 768),
        "wrong": {8 * 768: "That is A alone.", 768 * 768: "That is the whole matrix."},
        "why": "r rows of A and r columns of B.",
        "hint": "Count both factors.",
    }
    return number(**(settings | changes))


class Tree(HTMLParser):
    """The elements of a page, each with its attributes; fails where a tag is closed out of turn."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "input":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.mark.parametrize("check", [asked(), counted()], ids=["choice", "number"])
def test_form_is_native_silent_and_asks_for_nothing(check):
    page = page_of(check)
    tree = Tree(page)
    assert len(tree.all("fieldset")) == len(tree.all("legend")) == len(tree.all("button")) == 1
    assert len(tree.all("label")) == len(tree.all("input"))  # each field in a label of its own
    assert [p["role"] for p in tree.all("p")] == ["status"]
    assert not re.search(r"https?:|//cdn|\bsrc=|\bimport\b|fetch\(|@[A-Z]+@|\bid=", page)
    assert len(page) < 8_000


def test_every_answer_is_explained_without_javascript_and_one_is_right():
    for check, answers in ((asked(), 2), (counted(), 4)):
        folded = re.search(r"<details>(.*)</details>", page_of(check), re.DOTALL).group(1)
        items = re.findall(r"<li .*?</li>", folded)
        assert len(items) == answers
        assert [" data-right" in item for item in items] == [True] + [False] * (answers - 1)
        assert [" (right)" in re.sub(r"<[^>]+>", "", item) for item in items] == [True] + [False] * (
            answers - 1
        )
    tree = Tree(page_of(asked(right="`B` is frozen")))
    assert [field["value"] for field in tree.all("input")] == [item["data-value"] for item in tree.all("li")]
    assert ["data-right" in item for item in tree.all("li")] == [False, True]


def test_without_javascript_there_is_no_button_that_does_nothing():
    assert "hidden" in Tree(page_of(asked())).all("button")[0]
    assert "open" not in Tree(page_of(asked())).all("details")[0]


def test_plain_text_asks_and_does_not_tell():
    assert repr(asked()) == "Check yourself: What is frozen?\n  - `W` is frozen\n  - `B` is frozen"
    assert repr(counted(unit="MB")) == "Check yourself: How many numbers do A and B hold?\n  (a number, MB)"


def test_options_of_one_question_form_a_group_and_no_two_questions_share_it():
    def names(check):
        return {field["name"] for field in Tree(page_of(check)).all("input")}

    checks = [asked(), asked("What trains?"), counted(), counted(answer=12_289)]
    assert [len(names(check)) for check in checks] == [1] * 4
    assert len(set().union(*map(names, checks))) == 4
    assert page_of(asked()) == page_of(asked())


def test_text_is_escaped_and_backticks_are_code():
    options = {"<b>a & b</b>": 'It "is" <i>not</i>.', "c": "`x < y`, and so on."}
    page = page_of(choice("Is `a<b>` right?", options, right="c"))
    assert "<legend>Is <code>a&lt;b&gt;</code> right?</legend>" in page
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in page and "<i>" not in page
    assert "<code>x &lt; y</code>, and so on." in page


def test_numbers_keep_their_mistakes_and_how_near_one_must_come():
    items = Tree(page_of(counted(tolerance=5.0))).all("li")
    assert [item["data-value"] for item in items] == ["12288", "6144", "589824", "other"]
    assert [item.get("data-within") for item in items] == ["5", "5", "5", None]
    assert "12,288" in page_of(counted()) and "0.333333 GB" in page_of(counted(answer=1 / 3, unit="GB"))
    assert page_of(counted(answer=np.int64(12_288))) == page_of(counted())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: asked(right="A is frozen"), ValueError, "right must be one of .*got 'A is frozen'"),
        (lambda: asked(options={"`W` is frozen": "Yes."}), ValueError, "two texts or more"),
        (lambda: asked(options={}), ValueError, "two texts or more"),
        (lambda: asked(options=OPTIONS | {" ": "No."}), ValueError, "none of them empty"),
        (
            lambda: asked(options=OPTIONS | {"A is frozen": " "}),
            ValueError,
            "option 'A is frozen' needs a text",
        ),
        (
            lambda: asked(options=OPTIONS | {"A is frozen": None}),
            ValueError,
            "option 'A is frozen' needs a text",
        ),
        (lambda: asked(options=list(OPTIONS)), TypeError, "explanation; got list"),
        (lambda: asked(question=""), ValueError, "question needs a text"),
        (lambda: counted(why=""), ValueError, "why needs a text"),
        (lambda: counted(hint=""), ValueError, "hint needs a text"),
        (lambda: counted(wrong={7: ""}), ValueError, r"wrong\[7\] needs a text"),
        (lambda: counted(answer=float("nan")), ValueError, "finite numbers"),
        (lambda: counted(tolerance=-1), ValueError, "not negative; got -1"),
        (lambda: counted(wrong={12_288: "Twice."}), ValueError, "12288 and 12288 cannot be told apart"),
        (lambda: counted(tolerance=3_100), ValueError, "cannot be told apart at a tolerance of 3100"),
    ],
)
def test_a_check_that_could_not_answer_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
