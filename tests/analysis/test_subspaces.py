"""Directions, their similarity and the amplification factor, on matrices whose answers one can see."""

import pytest
import torch

from lora_tutorial.analysis.subspaces import (
    amplification,
    directions,
    intruders,
    projected_norm,
    random_similarity,
    similarity_grid,
    truncate,
)

AXES = torch.eye(6, dtype=torch.float64)


def test_directions_are_the_axes_of_a_diagonal_matrix_in_order_of_strength():
    matrix = torch.zeros(4, 6)
    matrix[0, 2], matrix[3, 5] = 1.0, 7.0
    right, left = directions(matrix), directions(matrix, "left")
    assert right.shape == (6, 2) and left.shape == (4, 2) and right.dtype == torch.float64
    assert torch.allclose(right.abs(), AXES[:, [5, 2]])
    assert torch.allclose(left.abs(), torch.eye(4, dtype=torch.float64)[:, [3, 0]])


def test_noise_of_the_last_digit_is_no_direction():
    torch.manual_seed(0)
    product = torch.randn(40, 3) @ torch.randn(3, 30)
    for size in (1e-8, 1.0, 1e8):  # what counts as noise is relative to the matrix
        assert directions(size * product).shape == (30, 3)
    assert directions(product + 0.01 * torch.randn(40, 30)).shape == (30, 30)


def test_equal_spaces_give_1_and_orthogonal_ones_0():
    assert torch.allclose(similarity_grid(AXES[:, :3], AXES[:, :3]).diag(), torch.ones(3).double())
    assert similarity_grid(AXES[:, :3], AXES[:, 3:]).abs().max() == 0
    turned = AXES[:, :2] @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    grid = similarity_grid(AXES[:, :2], turned)
    assert grid[0, 0] == pytest.approx(0.36) and grid[1, 1] == pytest.approx(1)


def test_each_entry_follows_the_formula():
    torch.manual_seed(1)
    first, second = directions(torch.randn(9, 20)), directions(torch.randn(5, 20))
    grid = similarity_grid(first, second)
    assert grid.shape == (9, 5)
    for i, j in ((1, 1), (9, 5), (2, 4), (7, 3)):
        by_hand = torch.linalg.norm(first[:, :i].T @ second[:, :j]) ** 2 / min(i, j)
        assert grid[i - 1, j - 1] == pytest.approx(float(by_hand))
    assert torch.allclose(grid, similarity_grid(second, first).T)


def test_random_spaces_agree_with_the_expectation():
    torch.manual_seed(2)
    grids = [
        similarity_grid(directions(torch.randn(4, 50)), directions(torch.randn(16, 50))) for _ in range(300)
    ]
    mean = torch.stack(grids).mean(0)  # (300, 4, 16) -> (4, 16)
    for i, j in ((1, 1), (4, 16), (4, 2), (2, 8)):
        assert mean[i - 1, j - 1] == pytest.approx(random_similarity(i, j, 50), rel=0.15)


def test_amplification_of_a_diagonal_weight():
    weight = torch.diag(torch.tensor([10.0, 5.0, 2.0, 0.5]))
    update = torch.zeros(4, 4)
    update[3, 3], update[2, 2] = 3.0, 4.0  # norm 5, on the two weakest directions of the weight
    found = amplification(weight, update, 2)
    assert found.update == pytest.approx(5) and found.before == pytest.approx((2**2 + 0.5**2) ** 0.5)
    assert found.factor == pytest.approx(5 / 4.25**0.5)
    assert projected_norm(weight, weight, 2) == pytest.approx((10**2 + 5**2) ** 0.5)
    assert amplification(weight, update, 1).before == pytest.approx(2)  # the stronger of the two alone
    across = torch.zeros(4, 4)
    across[0, 1] = 1.0  # from input 1 to output 0, where the weight holds nothing
    assert projected_norm(weight, across, 1) == pytest.approx(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: directions(torch.zeros(3, 4)), ValueError, "has no direction"),
        (lambda: directions(torch.ones(3)), ValueError, r"must be a matrix; got shape \(3,\)"),
        (lambda: directions(torch.ones(3, 4, dtype=torch.int64)), TypeError, "torch.int64"),
        (lambda: directions(torch.full((2, 2), torch.nan)), ValueError, "NaN"),
        (lambda: directions(torch.ones(2, 2), "up"), ValueError, "got 'up'"),
        (lambda: similarity_grid(2 * AXES, AXES), ValueError, "first are not orthonormal"),
        (lambda: similarity_grid(AXES[:, :2], torch.eye(5)), ValueError, "6 and 5 entries"),
        (lambda: random_similarity(0, 3, 8), ValueError, "i = 0, j = 3"),
        (lambda: random_similarity(2, 9, 8), ValueError, "from 1 to d = 8"),
        (lambda: projected_norm(AXES, AXES[:5], 1), ValueError, r"\(6, 6\) and the other matrix \(5, 6\)"),
        (lambda: projected_norm(torch.eye(2), torch.ones(2, 2), 2), ValueError, "has 1 directions"),
    ],
)
def test_bad_input_ends_in_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("r", [0, 1, 3, 6])
def test_what_a_truncated_update_leaves_out_is_the_rest_of_its_spectrum(r):
    torch.manual_seed(0)
    update = torch.randn(6, 9)
    kept = truncate(update, r)
    values = torch.linalg.svdvals(update)
    assert kept.dtype == update.dtype and torch.linalg.matrix_rank(kept) == r
    rest = torch.linalg.norm(values[r:]).item()
    assert torch.linalg.norm(update - kept).item() == pytest.approx(rest, abs=1e-5)
    with pytest.raises(ValueError, match="give 0 or more"):
        truncate(update, -1)


def test_a_strong_new_direction_is_an_intruder_and_a_scaled_old_one_is_not():
    weight = torch.diag(torch.arange(8.0, 0.0, -1.0))
    assert intruders(weight, weight) == 0
    louder = weight.clone()
    louder[7, 7] = 20.0
    assert intruders(weight, louder) == 0, "an old direction that has grown is no new one"
    mixed = torch.ones(8) / 8**0.5  # as far from every axis as can be: cosine 0.35
    tuned = weight + 40 * torch.outer(mixed, mixed)
    assert intruders(weight, tuned, top=1) == 1 == intruders(weight, tuned, top=1, threshold=0.4)
    assert intruders(weight, tuned, top=1, threshold=0.3) == 0
    with pytest.raises(ValueError, match="tuned one"):
        intruders(weight, tuned[:4])
