"""Recipes: rates, the paper's table, subsets, and what is refused."""

import dataclasses
import itertools
import math

import pytest
import tiny

from lora_tutorial.training import recipes


def test_the_tutorial_recipe_rises_for_two_epochs_and_falls_for_four():
    recipe = recipes.load_recipe("tutorial")
    rates = [recipe.learning_rate * recipe.factor(step, 600) for step in range(600)]
    assert (recipe.epochs, recipe.batch_size) == (6, 16)
    assert max(rates) == rates[199] == rates[200] == 5e-4
    assert rates[0] == pytest.approx(5e-4 / 200) and rates[599] == pytest.approx(5e-4 / 400)
    assert all(a < b for a, b in itertools.pairwise(rates[:200]))
    assert all(a > b for a, b in itertools.pairwise(rates[200:]))


def test_schedules_after_the_warm_up():
    cosine, constant = tiny.recipe(schedule="cosine"), tiny.recipe(schedule="constant")
    assert cosine.factor(10, 40) == 1 and cosine.factor(25, 40) == pytest.approx(0.5)
    assert constant.factor(39, 40) == 1 and constant.factor(0, 40) == pytest.approx(0.1)
    assert tiny.recipe(warmup=0.0).factor(0, 1) == 1


def test_the_papers_table_9():
    rows = {task: recipes.load_recipe("paper", task) for task in recipes.PAPER}
    tasks = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
    assert [rows[t].batch_size for t in tasks] == [16, 16, 16, 32, 32, 16, 32, 16]
    assert [rows[t].epochs for t in tasks] == [30, 60, 30, 80, 25, 25, 80, 40]
    assert [rows[t].learning_rate for t in tasks] == [5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4]
    assert {t for t in tasks if rows[t].start_from == "mnli"} == {"mrpc", "rte", "stsb"}
    assert {r.warmup for r in rows.values()} == {0.06} and {r.max_length for r in rows.values()} == {512}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"warmup": 1.0}, r"warmup=1.0: give a share of all steps in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"adam_beta2": 1.0}, "adam_beta2"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_examples": 0}, "max_examples"),
        ({"patience": 0}, "patience=0: give a whole number of at least 1"),
        ({"schedule": "steps"}, "schedule='steps': choose from linear, cosine, constant"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8'"),
        ({"lr": 1.0}, "no field lr"),
    ],
)
def test_a_bad_recipe_is_refused_by_field(changes, said):
    with pytest.raises(ValueError, match=said):
        recipes.load_recipe("tutorial", **changes)
    with pytest.raises(TypeError, match="learning_rate='fast'"):
        recipes.load_recipe("quick", learning_rate="fast")
    with pytest.raises(TypeError, match="keep_best=1: give True or False"):
        recipes.load_recipe("quick", keep_best=1)


def test_unknown_recipes_and_tasks_are_refused_with_the_known_ones():
    known = "tutorial, quick, chat, cpu, paper"
    with pytest.raises(ValueError, match=f"Unknown recipe 'fast': choose from {known}"):
        recipes.load_recipe("fast")
    with pytest.raises(ValueError, match="no row for task 'wnli'"):
        recipes.load_recipe("paper", "wnli")


def test_a_subset_is_seeded_and_within_bounds():
    recipe = recipes.load_recipe("quick")
    chosen = recipe.subset(9000, seed=1)
    assert len(set(chosen)) == 3000 and chosen == sorted(chosen) == recipe.subset(9000, seed=1)
    assert chosen != recipe.subset(9000, seed=2) and max(chosen) > 8000
    assert recipe.subset(10) == list(range(10))


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.load_recipe("quick").epochs = 2


def test_squads_inputs_are_long_and_only_the_cpu_recipe_drops_no_attention_weights():
    assert (
        recipes.load_recipe("cpu", "squad").max_length
        == recipes.load_recipe("tutorial", "squad_v2").max_length
        == 384
    )
    assert recipes.load_recipe("cpu", "squad").attention_dropout == 0.0
    assert (
        recipes.load_recipe("cpu", "rte").attention_dropout
        is recipes.load_recipe("tutorial", "squad").attention_dropout
    )
    assert recipes.load_recipe("cpu", "squad", max_length=256, attention_dropout=None).max_length == 256
    with pytest.raises(ValueError, match=r"attention_dropout=1.0: give a probability in \[0, 1\)"):
        recipes.load_recipe("cpu", attention_dropout=1.0)
