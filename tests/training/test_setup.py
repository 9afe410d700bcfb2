"""What is refused before any work, each with what was given and what to do."""

import json
import math

import pytest
import tiny
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from training_runs import run

from lora_tutorial.training import recipes, setup


def refused(said, error=ValueError, **arguments):
    with pytest.raises(error, match=said):
        run(**arguments)


def spoilt(value):
    model = tiny.model()
    with torch.no_grad():
        model.body.weight[3, 1] = value
    return model


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(tiny.Points(64))


def test_what_cannot_work_is_refused_before_any_work(tmp_path):
    train_loader, held_out = tiny.loaders()
    frozen = tiny.model().requires_grad_(False)
    refused("no trainable parameter", model=frozen)
    refused("meta", model=tiny.model().to("meta"))
    refused(r"body.weight has values that are NaN or infinite", model=spoilt(math.nan))
    refused(r"body.weight has values that are NaN or infinite", model=spoilt(math.inf))
    refused('"fp16" needs a GPU: on the CPU', recipe=tiny.recipe(mixed_precision="fp16"), cpu=True)
    refused("held-out loader yields no batch", loaders=(train_loader, DataLoader(tiny.Points(0), 8)))
    refused("have no length", loaders=(DataLoader(Stream(), 8), None))
    refused("batches of 4, recipe 'test' of 8", loaders=(DataLoader(tiny.Points(9), 4), None))
    refused("yields no batch from 3", loaders=(DataLoader(tiny.Points(3), 8, drop_last=True), None))
    refused("at most 10 examples, given 64", recipe=tiny.recipe(max_examples=10))
    refused("checkpoint_every=0", checkpoint_every=0, output_dir=tmp_path)
    refused("checkpoint_every=True", checkpoint_every=True, output_dir=tmp_path)
    refused("unexpected keyword argument 'resumes'", TypeError, resumes=True)
    refused("needs an output_dir", checkpoint_every=2)
    refused("Tracker 'diary' is unknown or not installed", log_with=["diary"], output_dir=tmp_path)
    refused("need an output_dir", log_with=["tensorboard"])
    sampler = WeightedRandomSampler([1.0] * 64, 64)
    refused(
        "set_epoch",
        loaders=(DataLoader(train_loader.dataset, 8, sampler=sampler), held_out),
        output_dir=tmp_path,
    )
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_loss_is_told_what_the_batches_lack(tmp_path):
    def unlabelled(rows):
        return {"points": torch.stack([row["points"] for row in rows])}

    loader = DataLoader(tiny.Points(64), 8, collate_fn=unlabelled)
    refused("no loss: the batches need labels", loaders=(loader, None), output_dir=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "failed"


def test_a_score_that_is_no_number_ends_the_run_with_a_sentence(tmp_path):
    said = "The score f1 at step 8 is nan: look at the held-out examples"
    refused(said, scorer=lambda *_: {"accuracy": 0.5, "f1": math.nan}, output_dir=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "failed"
    refused("need held-out scores", scorer=lambda *_: {}, recipe=tiny.recipe(patience=1))


def test_a_rate_at_which_adamw_leaves_single_precision_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate=1e\+38: give a number above 0 and at most 1e30"):
        recipes.load_recipe("quick", learning_rate=1e38)


def test_a_batch_is_shared_out_equally_or_not_at_all():
    setup.check_split(4, *tiny.loaders())
    with pytest.raises(
        ValueError, match=r"A batch of 8 cannot be split over 3 processes.*choose one that 3 divides"
    ):
        setup.check_split(3, *tiny.loaders())
