"""Paired intervals: against the metric on drawn rows, against known cases, and the verdicts."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, matthews_corrcoef

from lora_tutorial.analysis import compare as module
from lora_tutorial.analysis.compare import (
    bootstrap,
    compare,
    compare_on_average,
    interval,
    mcnemar,
    verdict,
)
from lora_tutorial.training.records import RunRecord


def log_likelihood(tokens, losses):
    """Of a language model: each row's loss is its prediction, and its response tokens are its label."""
    return -np.sum(losses) / np.sum(tokens)


METRICS = {
    "log_likelihood": log_likelihood,
    "accuracy": accuracy_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda gold, guessed: pearsonr(gold, guessed).statistic,
}


def record(score, gold, guessed, arm="a", seed=0):
    classes = score not in ("pearson", "log_likelihood")
    about = {
        "labels": "".join(map(str, gold)) if classes else list(gold),
        "predictions": "".join(map(str, guessed)) if classes else list(guessed),
        "scores": {score: float(METRICS[score](gold, guessed))},
    }
    return RunRecord(
        {"task": "t", "arm": arm}, {}, seed, main_score=score, extra={"splits": {"validation": about}}
    )


def rows(score, n=300, right=0.8, seed=0):
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, 2, n)
    if score == "log_likelihood":
        tokens = draw.integers(5, 30, n)
        return tokens, tokens * draw.gamma(3, 1 / right, n)
    if score == "pearson":
        return gold + draw.normal(size=n), gold + draw.normal(size=n) / right
    return gold, np.where(draw.random(n) < right, gold, 1 - gold)


def test_an_arms_interval_is_that_of_its_draws():
    runs = [record("accuracy", *rows("accuracy", seed=seed), seed=seed) for seed in (0, 1)]
    value, low, high = interval(runs)
    assert value == pytest.approx(
        100 * np.mean([r.extra["splits"]["validation"]["scores"]["accuracy"] for r in runs])
    )
    assert (low, high) == tuple(np.percentile(bootstrap(runs), [2.5, 97.5])) and low < value < high


@pytest.mark.parametrize("score", METRICS)
def test_a_draws_score_is_the_metrics_on_the_drawn_rows(score):
    gold, guessed = rows(score, n=40)
    drawn = bootstrap([record(score, gold, guessed)])
    assert drawn.shape == (module.DRAWS,)
    counts = np.random.default_rng([0, 40]).multinomial(40, np.full(40, 1 / 40), size=500)
    for draw in range(5):
        index = np.repeat(np.arange(40), counts[draw])
        assert drawn[draw] == pytest.approx(100 * METRICS[score](gold[index], guessed[index]))


@pytest.mark.parametrize("score", METRICS)
def test_an_arm_against_itself_is_equal_and_a_worse_one_behind(score):
    gold, guessed = rows(score)
    same = record(score, gold, guessed)
    assert compare([same], [same]) == (0, 0, 0, "equal")
    worse = record(score, gold, rows(score, right=0.5, seed=0)[1] if score != "pearson" else -guessed, "b")
    found = compare([worse], [same])
    assert found.verdict == "behind" and found.low < found.difference < found.high < 0
    assert compare([same], [worse]).verdict == "ahead"


def test_rows_are_paired():
    """Two arms that err on the same rows differ surely; apart, the same scores say nothing."""
    gold = np.zeros(1000, int)
    first, second, apart = np.zeros(1000, int), np.zeros(1000, int), np.zeros(1000, int)
    first[:200], second[:230], apart[400:630] = 1, 1, 1
    a, b, c = (record("accuracy", gold, g, name) for g, name in ((first, "a"), (second, "b"), (apart, "c")))
    paired, unpaired = compare([b], [a]), compare([c], [a])
    assert paired.difference == unpaired.difference == pytest.approx(-3.0)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)
    assert paired.verdict == "behind" and unpaired.verdict == "not decidable"
    assert mcnemar(a, b) < 1e-6 < 0.1 < mcnemar(a, c) and mcnemar(a, a) == 1.0


def test_the_interval_holds_the_spread_of_seeds():
    gold, _ = rows("accuracy", n=400)
    good, bad = rows("accuracy", n=400, right=0.95)[1], rows("accuracy", n=400, right=0.65)[1]
    steady = [record("accuracy", gold, good, "s", seed) for seed in range(3)]
    shaky = [record("accuracy", gold, g, "w", seed) for seed, g in enumerate((good, bad, good))]
    width = {
        name: np.ptp(np.percentile(bootstrap(arm), [2.5, 97.5]))
        for name, arm in (("s", steady), ("w", shaky))
    }
    assert width["w"] > 2 * width["s"]


def test_an_average_over_tasks_is_narrower_than_each():
    tasks = {}
    for seed in range(4):
        gold, guessed = rows("accuracy", seed=seed)
        other = rows("accuracy", seed=seed + 50)[1]
        tasks[str(seed)] = [record("accuracy", gold, guessed)], [record("accuracy", gold, other, "b")]
    one, every = compare_on_average({"0": tasks["0"]}), compare_on_average(tasks)
    assert one == compare(*tasks["0"]), "of one task it is the task's own"
    assert every.difference == pytest.approx(np.mean([compare(*pair).difference for pair in tasks.values()]))
    assert every.high - every.low < 0.7 * (one.high - one.low), "the same rows of every task were drawn"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.9, 1.0, "equal"),
        (0.1, 0.9, "equal"),
        (0.1, 1.1, "ahead"),
        (-3, -0.1, "behind"),
        (-3, 0.1, "not decidable"),
    ],
)
def test_verdicts(low, high, said):
    assert verdict(low, high) == said


def test_other_rows_or_none_are_refused():
    gold, guessed = rows("accuracy")
    a = record("accuracy", gold, guessed)
    for other in ([], [record("accuracy", gold[::-1], guessed)], [record("matthews", gold, guessed)]):
        with pytest.raises(ValueError, match="records of one task, on the same rows"):
            compare([a], other)
