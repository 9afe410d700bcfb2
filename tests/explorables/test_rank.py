"""The interactive figure: right errors, one small page that is the same everywhere and asks for nothing."""

import base64
import json
import re

import numpy as np
import pytest
from touch_figures import SEARCHES, call, said

from lora_tutorial.explorables.rank import good_rates, rank_errors, rank_slider, rate_transfer

NUMBERS = np.random.default_rng(0)
MATRIX = NUMBERS.normal(size=(96, 80))


def data_of(page):
    return json.loads(re.search(r"d = (\{.*?\});", page.data).group(1))


def unpack(data, part):
    return np.frombuffer(base64.b64decode(data[part]), dtype=np.int8).reshape(-1, data["side"]).astype(float)


def test_rank_errors_are_those_of_the_truncated_svd():
    U, S, Vh = np.linalg.svd(MATRIX, full_matrices=False)
    errors = rank_errors(MATRIX)
    assert len(errors) == 81 and errors[0] == 1 and errors[80] == 0
    for r in (1, 7, 40, 79):
        rest = np.linalg.norm(MATRIX - (U[:, :r] * S[:r]) @ Vh[:r]) / np.linalg.norm(MATRIX)
        assert errors[r] == pytest.approx(rest, rel=1e-9)


@pytest.mark.parametrize("r", [3, 80])
def test_the_packed_vectors_multiply_to_the_corner_of_the_approximation(r):
    data = data_of(rank_slider(MATRIX, "a matrix"))
    drawn = (unpack(data, "left")[:r].T * data["scale"][:r]) @ unpack(data, "right")[:r]
    U, S, Vh = np.linalg.svd(MATRIX, full_matrices=False)
    corner = ((U[:, :r] * S[:r]) @ Vh[:r])[:36, :36]
    assert np.linalg.norm(drawn - corner) < 0.02 * np.linalg.norm(corner)
    assert (data["out"], data["in"]) == (96, 80)


def test_the_page_does_not_depend_on_the_signs_an_svd_happens_to_choose(monkeypatch):
    page, svd = rank_slider(MATRIX, "a matrix").data, np.linalg.svd

    def flipped(matrix, full_matrices=True, compute_uv=True):
        if not compute_uv:
            return svd(matrix, compute_uv=False)
        U, S, Vh = svd(matrix, full_matrices=full_matrices)
        return -U, S, -Vh

    monkeypatch.setattr(np.linalg, "svd", flipped)
    assert rank_slider(MATRIX, "a matrix").data == page


def test_the_page_is_small_asks_for_nothing_and_can_be_operated_by_keyboard():
    page = rank_slider(NUMBERS.normal(size=(384, 384)), "a matrix", r=5).data
    assert len(page) < 60_000
    assert not re.search(r"https?:|//cdn|\bsrc=(?!\"data:image/svg)|\bimport\b|fetch\(|@[A-Z]+@", page)
    assert '<label>Rank r <input type="range" min="1" max="384" step="1" value="5"></label>' in page
    assert 'aria-live="polite"' in page


@pytest.mark.parametrize(
    ("matrix", "r", "message"),
    [
        (np.ones((35, 80)), 8, r"\(35, 80\)"),
        (np.ones(80), 8, r"\(80,\)"),
        (MATRIX, 81, "81"),
        (MATRIX, 0, "1 and 80"),
    ],
)
def test_a_matrix_too_small_or_a_rank_it_cannot_have_is_refused(matrix, r, message):
    with pytest.raises(ValueError, match=message):
        rank_slider(matrix, "a matrix", r=r)


def test_the_good_stretch_reaches_as_far_as_no_score_falls_below():
    scores = {1: 70.0, 2: 79.0, 4: 78.6, 8: 80.0, 16: 78.4, 32: 79.9}
    assert good_rates(scores, 1.5) == (2, 8)
    assert good_rates(scores, 2.0) == (2, 32)
    assert good_rates(scores, 0.0) == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("power", [-0.5, 0.0, 0.3, 1.0])
def test_the_page_converts_rates_as_the_rule_says(page, power):
    found = call(page, "rate_transfer", "converted", power)
    best = {1: 5e-4, 8: 5e-4, 64: 1e-3}
    ends = {r: good_rates(scores, 1.5) for r, scores in SEARCHES.items()}
    by = {r: (r / 8) ** power for r in SEARCHES}
    assert found["best"] == pytest.approx([best[r] / by[r] for r in SEARCHES])
    assert found["low"] == pytest.approx(max(ends[r][0] / by[r] for r in SEARCHES))
    assert found["high"] == pytest.approx(min(ends[r][1] / by[r] for r in SEARCHES))


@pytest.mark.slow
def test_a_reader_finds_the_rule_under_which_the_ranks_agree(page):
    slider = page.locator("[data-kind=rate_transfer] [data-in=power]")
    slider.fill("10")
    assert said(page, "rate_transfer").endswith("a factor of 32.0 apart. Good at every rank: none.")
    slider.fill("0")
    told = said(page, "rate_transfer")
    assert "to the power of 0.0" in told and told.endswith("Good at every rank: none.")
    slider.fill("2")
    told = said(page, "rate_transfer")
    assert "rank 1 7.6e\u22124, rank 8 5.0e\u22124, rank 64 6.6e\u22124, a factor of 1.5 apart" in told
    assert told.endswith("Good at every rank: from 6.6e\u22124 to 7.6e\u22124.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"curves": {1: SEARCHES[1], 8: SEARCHES[8]}}, "each of three or four ranks"),
        ({"curves": SEARCHES, "at": 4}, "rank 4 too"),
        ({"curves": SEARCHES | {8: {1e-3: 70.0}}}, "two rates or more"),
        ({"curves": SEARCHES, "power": 0.25}, "not a tenth"),
        ({"curves": SEARCHES, "power": 1.1}, "not a tenth"),
    ],
)
def test_searches_that_cannot_be_shown_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        rate_transfer(**given, slack=1.0)
