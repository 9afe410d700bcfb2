"""The built book in a real browser: silent, self-contained, readable at both widths, usable by keyboard."""

import pytest
from book_pages import listed_pages
from browser import AUDITED, SCHEMES, VIEWS, audit, axe_script, code_classes, opened, predict_all, show, visit
from rules import ROOT, chapters

PAGES = [*listed_pages(), "genindex", "search"]
CHAPTERS = [f"book/{path.stem}" for path in chapters() if path.stem[0].isdigit()]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def axe():
    return axe_script()


@pytest.fixture(scope="module", params=PAGES)
def seen(request, browser, site, axe):
    """One visit to each page; the tests below read what it found."""
    return request.param, visit(browser, site, request.param, axe)


def test_page_says_nothing_in_the_console(seen):
    assert seen[1].errors == []


def test_page_asks_nothing_of_another_host(seen):
    assert seen[1].outside == []


def test_page_fits_the_window(seen):
    assert seen[1].sideways == {view: [] for view in VIEWS}


def test_paper_shows_the_whole_page(seen):
    assert seen[1].cut_off == []


def test_page_has_no_barrier(seen):
    assert seen[1].barriers == {view: [] for view in AUDITED}


def test_a_page_asks_for_each_prediction(seen):
    name, found = seen
    if name in CHAPTERS:
        assert found.predictions == (ROOT / f"{name}.ipynb").read_text().count(":class: predict")


def test_pictures_are_shown_and_their_text_says_what_they_show(seen):
    for picture in seen[1].pictures:
        assert picture["loaded"], picture
        assert len(picture["name"].split()) >= 4, picture


def test_folded_boxes_open_by_keyboard(seen):
    name, found = seen
    assert found.stuck == []
    assert found.boxes or name not in CHAPTERS


def test_copy_buttons_copy(seen):
    name, found = seen
    assert found.copies or name not in CHAPTERS
    for copied, code in found.copies:
        assert copied == code


def test_sliders_move_by_keyboard(seen):
    name, found = seen
    assert found.sliders or name != "book/02_low_rank_math"
    for before, after in found.sliders:
        assert after.strip() and after != before


def test_figures_on_a_phone_can_be_read_and_moved_by_keyboard(browser, site):
    with opened(browser, site, f"{CHAPTERS[0]}.html") as (page, _, _):
        assert not page.query_selector_all(".phone-figure")
        predict_all(page)  # a figure in an answer that is still folded has no width, and takes no focus
        show(page, "light", 390)
        boxes = page.query_selector_all(".phone-figure[tabindex]")
        assert boxes
        for box in boxes:
            # a point of the figure's text is 0.9 pixels
            width = "el => el.firstChild.getBoundingClientRect().width / el.firstChild.viewBox.baseVal.width"
            assert box.evaluate(width) >= 0.88
            box.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function("el => el.scrollLeft > 0", arg=box)


@pytest.mark.parametrize("name", ["book/02_low_rank_math", "book/05_lora_linear"])
def test_a_figure_to_touch_takes_its_still_pictures_place(browser, site, name):
    with opened(browser, site, f"{name}.html") as (page, _, _):
        page.wait_for_selector(".touch[data-ready] .touch-live", state="attached")
        shown = "el => getComputedStyle(el).display"
        stills = page.query_selector_all(".touch-still, .touch-said")
        assert stills and {still.evaluate(shown) for still in stills} == {"none"}
        page.emulate_media(media="print")
        assert {still.evaluate(shown) for still in stills} == {"block"}


def focus_by_tab(page, selector):
    """Press Tab until the focus is on what `selector` names, at most twelve times."""
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"Tab does not come to {selector}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_self_checks_explain_and_confirm_by_keyboard(browser, site, axe, scheme):
    with opened(browser, site, "book/02_low_rank_math.html#check-yourself", scheme) as (page, errors, _):
        count, pick, *_ = page.query_selector_all(".self-check")

        def said(check):
            return check.query_selector("[role=status]").inner_text()

        focus_by_tab(page, ".self-check input[type=text]")
        page.keyboard.type("448")
        page.keyboard.press("Enter")
        assert said(count).startswith("Not yet. That is what is stored.")
        page.keyboard.press("Control+a")
        page.keyboard.type("432")
        assert said(count) == ""
        page.keyboard.press("Enter")
        assert said(count).startswith("Right. It is r (m + n − r)")

        focus_by_tab(page, ".self-check input[type=radio]")
        page.keyboard.press("Enter")
        assert said(pick) == "Choose an answer first."
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert said(pick).startswith("Not yet. The gradient of A contains B")
        page.keyboard.press("ArrowUp")
        focus_by_tab(page, ".self-check button")
        page.keyboard.press("Space")
        assert said(pick).startswith("Right. Its gradient is s G Aᵀ")
        page.evaluate(axe)
        assert audit(page, ".self-check") == [] and errors == []


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_first_page_has_no_barrier_in_any_view(browser, site, axe, scheme, width):
    with opened(browser, site, "book/index.html", scheme=scheme) as (page, _, _):
        show(page, scheme, width)
        page.evaluate(axe)
        assert audit(page) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_colour_of_code_can_be_read(browser, site, html_folder, axe, scheme):
    names = set().union(*(code_classes(path.read_text()) for path in (html_folder / "book").glob("*.html")))
    assert len(names) > 10
    with opened(browser, site, f"{CHAPTERS[0]}.html", scheme=scheme) as (page, _, _):
        page.evaluate(
            """names => { document.querySelector(".cell_input pre").innerHTML =
              names.map(name => `<span class="${name}">${name}</span>`).join(" ") }""",
            sorted(names),
        )
        page.evaluate(axe)
        assert audit(page, ".cell_input:has(pre)", runOnly=["color-contrast"]) == []


def test_search_finds_a_word(browser, site):
    with opened(browser, site, "book/index.html") as (page, errors, outside):
        page.keyboard.press("Control+k")
        page.keyboard.type("NormalFloat")
        page.keyboard.press("Enter")
        page.wait_for_selector("#search-results li a")
        assert "08_nf4" in " ".join(
            link.get_attribute("href") for link in page.query_selector_all("#search-results li a")
        )
        excerpts = page.wait_for_function(
            """() => { const found = [...document.querySelectorAll("#search-results li p.context")];
              return found.length > 2 && found.map(el => el.textContent); }"""
        ).json_value()
        toolbar = ("Colab", "Open issue", "Contents", ".ipynb")
        assert not [text for text in excerpts if any(word in text for word in toolbar)]
        assert (errors, outside) == ([], [])


def test_an_outside_request_and_an_error_are_noticed(browser, site):
    with opened(browser, site, "search.html") as (page, errors, outside):
        page.evaluate("""() => { const image = new Image(); image.src = "http://127.0.0.2:9/x.png";
          document.body.append(image); setTimeout(() => { throw new Error("on purpose") }, 0);
          document.body.style.width = "5000px"; }""")
        page.wait_for_timeout(200)
        assert outside == ["http://127.0.0.2:9/x.png"]
        assert any("on purpose" in error for error in errors)
