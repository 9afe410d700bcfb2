"""What a grid's search found: each arm's score by learning rate, and its runs at the rate it chose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lora_tutorial.analysis.compare import DRAWS
from lora_tutorial.training.recipes import with_defaults
from lora_tutorial.training.records import RunRecord, best_rate, held_out_score

# What the seeds of one arm have in common beside the recipe; without it their mean is of no one thing.
_MUST_AGREE = ("task", "encoder", "method", "lora_rank", "lora_alpha", "head", "data_sha256", "base_sha256")


def rate_curves(records: Iterable[RunRecord]) -> dict[str, dict[float, float]]:
    """Each trained arm's held-out score by learning rate, as its search saw it; the lowest rate first.

    A search is made of runs of the lowest seed. One that diverged counts as minus infinity.
    """
    found: dict[str, dict[float, float]] = {}
    trained = [record for record in records if record.config["method"] != "probe"]
    first = min((record.seed for record in trained), default=0)
    for record in trained:
        if record.seed == first:
            scores = found.setdefault(record.config["arm"], {})
            scores[record.recipe["learning_rate"]] = held_out_score(record)
    return {arm: dict(sorted(scores.items())) for arm, scores in found.items()}


def chosen_runs(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Each arm's runs at the rate with the best held-out score (the lowest of equals), one a seed.

    An arm that trains nothing has its only run, and one whose every rate diverged is left out. The records
    are one task's.

    Raises
    ------
    ValueError
        If the runs of an arm differ in more than the seed, or two of them have the same one.
    """
    records = sorted(records, key=lambda record: record.seed)
    curves = rate_curves(records)
    best = {arm: best_rate(curve) for arm, curve in curves.items()}
    chosen: dict[str, list[RunRecord]] = {}
    for record in records:
        arm = record.config["arm"]
        if arm not in best or record.recipe["learning_rate"] == best[arm]:
            chosen.setdefault(arm, []).append(record)
    for arm, runs in chosen.items():
        if len({_settings(record) for record in runs}) > 1:
            raise ValueError(
                f"The runs of {arm!r} are of different configurations, so their seeds do not belong "
                "together; give the records of one."
            )
        if len({record.seed for record in runs}) < len(runs):
            raise ValueError(f"Two runs of {arm!r} have the same seed; give each once.")
    return chosen


def _settings(record: RunRecord) -> str:
    recipe = sorted(with_defaults(record.recipe).items())
    return repr([record.config.get(name) for name in _MUST_AGREE] + recipe)


def mean_interval(values: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """The mean of a number that each row has under each seed, and its 95 % bootstrap interval.

    Parameters
    ----------
    values
        ``(seeds, rows)``.
    seed
        Of the draws, in which rows and seeds are drawn with replacement.

    Returns
    -------
    tuple
        Mean, low and high.
    """
    table = np.array([[float(value) for value in row] for row in values])
    seeds, rows = table.shape
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS) / rows  # (draws, rows)
    by_seed = weights @ table.T  # (draws, seeds)
    means = np.take_along_axis(by_seed, draw.integers(seeds, size=by_seed.shape), axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(table.mean()), float(low), float(high)
