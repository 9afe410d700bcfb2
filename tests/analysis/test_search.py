"""A search's curve, the runs at the rate it chose, and intervals of what each row has."""

import dataclasses

import numpy as np
import pytest

from lora_tutorial.analysis.search import chosen_runs, mean_interval, rate_curves
from lora_tutorial.pages.benchmark_plots import forest, search_curves, spread_apart
from lora_tutorial.pages.style import CYCLE
from lora_tutorial.training.records import RunRecord


def run(arm, rate, score, seed=0, method="lora", status="finished"):
    extra = {"splits": {"held_out": {"scores": {"accuracy": score}}}} if status == "finished" else {}
    return RunRecord(
        {"task": "t", "arm": arm, "method": method},
        {"learning_rate": rate},
        seed,
        main_score="accuracy",
        status=status,
        extra=extra,
    )


RECORDS = [
    run("a", 1e-3, 0.7),
    run("a", 2e-3, 0.8),
    run("a", 4e-3, 0.8),
    run("a", 2e-3, 0.6, seed=1),
    run("b", 1e-3, 0.5),
    run("b", 8e-3, 0.9, status="failed"),
    run("c", 1e-3, 0.9, status="failed"),
    run("base", 5e-4, 0.99, method="probe"),
]


def test_the_curve_is_the_lowest_seeds_and_a_run_that_diverged_is_below_all():
    curves, worst = rate_curves(reversed(RECORDS)), float("-inf")
    assert curves == {
        "a": {1e-3: 0.7, 2e-3: 0.8, 4e-3: 0.8},
        "b": {1e-3: 0.5, 8e-3: worst},
        "c": {1e-3: worst},
    }
    assert list(curves["a"]) == [1e-3, 2e-3, 4e-3]


def test_the_chosen_runs_are_all_seeds_at_the_best_rate_the_lowest_of_equals():
    chosen = chosen_runs(reversed(RECORDS))
    assert [(r.seed, r.recipe["learning_rate"]) for r in chosen["a"]] == [(0, 2e-3), (1, 2e-3)]
    assert [r.recipe["learning_rate"] for r in chosen["b"]] == [1e-3]
    assert len(chosen["base"]) == 1 and chosen.keys() == {"a", "b", "base"}, "every rate of c diverged"


def other(record, seed=1, **changes):
    """The record under another seed, with some of its recipe or configuration changed."""
    config = {key: changes.pop(key) for key in tuple(changes) if key in ("data_sha256", "lora_rank")}
    recipe = {**record.recipe, **changes}
    return dataclasses.replace(record, seed=seed, recipe=recipe, config={**record.config, **config})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_sha256": "another"}, "different configurations"),
        ({"lora_rank": 4}, "different configurations"),
        ({"epochs": 10}, "different configurations"),
        ({"attention_dropout": 0.0}, "different configurations"),
        ({"seed": 0}, "'a' have the same seed"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(changes, said):
    one = run("a", 1e-3, 0.7)
    with pytest.raises(ValueError, match=said):
        chosen_runs([one, run("b", 1e-3, 0.5), other(one, **changes)])


def test_a_recipe_field_that_an_older_record_lacks_is_as_none():
    one = run("a", 1e-3, 0.7)
    assert len(chosen_runs([one, other(one, attention_dropout=None)])["a"]) == 2


def test_an_interval_holds_the_rows_and_the_seeds_spread():
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(1, 100))
    mean, low, high = mean_interval(rows)
    error = rows.std() / 10  # of a mean of 100
    assert mean == pytest.approx(rows.mean()) and low < mean < high
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.15)
    apart = rows + np.array([[0.0], [1.0]])  # two seeds, one point apart
    assert mean_interval(apart)[0] == pytest.approx(rows.mean() + 0.5)
    wide = mean_interval(apart)
    assert wide[2] - wide[1] > 0.9, "both seeds may be the one that is drawn twice"
    assert mean_interval(apart) == wide


def test_the_figures_show_every_arm_and_every_row():
    curves = rate_curves(RECORDS)
    figure = search_curves(curves, {"a": "first", "b": "second"}, "accuracy")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["first", "second"]
    rings = [line for line in axis.lines if line.get_fillstyle() == "none"]
    assert [tuple(ring.get_xydata()[0]) for ring in rings] == [(2e-3, 0.8), (1e-3, 0.5)]
    (axis,) = search_curves(curves, {"a": "first", "b": "second"}, "accuracy", {"b": CYCLE[0]}).axes
    colours = [text.get_color() for text in axis.texts]
    assert colours == [CYCLE[1], CYCLE[0]], "an arm kept its colour, and another did not take it"
    rows = {"one": (1.0, 0.5, 1.5), "two": (-0.2, -0.4, 0.1), "nought": (-0.01, -0.1, 0.1)}
    (axis,) = forest(rows, "gap", zero=True).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two", "nought"]
    assert [text.get_text() for text in axis.texts] == ["1.00", "\N{MINUS SIGN}0.20", "\N{MINUS SIGN}0.01"]
    sides = [text.get_ha() for text in axis.texts]
    assert sides == ["center", "center", "left"], "the line of zero runs through a number"


def test_labels_keep_their_distance_and_their_order():
    assert spread_apart([50, 10, 30], 5) == [50, 10, 30]
    assert spread_apart([30, 30], 4) == [28, 32]
    placed = spread_apart([84, 86, 80, 20], 5)
    assert placed[3] == 20 and sum(placed[:3]) == pytest.approx(250)
    assert sorted(placed) == [placed[3], placed[2], placed[0], placed[1]]
    assert min(b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)) >= 5 - 1e-9
