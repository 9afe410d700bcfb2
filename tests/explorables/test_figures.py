"""What holds for every figure to touch: small, alone, said in words too, without a barrier."""

import re

import pytest
from browser import SIDEWAYS, audit, axe_script, on_paper
from touch_figures import FIGURES, WEIGHTS, said

from lora_tutorial import four_bits


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_small_asks_for_nothing_and_says_something_without_scripts(name):
    page = FIGURES[name].data
    assert len(page.encode()) < 60_000
    assert not re.search(r"https?:|\bsrc=(?!\"data:image/svg)|\bimport\b|fetch\(|@[A-Z]+@", page)
    assert len(re.search(r'<p class="touch-said">(.*?)</p>', page)[1].split()) > 4


def test_text_in_a_name_is_text():
    assert "<b>" not in four_bits(WEIGHTS, "a <b>bold</b> name").data.replace("<b>${name}</b>", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_works_by_keyboard(page, kind):
    figure = page.query_selector(f"[data-kind={kind}]")
    controls = figure.query_selector_all("input[type=range], input[type=checkbox], select, button")
    assert controls
    for slider in figure.query_selector_all("input[type=range]"):
        before = said(page, kind)
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert said(page, kind) != before


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_no_barrier_and_fit_a_phone(page, scheme):
    page.set_viewport_size({"width": 1280, "height": 900})
    colours = {"light": "color: #1b1f24; background: #ffffff", "dark": "color: #e3e6ea; background: #14171c"}
    page.evaluate("style => document.body.setAttribute('style', style)", colours[scheme])
    page.evaluate(axe_script())
    assert audit(page, "article") == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate(SIDEWAYS) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", FIGURES)
def test_a_slider_shows_its_value_in_its_label(page, kind):
    figure = page.query_selector(f"[data-kind={kind}]")
    for slider in figure.query_selector_all("input[type=range]"):
        label = slider.evaluate_handle("slider => slider.closest('label')").as_element()
        for key in ("Home", "End"):
            slider.press(key)
            told = slider.get_attribute("aria-valuetext") or f"{float(slider.input_value()):.3g}"
            assert label.inner_text().split(": ")[-1].strip() == told.replace("-", "\u2212")


@pytest.mark.slow
def test_what_is_under_the_pointer_does_not_look_pressed(page):
    mask = page.locator("[data-kind=loss_by_token] [data-do=mask]")
    look = (
        "button => [getComputedStyle(button).backgroundColor, getComputedStyle(button, '::before').content]"
    )
    assert mask.get_attribute("aria-pressed") == "true"
    on = mask.evaluate(look)
    mask.click()  # and the pointer stays
    assert mask.get_attribute("aria-pressed") == "false"
    off = mask.evaluate(look)
    mask.click()
    assert "\u2713" in on[1] and off == ["rgba(0, 0, 0, 0)", "none"] and on[0] != off[0]


@pytest.mark.slow
def test_paper_shows_the_whole_figure(page):
    assert on_paper(page) == []
