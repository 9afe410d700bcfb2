"""Which directions an update uses, and how they lie to those of another matrix. Knows only torch.

The measures of section 7 of the LoRA paper (arXiv:2106.09685). A direction is a singular vector. Everything
is computed in double precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def directions(matrix: Tensor, side: str = "right") -> Tensor:
    """The singular vectors of a matrix, strongest first, without those whose singular value is zero.

    Parameters
    ----------
    matrix
        Shape (out, in), such as ``lora_A`` or an update of a weight.
    side
        ``"right"`` for directions of the input, ``"left"`` for directions of the output.

    Returns
    -------
    Tensor
        Orthonormal columns, shape (in, k) or (out, k) and of type float64, where k is the matrix's rank: the
        number of singular values above ``max(out, in)`` times the largest one times the precision of
        ``matrix.dtype``.

    Raises
    ------
    TypeError, ValueError
        If ``matrix`` is not a finite floating-point matrix with a rank above 0, or there is no such side.
    """
    _check(matrix, "matrix")
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right"; got {side!r}.')
    U, values, Vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    rank = int((values > max(matrix.shape) * torch.finfo(matrix.dtype).eps * values[0]).sum())
    if rank == 0:
        raise ValueError(
            "The matrix is zero and has no direction; an adapter that was not trained has B = 0."
        )
    return U[:, :rank] if side == "left" else Vh[:rank].T  # (out, k), or (k, in) -> (in, k)


def similarity_grid(first: Tensor, second: Tensor) -> Tensor:
    """How far the first i directions of one matrix lie within the first j of another, for every i and j.

    LoRA paper, equation 4 in section 7.2 (and appendix G): with ``U`` and ``V`` the two sets of directions,
    ``phi(i, j) = ||U[:, :i].T @ V[:, :j]||_F ** 2 / min(i, j)``.

    Parameters
    ----------
    first, second
        Orthonormal columns, shapes (d, m) and (d, n), as `directions` returns them.

    Returns
    -------
    Tensor
        Shape (m, n), type float64; entry ``[i - 1, j - 1]`` is phi(i, j), from 0 (orthogonal) to 1 (the
        smaller space lies in the larger).

    Raises
    ------
    TypeError, ValueError
        If an argument is no finite matrix, its columns are not orthonormal, or they have different lengths.
    """
    for name, columns in (("first", first), ("second", second)):
        _check(columns, name)
        gram = columns.double().T @ columns.double()  # (m, m)
        if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-4):
            raise ValueError(f"The columns of {name} are not orthonormal; pass directions(matrix).")
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"The directions have {first.shape[0]} and {second.shape[0]} entries; they must be of one space."
        )
    squares = (first.double().T @ second.double()).square()  # (m, n)
    m, n = squares.shape
    smaller = torch.minimum(torch.arange(1, m + 1)[:, None], torch.arange(1, n + 1))  # (m, n)
    return squares.cumsum(0).cumsum(1) / smaller


def random_similarity(i: int, j: int, d: int) -> float:
    """What `similarity_grid` gives on average for a random space: ``max(i, j) / d``.

    The expected squared length of a fixed unit vector's projection on a random j-dimensional space is j / d.
    i such vectors make i j / d, and the definition divides by min(i, j).

    Parameters
    ----------
    i, j
        Numbers of directions.
    d
        Dimensions of the space they lie in.

    Raises
    ------
    ValueError
        If i or j is not from 1 to d.
    """
    if not (1 <= i <= d and 1 <= j <= d):
        raise ValueError(f"i and j must be from 1 to d = {d}; got i = {i}, j = {j}.")
    return max(i, j) / d


def projected_norm(weight: Tensor, of: Tensor, r: int) -> float:
    """How much of a weight lies in the first r directions of another matrix: ``||U.T @ W @ V||_F``.

    LoRA paper, section 7.3: U and V are the first r left and right singular vectors of ``of``. With ``of``
    the weight itself this is the largest value there is.

    Parameters
    ----------
    weight, of
        Shape (out, in), both.
    r
        Number of directions, from 1 to the rank of ``of``.

    Raises
    ------
    TypeError, ValueError
        If a matrix is not as for `directions`, the shapes differ, or ``of`` has fewer directions.
    """
    _check(weight, "weight")
    if weight.shape != of.shape:
        raise ValueError(f"weight is {tuple(weight.shape)} and the other matrix {tuple(of.shape)}.")
    U, V = directions(of, "left"), directions(of, "right")
    if not 1 <= r <= U.shape[1]:
        raise ValueError(f"r = {r}: this matrix has {U.shape[1]} directions, so give 1 to {U.shape[1]}.")
    inside = U[:, :r].T @ weight.detach().double() @ V[:, :r]  # (r, out) (out, in) (in, r) -> (r, r)
    return float(torch.linalg.norm(inside))


class Amplification(NamedTuple):
    """An update beside what the weight held in the same directions.

    Attributes
    ----------
    update
        ``||dW||_F``.
    before
        ``||U.T @ W @ V||_F``, see `projected_norm`.
    """

    update: float
    before: float

    @property
    def factor(self) -> float:
        """``update / before``: how much the update adds to its directions, in units of what was there."""
        return self.update / self.before


def amplification(weight: Tensor, update: Tensor, r: int) -> Amplification:
    """The amplification factor of section 7.3 and table 7 of the LoRA paper.

    Parameters
    ----------
    weight, update
        The pretrained weight and what training added to it, shape (out, in), both.
    r
        The update's number of directions: LoRA's rank.

    Raises
    ------
    TypeError, ValueError
        As for `projected_norm`.
    """
    before = projected_norm(weight, update, r)
    return Amplification(float(torch.linalg.norm(update.detach().double())), before)


def truncate(update: Tensor, r: int) -> Tensor:
    """The best approximation of an update by a matrix of rank r (Eckart and Young 1936), in its own dtype.

    Parameters
    ----------
    update
        Shape (out, in).
    r
        Singular values to keep, the largest ones; 0 gives a matrix of zeros.

    Raises
    ------
    TypeError, ValueError
        If ``update`` is not as for `directions`, or r is below 0.
    """
    _check(update, "update")
    if r < 0:
        raise ValueError(f"r = {r}: give 0 or more.")
    U, values, Vh = torch.linalg.svd(update.detach().double(), full_matrices=False)
    return (U[:, :r] * values[:r] @ Vh[:r]).to(update.dtype)  # (out, r) (r, in) -> (out, in)


def intruders(weight: Tensor, tuned: Tensor, top: int = 10, threshold: float = 0.6) -> int:
    """How many of a tuned weight's strongest directions are unlike any that the weight had before.

    Shuttleworth and others (2024, arXiv:2410.21228), "intruder dimensions": left singular vectors of the
    tuned weight whose cosine with every left singular vector of the pretrained one stays below a threshold.

    Parameters
    ----------
    weight, tuned
        Before and after training, shape (out, in), both.
    top
        How many of the tuned weight's directions to look at, the strongest first.
    threshold
        Largest absolute cosine at which a direction counts as new, in (0, 1).

    Raises
    ------
    TypeError, ValueError
        If a matrix is not as for `directions`, or the shapes differ.
    """
    _check(tuned, "tuned")
    if weight.shape != tuned.shape:
        raise ValueError(f"weight is {tuple(weight.shape)} and the tuned one {tuple(tuned.shape)}.")
    before, after = directions(weight, "left"), directions(tuned, "left")[:, :top]
    cosines = (after.T @ before).abs()  # (top, out) (out, rank) -> (top, rank)
    return int((cosines.amax(dim=1) < threshold).sum())


def _check(matrix: Tensor, name: str) -> None:
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {getattr(matrix, 'dtype', matrix)!r}.")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix; got shape {tuple(matrix.shape)}.")
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{name} holds an infinity or NaN.")
