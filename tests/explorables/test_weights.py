"""One small weight in the browser is what the package's layers make of it."""

import numpy as np
import pytest
import torch
from touch_figures import FACTORS, SQUARE, call, said

from lora_tutorial import LoraConfig, LoraLinear, adapter_arithmetic


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
