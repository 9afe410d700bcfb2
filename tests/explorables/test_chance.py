"""Draws of seeds: the same numbers in Python and in the page, and as often apart as theory says."""

import re

import numpy as np
import pytest
from scipy.stats import kstest, norm
from touch_figures import MEASURED, call, said

from lora_tutorial import draw_seeds, seed_gaps

SPREAD = np.std(MEASURED["a task"][0], ddof=1)


@pytest.mark.parametrize(("seeds", "gap", "rows_error"), [(1, 0, 0), (3, 0.5, 0), (20, 0, 4.2)])
def test_differences_are_normal_with_the_error_of_two_means(seeds, gap, rows_error):
    found = seed_gaps(4000, seeds, 1.5, gap, rows_error)
    error = np.hypot(1.5 * np.sqrt(2 / seeds), rows_error)
    assert kstest((found - gap) / error, "norm").pvalue > 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05  # no draw tells of the next


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "gap", "rows_error"), [(1, 0, 0), (3, 0.5, 0), (20, 0, 4.2)])
def test_the_page_draws_the_numbers_that_python_draws(page, seeds, gap, rows_error):
    expected = seed_gaps(3000, seeds, 1.5, gap, rows_error)
    found = call(page, "draw_seeds", "gaps", 3000, seeds, 1.5, gap, rows_error)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_the_sentence_counts_how_often_equal_methods_seem_apart(page):
    figure = "[data-kind=draw_seeds]"
    for name, value in {"seeds": 3, "gap": 0, "size": 1}.items():
        page.locator(f"{figure} [data-in={name}]").fill(str(value))
    page.click(f"{figure} [data-more='0']")
    for more in (1000, 1000):
        page.focus(f"{figure} [data-more='{more}']")
        page.keyboard.press("Enter")
    count = int((np.abs(seed_gaps(2000, 3, round(SPREAD, 4))) >= 1).sum())
    assert f"In {count:,} of 2,000 draws" in said(page, "draw_seeds")
    theory = 2 * norm.sf(1 / (SPREAD * np.sqrt(2 / 3)))
    assert abs(count / 2000 - theory) < 0.03
    page.select_option(f"{figure} [data-in=rows]", "own")
    share = np.mean(MEASURED["a task"][0]) / 100
    error = 100 * np.sqrt(2 * share * (1 - share) / MEASURED["a task"][1])
    more_often = int((np.abs(seed_gaps(2000, 3, round(SPREAD, 4), 0, round(error, 4))) >= 1).sum())
    assert more_often > count
    assert f"In {more_often:,} of 2,000 draws" in said(page, "draw_seeds")
    page.select_option(f"{figure} [data-in=kind]", "another")
    assert page.input_value(f"{figure} [data-in=rows]") == "same"  # its score is no accuracy
    page.locator(f"{figure} [data-in=gap]").fill("0.1")
    wrong = np.mean(seed_gaps(2000, 3, 0.1, 0.1) < 0)
    shown = re.search(r"in ([\d.]+) % the worse method is ahead", said(page, "draw_seeds"))[1]
    assert float(shown) == pytest.approx(100 * wrong, abs=0.051)


def test_the_sentence_without_scripts_is_counted_too():
    share = np.mean(np.abs(seed_gaps(2000, 5, round(SPREAD, 4))) >= 2)
    page = draw_seeds(MEASURED, seeds=5, gap=2).data
    assert f"in {100 * share:.0f}\u00a0% of 2,000 draws their means are at least 2 points apart" in page


@pytest.mark.parametrize(
    ("measured", "more", "message"),
    [
        ({}, {}, "needs measured scores"),
        (MEASURED, {"seeds": 0}, "1 to 20 seeds"),
        (MEASURED, {"gap": 9}, "0.1 to 5"),
        ({"one": ([1.0], 10)}, {}, "one: a spread needs two"),
        ({"same": ([1.0, 1.0], 10)}, {}, "same: a spread needs two"),
        ({"wide": ([1.0, 101.0], 10)}, {}, "accuracies"),
        ({"none": ([1.0, 2.0], 0)}, {}, "accuracies"),
    ],
)
def test_what_has_no_spread_is_refused(measured, more, message):
    with pytest.raises(ValueError, match=message):
        draw_seeds(measured, **more)
