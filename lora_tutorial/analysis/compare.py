"""Is one arm better than another? Paired intervals over rows and seeds, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from lora_tutorial.training.records import RunRecord, score_of

DRAWS = 10_000
MARGIN = 1.0  # points within which two arms count as equal, see benchmarks/PROTOCOL.md
_BLOCK = 500  # draws at a time: (draws, rows) counts in memory


class Comparison(NamedTuple):
    """How far one arm's score lies above another's, in points.

    Attributes
    ----------
    difference
        Of the means over seeds.
    low, high
        Ends of the 95 % bootstrap interval, over rows and seeds.
    verdict
        ``"equal"``, ``"ahead"``, ``"behind"`` or ``"not decidable"``.
    """

    difference: float
    low: float
    high: float
    verdict: str


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """What an interval of a difference, in points, allows to be said.

    ``"equal"`` if all of it lies within ``margin`` of zero; else ``"ahead"`` or ``"behind"`` if it excludes
    zero; else ``"not decidable"``.
    """
    if -margin <= low and high <= margin:
        return "equal"
    return "ahead" if low > 0 else "behind" if high < 0 else "not decidable"


def compare(
    first: Sequence[RunRecord], second: Sequence[RunRecord], split: str = "validation", seed: int = 0
) -> Comparison:
    """Compare two arms on the same rows, each by the records of its seeds.

    Parameters
    ----------
    first, second
        Records of one task that keep their predictions, see ``run_grid``.
    split
        Whose rows.
    seed
        Of the bootstrap's draws.

    Raises
    ------
    ValueError
        If there is no record, or they are not of the same task, score and rows.
    """
    facts = {(r.config["task"], r.main_score, str(_labels(r, split))) for r in (*first, *second)}
    if not first or not second or len(facts) > 1:
        raise ValueError("Two arms are compared by records of one task, on the same rows; these are not.")
    scores = [bootstrap(arm, split, seed) for arm in (first, second)]
    means = [100 * float(np.mean([score_of(record, split) for record in arm])) for arm in (first, second)]
    low, high = np.percentile(scores[0] - scores[1], [2.5, 97.5])
    return Comparison(means[0] - means[1], float(low), float(high), verdict(low, high))


def interval(
    records: Sequence[RunRecord], split: str = "validation", seed: int = 0
) -> tuple[float, float, float]:
    """An arm's score, in points: the mean over its seeds, and the ends of the 95 % bootstrap interval."""
    low, high = np.percentile(bootstrap(records, split, seed), [2.5, 97.5])
    return 100 * float(np.mean([score_of(record, split) for record in records])), float(low), float(high)


def compare_on_average(
    tasks: Mapping[str, tuple[Sequence[RunRecord], Sequence[RunRecord]]],
    split: str = "validation",
    seed: int = 0,
) -> Comparison:
    """The same for the mean over tasks, from the records of both arms; rows are drawn task by task."""
    points = [compare(first, second, split).difference for first, second in tasks.values()]
    drawn = [
        bootstrap(first, split, seed + place) - bootstrap(second, split, seed + place)
        for place, (first, second) in enumerate(tasks.values())
    ]
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return Comparison(float(np.mean(points)), float(low), float(high), verdict(low, high))


def bootstrap(records: Sequence[RunRecord], split: str = "validation", seed: int = 0) -> np.ndarray:
    """An arm's score, in points, in each of `DRAWS` draws of rows and seeds with replacement, (draws,).

    The rows of a draw depend on ``seed`` and their number alone, so two arms are drawn on the same rows. The
    seeds of two arms are drawn apart.
    """
    parts = [_per_row(record, split) for record in records]
    rows, score = len(parts[0][0]), parts[0][1]
    draw = np.random.default_rng([seed, rows])
    own = np.random.default_rng([seed, rows, *str(records[0].config.get("arm", "")).encode()])
    scores = []
    for start in range(0, DRAWS, _BLOCK):
        counts = draw.multinomial(rows, np.full(rows, 1 / rows), size=min(_BLOCK, DRAWS - start))
        by_seed = np.stack([score(counts @ statistics) for statistics, _ in parts])  # (seeds, draws)
        chosen = own.integers(len(parts), size=by_seed.shape)  # seeds with replacement, for each draw
        scores.append(np.take_along_axis(by_seed, chosen, axis=0).mean(axis=0))
    return 100 * np.concatenate(scores)


def mcnemar(first: RunRecord, second: RunRecord, split: str = "validation") -> float:
    """Two-sided exact p-value of McNemar's test: whether two classifiers err equally often."""
    labels = np.array(list(_labels(first, split)))
    right = [np.array(list(r.extra["splits"][split]["predictions"])) == labels for r in (first, second)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    both = only_first + only_second
    return 1.0 if both == 0 else float(binomtest(only_first, both).pvalue)


def _labels(record: RunRecord, split: str) -> Sequence[str] | Sequence[float]:
    return record.extra["splits"][split]["labels"]


Score = Callable[[np.ndarray], np.ndarray]


def _per_row(record: RunRecord, split: str) -> tuple[np.ndarray, Score]:
    """What each row adds to the sums that the main score is made of, (rows, sums), and the score of the sums.

    So a draw's score needs one product of counts and sums, not the metric again.
    """
    about = record.extra["splits"][split]
    if record.main_score == "pearson":
        x, y = np.array(about["predictions"], float), np.array(about["labels"], float)
        return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1), _pearson
    if record.main_score == "log_likelihood":  # each row's loss in nats, and its tokens
        return np.stack([np.array([float(v) for v in about[k]]) for k in _LOSSES], axis=1), _per_token
    guessed = np.array([int(c) for c in about["predictions"]])
    gold = np.array([int(c) for c in about["labels"]])
    if record.main_score == "accuracy":
        return np.stack([np.ones(len(gold)), guessed == gold], axis=1).astype(float), _share
    if record.main_score == "matthews":
        cells = [(guessed == g) & (gold == t) for g in (0, 1) for t in (0, 1)]
        return np.stack(cells, axis=1).astype(float), _matthews
    raise ValueError(f"There is no bootstrap for the score {record.main_score!r}.")


_LOSSES = ("predictions", "labels")


def _per_token(sums: np.ndarray) -> np.ndarray:
    return -sums[:, 0] / sums[:, 1]


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[:, 1] / sums[:, 0]


def _matthews(sums: np.ndarray) -> np.ndarray:
    tn, fn, fp, tp = sums.T  # guessed 0 and gold 0, 0 and 1, 1 and 0, 1 and 1
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, below, out=np.zeros_like(below), where=below > 0)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xy, xx, yy = sums.T
    below = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return np.divide(n * xy - x * y, below, out=np.zeros_like(below), where=below > 0)
