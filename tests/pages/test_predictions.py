"""A box that says "Predict first" asks before the page tells; words of the glossary have cards."""

from contextlib import contextmanager

import pytest
from browser import opened

pytestmark = pytest.mark.slow

PAGE = "book/02_low_rank_math.html"
#: How tall what a box folds away is on the page, and what it says to a reader.
FOLDED = """place => {
  const answer = document.querySelectorAll(".prediction-answer")[place];
  return answer.checkVisibility({contentVisibilityAuto: true}) && answer.clientHeight > 60;
}"""
CHILD = """place => document.querySelectorAll(".prediction-answer")[place].firstElementChild
  .checkVisibility({contentVisibilityAuto: true})"""


@contextmanager
def fresh(browser, site, page_name=PAGE):
    """The page as a reader has it who was never here."""
    with opened(browser, site, page_name) as (page, errors, outside):
        page.evaluate("localStorage.clear()")
        page.reload()
        yield page
        assert (errors, outside) == ([], [])
        page.evaluate("localStorage.clear()")


def shown(page, place):
    return page.evaluate(CHILD, place) and page.evaluate(FOLDED, place)


def test_an_answer_unfolds_when_a_prediction_is_typed(browser, site):
    with fresh(browser, site) as page:
        form = page.query_selector_all(".prediction")[0]
        assert not shown(page, 0)
        field = form.query_selector("input[type=text]")
        field.focus()
        page.keyboard.press("Enter")
        assert not shown(page, 0)
        assert "Type a prediction" in form.query_selector("[role=status]").inner_text()
        page.keyboard.type("2, and 4")
        page.keyboard.press("Enter")
        assert shown(page, 0) and not shown(page, 1)
        told = page.query_selector_all(".predicted")[0]
        assert "You predicted: 2, and 4" in told.inner_text()
        assert told.evaluate("el => document.activeElement === el")
        page.reload()
        assert shown(page, 0)  # it is remembered
        page.query_selector_all(".predicted button")[0].click()
        assert not shown(page, 0)


def test_a_question_that_names_its_choices_lets_one_choose(browser, site):
    with fresh(browser, site) as page:
        form = page.query_selector_all(".prediction")[1]
        assert [field.get_attribute("value") for field in form.query_selector_all("input")] == [
            "about 0.1",
            "about 0.5",
            "about 0.9",
        ]
        form.query_selector("input").focus()
        page.keyboard.press("Enter")
        assert not shown(page, 1) and "Choose one" in form.query_selector("[role=status]").inner_text()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert shown(page, 1)
        assert "0.5" in page.query_selector_all(".predicted")[1].inner_text()


@pytest.mark.parametrize(
    ("name", "place", "choices"),
    [
        ("01_why_low_rank", 0, ["much worse", "a little worse", "about as well"]),
        ("01_why_low_rank", 3, ["300", "30", "3", "less than 3"]),
        ("07_merging", 0, ["none", "a handful", "a few per cent"]),
        ("09_qlora", 0, ["about 60 MiB", "about 120 MiB", "about 190 MiB"]),
        ("09_qlora", 1, ["none", "two", "five"]),
        ("09_qlora", 2, ["an error", "a warning", "nothing"]),
        ("12_debugging_the_original", 1, None),
    ],
)
def test_choices_are_those_of_the_question(browser, site, name, place, choices):
    with fresh(browser, site, f"book/{name}.html") as page:
        fields = page.query_selector_all(".prediction")[place].query_selector_all("input")
        values = [field.get_attribute("value") for field in fields]
        assert values == (choices or [None]), page.query_selector_all(".predict")[place].inner_text()


def test_a_link_into_an_answer_and_a_search_in_the_page_unfold_it(browser, site):
    with fresh(browser, site) as page:
        page.evaluate("document.querySelectorAll('.prediction-answer')[0].lastElementChild.id = 'inside'")
        page.evaluate("location.hash = '#inside'")
        page.wait_for_function("!document.querySelector('.prediction-answer').hasAttribute('hidden')")
        assert shown(page, 0)


def test_no_later_cell_of_a_section_tells_the_answer(browser, site):
    with fresh(browser, site, "book/07_merging.html") as page:
        after = page.eval_on_selector_all(
            ".prediction-answer",
            "all => all.map(el => el.nextElementSibling?.matches('section, .exercise, .solution'))",
        )
        assert len(after) == 4 and set(after) <= {None, True}
        section = page.query_selector(".predict").evaluate_handle("el => el.closest('section')").as_element()
        assert not any(cell.is_visible() for cell in section.query_selector_all(":scope > .cell"))


def test_paper_shows_every_answer(browser, site):
    with fresh(browser, site) as page:
        assert not shown(page, 0)
        page.emulate_media(media="print")
        assert all(shown(page, place) for place in range(len(page.query_selector_all(".prediction-answer"))))
        assert not page.query_selector(".prediction").is_visible()


@pytest.mark.parametrize("name", [PAGE, "book/final_exam.html"])
def test_without_scripts_everything_is_open(browser, site, name):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site}/{name}")
    assert page.query_selector_all(".prediction, .exam-score") == []
    outputs = page.query_selector_all(".cell_output")
    folded = [output for output in outputs if not output.is_visible()]
    assert len(outputs) - len(folded) > 10
    for output in folded:  # checks in a box that needs no script
        box = output.evaluate_handle("el => el.closest('details')").as_element()
        assert box is not None
        box.query_selector("summary").click()
        assert output.is_visible()
    context.close()


def test_a_word_has_a_card_by_mouse_and_keyboard(browser, site):
    with fresh(browser, site) as page:
        link = page.query_selector('article p a[href$="#term-MiniLM"]')
        card = page.query_selector(".term-card")
        assert not card.is_visible()
        link.focus()
        assert card.is_visible() and card.inner_text().startswith("The small encoder that this book trains")
        assert link.get_attribute("aria-describedby") == card.get_attribute("id")
        page.keyboard.press("Escape")
        assert not card.is_visible() and link.get_attribute("aria-describedby") is None
        link.evaluate("el => el.blur()")
        link.hover()
        page.wait_for_selector(".term-card:not([hidden])")
        card.hover()  # the pointer may move onto the card
        page.wait_for_timeout(400)
        assert card.is_visible()
        box, room = card.bounding_box(), page.evaluate("document.documentElement.clientWidth")
        assert box["x"] >= 0 and box["x"] + box["width"] <= room
