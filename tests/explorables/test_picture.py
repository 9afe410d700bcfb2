"""The drawing that a figure shows without scripts: small, named, legible, and what the script shows too."""

import base64
import io
import re

import numpy as np
import pytest
from touch_figures import FIGURES, picture, said

from lora_tutorial.explorables.picture import GREY, INK, cell, digits, heat
from lora_tutorial.pages.style import AXIS, ROLES


@pytest.fixture
def opened(browser):
    """A function that opens one figure as a reader finds it."""
    page = browser.new_page()

    def figure(kind):
        page.set_content(FIGURES[kind].data)
        return page

    yield figure
    page.close()


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def left(page, which):
    """The places of these elements, as their style has them in per cent."""
    return page.locator(which).evaluate_all("all => all.map(el => parseFloat(el.style.left))")


@pytest.mark.parametrize("kind", FIGURES)
def test_a_picture_has_a_name_and_greys_that_both_schemes_can_show(kind):
    page = FIGURES[kind].data
    assert len(re.search(r'<img class="touch-still" alt="([^"]+)"', page)[1].split()) > 8
    assert picture(kind)
    svg = base64.b64decode(re.search(r'base64,([^"]+)"', page)[1]).decode()
    assert re.search(r'^<svg xmlns="[^"]+" viewBox="0 0 \d+ \d+" [^>]*fill="#7a7d82">', svg)
    texts = set(re.findall(r'<(?:text|g)\b[^>]* fill="([^"]+)"', svg))
    assert GREY == AXIS and texts <= {INK}


@pytest.mark.parametrize("kind", FIGURES)
def test_where_only_text_is_shown_it_is_the_sentence(kind):
    assert f'<p class="touch-said">{FIGURES[kind]!r}</p>'.replace("'", "&#x27;") in FIGURES[kind].data


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["memory_bill", "four_bits", "merge_rounding", "rank_slider", "rate_transfer"]
)
def test_the_sentence_is_what_the_script_says_first(opened, kind):
    assert said(opened(kind), kind) == repr(FIGURES[kind])


@pytest.mark.slow
def test_the_sentence_on_orders_is_part_of_what_the_script_says_first(opened):
    told = said(opened("product_orders"), "product_orders")
    size, totals = repr(FIGURES["product_orders"]).split(". ", 1)
    assert told.startswith(size) and told.endswith(totals)


@pytest.mark.slow
def test_the_bar_has_the_scripts_parts(opened):
    bar = opened("memory_bill").locator(".touch-bar span")
    shown = bar.evaluate_all("all => all.map(el => parseFloat(el.style.width))")
    drawn = [float(part.get("width")) / 4.38 for _, part in picture("memory_bill")]
    np.testing.assert_allclose(drawn, shown, atol=0.01)


@pytest.mark.slow
def test_the_levels_lie_where_the_script_has_them(opened):
    page = opened("four_bits")
    drawn = [
        100 * (float(el.get("cx") or numbers(el.get("d"))[0]) - 50) / 388 for _, el in picture("four_bits")
    ]
    np.testing.assert_allclose(drawn, left(page, ".touch-lines i"), atol=0.01)


@pytest.mark.slow
def test_the_squares_are_as_full_as_the_scripts(opened):
    squares = opened("merge_rounding").locator(".touch-grid i")
    shown = squares.evaluate_all("all => all.map(el => [el.style.background, el.className])")
    full = [numbers(colour)[3] if colour.startswith("rgba") else 1 for colour, _ in shown]
    drawn = picture("merge_rounding")
    np.testing.assert_allclose([float(part) for part, _ in drawn], full, atol=0.01)
    framed = [name == "much" for _, name in shown]
    assert [el.get("stroke") != GREY for _, el in drawn] == framed and any(framed)


@pytest.mark.slow
def test_the_cells_hold_the_scripts_numbers_after_some_training(opened):
    page = opened("adapter_arithmetic")
    page.click("[data-do=trained]")
    for name in ("W", "update", "sum", "A", "B"):
        cells = page.locator(f"[data-part={name}] > *")
        shown = cells.evaluate_all("all => all.map(el => el.value ?? el.textContent)")
        drawn = [el.text for part, el in picture("adapter_arithmetic") if part == name]
        assert drawn == [text.replace("-", "\u2212") for text in shown]
    moved = page.locator(".moved").count()
    assert f"changes {moved} of 16 entries" in repr(FIGURES["adapter_arithmetic"])


@pytest.mark.slow
def test_the_histogram_is_the_scripts_after_as_many_draws(opened):
    page = opened("draw_seeds")
    for _ in range(2):
        page.click("[data-more='1000']")
    bars = page.locator(".touch-bars i")
    shown = bars.evaluate_all("all => all.map(el => [parseFloat(el.style.height), el.className])")
    counts = np.array([int(part) for part, _ in picture("draw_seeds")])
    assert counts.sum() == 2000
    np.testing.assert_allclose(100 * counts / counts.max(), [height for height, _ in shown], atol=0.01)
    beyond = [el.get("fill") == ROLES["lora"] for _, el in picture("draw_seeds")]
    assert beyond == [name == "beyond" for _, name in shown]


@pytest.mark.slow
def test_the_dots_lie_where_the_script_has_them(opened):
    page = opened("product_orders")
    drawn = [(float(el.get("cx")) - 60) / 3.78 for _, el in picture("product_orders")]
    np.testing.assert_allclose(drawn, left(page, ".touch-orders i"), atol=0.01)
    least = page.locator(".touch-orders i").evaluate_all("all => all.map(el => el.className)")
    assert [el.get("fill") == ROLES["lora"] for _, el in picture("product_orders")] == [
        name == "least" for name in least
    ]


@pytest.mark.slow
def test_the_ellipses_are_the_scripts_once_b_has_moved(opened):
    page = opened("variant_ellipses")
    for name, value in {"b1": "0.6", "b2": "-0.45"}.items():
        page.locator(f"[data-in={name}]").fill(value)
    shown = page.locator(".now").evaluate_all("all => all.map(el => el.getAttribute('d'))")
    rings = [np.array(numbers(d)).reshape(-1, 2) for d in shown]
    drawn = [np.array(numbers(el.get("d"))).reshape(-1, 2) for _, el in picture("variant_ellipses")]
    drawn = [ring - (ring[0] + ring[36]) / 2 for ring in drawn]  # around their middle
    size = np.linalg.norm(drawn[0][0]) / np.linalg.norm(rings[0][0])
    for ring, mine in zip(rings, drawn, strict=True):
        np.testing.assert_allclose(mine / size, ring, atol=0.01)


@pytest.mark.slow
def test_the_tokens_are_as_dark_as_the_scripts(opened):
    chips = opened("loss_by_token").locator("[role=option]")
    shown = chips.evaluate_all("all => all.map(el => [el.textContent, el.style.background])")
    drawn = picture("loss_by_token")
    assert [el.text for _, el in drawn] == [text for text, _ in shown]
    dark = [numbers(colour)[3] for _, colour in shown]
    np.testing.assert_allclose([float(part) for part, _ in drawn], dark, atol=0.01)


@pytest.mark.slow
def test_the_corners_and_the_curve_are_the_scripts(opened):
    from PIL import Image

    page, drawn = opened("rank_slider"), dict(picture("rank_slider"))
    shown = np.array(numbers(page.get_attribute("[data-part=curve]", "d"))).reshape(-1, 2)
    mine = np.array(numbers(drawn["curve"].get("d"))).reshape(-1, 2)
    across = 30 + 222 * (mine[:, 0] - 326) / 182
    down = np.interp(across, shown[:, 0], shown[:, 1])
    assert across[0] == pytest.approx(30, abs=0.1) and across[-1] == pytest.approx(252, abs=0.1)
    np.testing.assert_allclose((141 - mine[:, 1]) / 129, (124 - down) / 116, atol=0.002)
    dot = float(page.get_attribute("[data-part=dot]", "cx"))
    assert (float(drawn["dot"].get("cx")) - 326) / 182 == pytest.approx((dot - 30) / 222, abs=0.001)
    for part in ("whole", "rank"):
        href = drawn[part].get("href"), page.get_attribute(f"[data-part={part}]", "href")
        files = [io.BytesIO(base64.b64decode(uri.split(",")[1])) for uri in href]
        still, live = (np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files)
        assert np.abs(still - live).max() <= 18  # half of one of its seven steps
        assert still.std() > 3


@pytest.mark.slow
def test_a_reader_without_scripts_sees_the_picture_and_no_slider(browser):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    page = context.new_page()
    for kind, figure in FIGURES.items():
        page.set_content(figure.data)
        assert page.locator("img.touch-still").is_visible() and page.locator(".touch-said").is_visible()
        box = page.locator("img.touch-still").bounding_box()
        assert 300 < box["width"] <= 390 and box["height"] > 25
        assert page.locator("input, select, button, output").count() == 0
        assert page.inner_text(".touch-said") == repr(figure) and kind
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", FIGURES)
def test_a_script_that_runs_after_the_page_finds_its_figure(opened, kind, alone):
    """A notebook inserts the HTML first: then it runs a copy of each script in place, or its text alone."""
    page = opened(kind)
    page.evaluate(
        """([html, alone]) => {
          document.body.innerHTML = html + html;
          for (const script of document.querySelectorAll("script")) {
            if (alone) {
              if (!script.type) (0, eval)(script.textContent);
              continue;
            }
            const copy = document.createElement("script");
            for (const { name, value } of script.attributes) copy.setAttribute(name, value);
            copy.textContent = script.textContent;
            script.replaceWith(copy);
          }
        }""",
        [FIGURES[kind].data, alone],
    )
    assert page.locator(".touch-live output").all_inner_texts()[0]
    assert len(set(page.locator(".touch-live output").all_inner_texts())) == 1
    assert page.locator(".touch-live").count() == 2 == page.locator(".touch[data-ready]").count()


@pytest.mark.slow
def test_a_script_takes_the_pictures_place_and_paper_shows_it_again(opened):
    page = opened("memory_bill")
    assert not page.locator(".touch-still").is_visible() and page.locator("output").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".touch-still").is_visible() and not page.locator(".touch-live").is_visible()


@pytest.mark.parametrize(
    ("value", "count", "told"),
    [(0.016123, 2, "0.016"), (-1.5, 3, "\u22121.5"), (0, 2, "0"), (-0.0, 2, "0"), (99.96, 3, "100")],
)
def test_a_number_has_so_many_digits_and_a_proper_sign(value, count, told):
    assert digits(value, count) == told


def test_a_cells_colour_is_a_share_on_white():
    assert (
        cell("#D55E00", 0) == "#ffffff"
        and cell("#D55E00", 1) == "#d55e00"
        and cell("#000000", 0.2) == "#cccccc"
    )


def test_a_heat_map_of_an_odd_side_opens_as_a_picture():
    from PIL import Image

    values = np.array([[-1.0, 0, 2], [0, 1, 0], [0, 0, 0.5]])
    image = Image.open(io.BytesIO(base64.b64decode(heat(values, 1).split(",")[1]))).convert("RGB")
    assert image.size == (3, 3)
    corners = [image.getpixel((x, 0)) for x in range(3)]
    assert corners == [(0, 114, 178), (245, 245, 245), (230, 159, 0)]
    assert image.getpixel((2, 2))[2] == pytest.approx(245 / 2, abs=18)


@pytest.mark.slow
def test_the_curves_lie_where_the_script_has_them(opened):
    read = "all => all.map(el => [el.dataset.part, el.getAttribute('d') ?? el.getAttribute('cx')])"
    shown = opened("rate_transfer").locator("svg [data-part]").evaluate_all(read)
    drawn = [(part, el.get("d") or el.get("cx")) for part, el in picture("rate_transfer")]
    assert [part for part, _ in shown] == [part for part, _ in drawn] and len(drawn) == 9
    for (_, theirs), (_, mine) in zip(shown, drawn, strict=True):
        np.testing.assert_allclose(numbers(theirs), numbers(mine), atol=0.02)
