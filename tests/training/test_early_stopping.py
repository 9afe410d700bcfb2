"""A run stops when the held-out score no longer rises, and ends with its best epoch's weights if asked."""

import pytest
import tiny
import torch
from training_runs import run

from lora_tutorial.training import recipes
from lora_tutorial.training.records import RunRecord, load_record
from lora_tutorial.training.setup import check_identity


class Scores:
    """A scorer with given scores that keeps the weights it saw at each epoch; it may be interrupted."""

    main_score = "accuracy"

    def __init__(self, *scores, interrupt=None, before=()):
        self.scores, self.interrupt, self.seen = scores, interrupt, list(before)

    def __call__(self, model, accelerator):
        if len(self.seen) == self.interrupt:
            raise KeyboardInterrupt
        self.seen.append(tiny.weights(model))
        return {"f1": -len(self.seen), "accuracy": self.scores[len(self.seen) - 1]}


def go(scorer, folder=None, epochs=6, resume=False, **changes):
    recipe = tiny.recipe(epochs=epochs, **changes)
    every = 3 if folder is not None else None
    return run(recipe=recipe, scorer=scorer, output_dir=folder, checkpoint_every=every, resume=resume)


def same(weights, other):
    return all(torch.equal(weights[name], value) for name, value in other.items())


@pytest.mark.parametrize(
    ("patience", "scores", "epochs"),
    [
        (None, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 6),
        (1, (0.5, 0.4), 2),
        (1, (0.5, 0.5), 2),
        (2, (0.5, 0.6, 0.6, 0.5), 4),
        (2, (0.5, 0.4, 0.6, 0.5, 0.7, 0.6), 6),
        (9, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 6),
    ],
)
def test_it_stops_after_so_many_epochs_without_a_better_score(patience, scores, epochs):
    scorer = Scores(*scores)
    record, _ = go(scorer, patience=patience)
    assert len(record.epochs) == len(scorer.seen) == epochs and len(record.steps["loss"]) == 8 * epochs
    assert record.status == "finished" and record.last["epoch"] == epochs


def test_what_it_learns_until_then_is_what_a_run_without_patience_learns():
    whole, _ = go(Scores(*[0.5] * 6))
    brief, model = go(scorer := Scores(*[0.5] * 6), patience=2)
    assert brief.steps["loss"] == whole.steps["loss"][:24] and len(brief.epochs) == 3
    assert same(tiny.weights(model), scorer.seen[2])


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.7, 0.7, 0.6), 1), ((0.1, 0.2, 0.3, 0.4), 3)])
def test_the_best_epochs_weights_come_back_if_asked(scores, best):
    record, model = go(scorer := Scores(*scores), epochs=4, keep_best=True)
    assert record.kept["epoch"] == record.best["epoch"] == best + 1
    assert same(tiny.weights(model), scorer.seen[best])
    record, model = go(scorer := Scores(*scores), epochs=4)
    assert record.kept == record.last and same(tiny.weights(model), scorer.seen[3])


@pytest.mark.parametrize("interrupt", [1, 2, 3, 4])
def test_interrupted_anywhere_it_stops_at_the_same_epoch_with_the_same_weights(tmp_path, interrupt):
    scores, settings = (0.5, 0.7, 0.6, 0.6, 0.6, 0.6), {"patience": 3, "keep_best": True}
    whole, expected = go(Scores(*scores), **settings)
    with pytest.raises(KeyboardInterrupt):
        go(first := Scores(*scores, interrupt=interrupt), tmp_path, **settings)
    record, model = go(Scores(*scores, before=first.seen), tmp_path, resume=True, **settings)
    assert record.steps == whole.steps and len(record.epochs) == 5 and record.best["epoch"] == 2
    assert same(tiny.weights(model), tiny.weights(expected))
    again, model = go(Scores(), tmp_path, resume=True, **settings)  # a score more would raise
    assert again == record == load_record(tmp_path / "record.json")
    assert same(tiny.weights(model), tiny.weights(expected))


@pytest.mark.parametrize("changes", [{"patience": 1}, {"keep_best": True}])
def test_without_held_out_scores_both_are_refused(changes, tmp_path):
    with pytest.raises(ValueError, match="need held-out scores: give eval_loader and metric, or scorer"):
        run(recipe=tiny.recipe(**changes), loaders=(tiny.loaders()[0], None), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_record_older_than_a_field_is_of_the_same_recipe(tmp_path):
    old = {k: v for k, v in tiny.recipe().to_dict().items() if k not in ("patience", "keep_best")}
    assert recipes.with_defaults(old) == tiny.recipe().to_dict()
    theirs, ours = RunRecord({}, old, 0), RunRecord({}, tiny.recipe().to_dict(), 0)
    check_identity(theirs, ours, tmp_path)
    with pytest.raises(ValueError, match="recipe.patience is None there, 2 here"):
        check_identity(theirs, RunRecord({}, tiny.recipe(patience=2).to_dict(), 0), tmp_path)
