"""One small weight in the browser is what the package's layers make of it."""

import numpy as np
import pytest
import torch
from touch_figures import DIRECTION, FACTORS, SQUARE, TWO, call, said

from lora_tutorial import (
    VARIANTS,
    LoraConfig,
    LoraLinear,
    PissaLinear,
    adapter_arithmetic,
    inject_variant,
    variant_ellipses,
)


def layer_of(W, A, B, alpha):
    """A `LoraLinear` with these numbers."""
    W, A, B = (torch.tensor(part, dtype=torch.float64) for part in (W, A, B))
    linear = torch.nn.Linear(*W.T.shape, bias=False, dtype=torch.float64)
    linear.weight = torch.nn.Parameter(W)
    layer = LoraLinear.from_linear(linear, LoraConfig(r=len(A), lora_alpha=alpha))
    with torch.no_grad():
        layer.lora_A.copy_(A)
        layer.lora_B.copy_(B)
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 4, 16])
def test_the_sum_in_the_page_is_a_merged_layers_weight(page, alpha):
    A, B = (np.array(part, dtype=float) for part in FACTORS)
    for r in (1, 2):
        layer = layer_of(SQUARE, A[:r], B[:, :r], alpha)
        found = call(page, "adapter_arithmetic", "sum", SQUARE, A.tolist(), B.tolist(), alpha, r)
        assert found["s"] == layer.scaling
        np.testing.assert_allclose(found["update"], layer.lora_delta().detach(), atol=1e-12)
        rank = np.linalg.matrix_rank(found["update"])
        assert call(page, "adapter_arithmetic", "rank", found["update"]) == rank == r
        layer.merge()
        np.testing.assert_allclose(found["sum"], layer.weight.detach(), atol=1e-12)


@pytest.mark.slow
def test_a_rank_is_found_by_elimination(page):
    numbers = np.random.default_rng(0)
    for r in range(5):
        matrix = numbers.normal(size=(4, r)) @ numbers.normal(size=(r, 6))
        assert call(page, "adapter_arithmetic", "rank", matrix.tolist()) == r


@pytest.mark.slow
def test_an_adapter_opens_at_zero_and_doubling_alpha_doubles_what_it_adds(page):
    figure = "[data-kind=adapter_arithmetic]"

    def press(name):
        page.focus(f"{figure} [data-do={name}]")
        page.keyboard.press("Enter")

    press("zero")
    assert "The update is zero, because B is" in said(page, "adapter_arithmetic")
    page.locator(f"{figure} [data-in=alpha]").fill("4")
    press("trained")
    assert said(page, "adapter_arithmetic").endswith("rank 2 and changes 11 of 16 entries, by 2 at most.")
    press("double")
    assert said(page, "adapter_arithmetic").endswith("rank 2 and changes 11 of 16 entries, by 4 at most.")
    page.get_by_label("B, row 1, column 1").fill("0")
    assert "8 of 16" in said(page, "adapter_arithmetic")
    page.select_option(f"{figure} [data-in=rank]", "1")
    assert said(page, "adapter_arithmetic").startswith("s = α / r = 8 / 1 = 8. The update has rank 1")
    assert page.get_by_label("A, row 2, column 1").is_disabled()


@pytest.mark.slow
def test_the_largest_numbers_fit_their_cells(page):
    figure = "[data-kind=adapter_arithmetic]"
    page.locator(f"{figure} [data-in=alpha]").fill("16")
    page.select_option(f"{figure} [data-in=rank]", "1")
    for name in ("B, row 1, column 1", "A, row 1, column 1"):
        page.get_by_label(name).fill("-123.45" if name[0] == "B" else "8.95")
    assert page.get_by_label("B, row 1, column 1").input_value() == "-9"
    cells = "cells => cells.filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.textContent)"
    assert page.locator(f"{figure} b").evaluate_all(cells) == []
    assert "\u22121288.8" in page.inner_text(f"{figure} [data-part=update]")


@pytest.mark.slow
def test_an_ellipse_that_leaves_its_frame_is_called_off_scale(page):
    figure = "[data-kind=variant_ellipses]"
    for name, value in {"b1": "1", "b2": "1", "r": "0", "alpha": "1"}.items():
        page.locator(f"{figure} [data-in={name}]").fill(value)
    assert "off scale" not in said(page, "variant_ellipses")
    page.locator(f"{figure} [data-in=alpha]").fill("16")
    assert "off scale" in said(page, "variant_ellipses").split("; ")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": [[1, 2, 3]]}, r"\(1, 3\)"),
        ({"B": [[1, 2]] * 3}, r"\(3, 2\)"),
        ({"W": [[1.0] * 7] * 4}, "at most 6"),
        ({"W": [[np.nan] * 4] * 4}, "finite"),
        ({"alpha": 0}, "0.5 to 8"),
    ],
)
def test_factors_that_do_not_fit_are_refused(change, message):
    given = {"W": SQUARE, "A": FACTORS[0], "B": FACTORS[1]} | change
    with pytest.raises(ValueError, match=message):
        adapter_arithmetic(**given)


def adapted(variant, alpha, r, moved):
    """What the package makes of the two by two weight, as the corner of a layer that can have this rank.

    One of the layer's r directions lies in the corner. For PiSSA the rest of the layer has r - 1 singular
    values between the corner's two, and smaller ones, so that its adapter takes the corner's first.
    """
    corner, side = torch.tensor(TWO, dtype=torch.float64), 2 * r + 2
    first, second = torch.linalg.svdvals(corner).tolist()
    others = torch.full((side - 2,), second / 2, dtype=torch.float64)
    others[: r - 1] = (first + second) / 2
    linear = torch.nn.Linear(side, side, bias=False, dtype=torch.float64)
    linear.weight = torch.nn.Parameter(torch.block_diag(corner, torch.diag(others)))
    model = torch.nn.Sequential(linear)
    layer = inject_variant(model, LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"]), variant)[0]
    with torch.no_grad():
        mine = 0
        if isinstance(layer, PissaLinear):
            mine = int(layer.lora_B[:2].norm(dim=0).argmax())  # which of its directions is the corner's
            sign = layer.lora_B[0, mine].sign()
            layer.lora_B[:, mine] *= sign
            layer.lora_A[mine] *= sign
        else:
            layer.lora_A.zero_()[0, :2] = torch.tensor(DIRECTION[0], dtype=torch.float64)
        frozen = layer.weight[:2, :2].clone()
        layer.lora_B[:2, mine] += torch.tensor(moved, dtype=torch.float64)
        return layer.scaling, frozen, (layer.weight + layer.lora_delta())[:2, :2]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "loraplus"])
def test_each_variant_in_the_page_is_the_packages_layer(page, variant):
    for alpha, r in ((4, 4), (16, 1), (3, 16)):
        for moved in ((0, 0), (0.6, -0.45), (-1, 1)):
            scaling, frozen, weight = adapted(variant, alpha, r, moved)
            found = call(page, "variant_ellipses", "adapt", variant, alpha, r, moved)
            assert found["s"] == pytest.approx(scaling)
            np.testing.assert_allclose(found["frozen"], frozen, atol=1e-5)
            np.testing.assert_allclose(found["weight"], weight, atol=1e-5)
            update = (weight - torch.tensor(TWO, dtype=torch.float64)).numpy()
            rank = np.linalg.matrix_rank(update, tol=1e-6)
            assert call(page, "variant_ellipses", "rank", update.tolist()) == rank


@pytest.mark.slow
def test_the_box_around_doras_ellipse_stays_and_all_four_start_alike(page):
    figure = "[data-kind=variant_ellipses]"
    page.click(f"{figure} [data-do=start]")
    assert said(page, "variant_ellipses").count("unchanged") == 4
    page.locator(f"{figure} [data-in=b1]").fill("0.6")
    page.locator(f"{figure} [data-in=b2]").fill("-0.5")
    assert "DoRA update" in said(page, "variant_ellipses")
    sides = """([kind, which]) => [...document.querySelectorAll(`[data-kind=${kind}] svg`)].map(svg => {
      const drawn = svg.querySelector(which).getBBox();
      return [drawn.width, drawn.height];
    })"""
    boxes, ellipses = (page.evaluate(sides, ["variant_ellipses", which]) for which in (".box", ".now"))
    near = [np.allclose(box, ellipse, rtol=0.01) for box, ellipse in zip(boxes, ellipses, strict=True)]
    assert near == [False, False, True, False]  # LoRA, rsLoRA, DoRA, PiSSA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": SQUARE}, r"\(4, 4\)"),
        ({"A": [1, 2]}, r"\(2,\)"),
        ({"W": [[1, 0], [0, 0]]}, "rows are not zero"),
        ({"W": [[1, 0], [0, 1]]}, "singular values differ"),
        ({"W": [[1, np.nan], [0, 1]]}, "finite"),
        ({"alpha": 0}, "from 1 to 16"),
        ({"r": 3}, "r one of"),
    ],
)
def test_a_weight_that_makes_no_such_ellipse_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        variant_ellipses(**({"W": TWO, "A": DIRECTION} | change))
