"""The loop: what it trains, in which order, at which rate, what it records and what it refuses."""

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
import tiny

from lora_tutorial import preparation, recipes
from lora_tutorial.metrics import load_metric
from lora_tutorial.results import load_record
from lora_tutorial.training import NonFiniteLossError, evaluate_model, seed_everything, train


def run(model=None, loaders=None, **arguments):
    model = model if model is not None else tiny.model()
    recipe = arguments.pop("recipe", tiny.recipe())
    metric = arguments.pop("metric", load_metric("accuracy"))
    return train(model, *(loaders or tiny.loaders()), metric, recipe, **arguments), model


# ---- recipes ----


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


def test_unknown_recipes_and_tasks_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown recipe 'fast': choose from tutorial, quick, cpu, paper"):
        recipes.load_recipe("fast")
    with pytest.raises(ValueError, match="no row for task 'wnli'"):
        recipes.load_recipe("paper", "wnli")


def test_a_subset_is_seeded_and_within_bounds():
    recipe = recipes.load_recipe("quick")
    chosen = recipe.subset(9000, seed=1)
    assert len(set(chosen)) == 3000 and chosen == sorted(chosen) == recipe.subset(9000, seed=1)
    assert chosen != recipe.subset(9000, seed=2) and max(chosen) > 8000
    assert recipe.subset(10) == list(range(10))


# ---- the loop ----


def test_it_learns_and_leaves_frozen_weights_alone():
    model = tiny.model()
    before = tiny.weights(model)
    record, _ = run(model, recipe=tiny.recipe(epochs=6))
    after = model.state_dict()
    assert torch.equal(after["body.weight"], before["body.weight"])
    assert torch.equal(after["body.bias"], before["body.bias"])
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert record.last["scores"]["accuracy"] > 0.7 > 0.45 > record.steps["loss"][-1] / record.steps["loss"][0]
    assert record.status == "finished" and not model.training


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before():
    first, one = run()
    torch.rand(7)
    second, other = run()
    assert first.steps == second.steps
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())
    third, _ = run(seed=1)
    assert third.steps["loss"] != first.steps["loss"]


def test_scoring_does_not_change_training():
    scored, _ = run()
    unscored, _ = run(loaders=(tiny.loaders()[0], None))
    assert unscored.steps == scored.steps
    assert [epoch["scores"] for epoch in unscored.epochs] == [{}, {}, {}]
    assert unscored.last is unscored.best is None


def test_every_epoch_has_its_own_order_and_sees_every_example_once():
    seen = []
    train_loader, _ = tiny.loaders(24)

    def collate(rows):
        seen.extend(row["points"][0].item() for row in rows)
        return torch.utils.data.default_collate(rows)

    train_loader.collate_fn = collate
    run(loaders=(train_loader, None))
    orders = [seen[start : start + 24] for start in (0, 24, 48)]
    assert len(seen) == 72 and all(sorted(order) == sorted(orders[0]) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_plain_loop_in_torch_gives_the_same_weights():
    """One step at a time against torch alone: clipping, schedule, decay of matrices only, in this order."""
    recipe = tiny.recipe(max_grad_norm=0.5, weight_decay=0.3)
    data = tiny.Points(64, 1)
    record, model = run(tiny.model(dropout=0.0), (DataLoader(data, 8), None), recipe=recipe)
    plain = tiny.model(dropout=0.0)
    matrices, vectors = [plain.head.weight], [plain.norm.weight, plain.norm.bias, plain.head.bias]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    norms, rates = [], []
    for step in range(24):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * recipe.factor(step, 24)
        rates.append(group["lr"])
        batch = torch.utils.data.default_collate([data[(8 * step + i) % 64] for i in range(8)])
        optimizer.zero_grad()
        plain(**batch).loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(matrices + vectors, 0.5).item())
        optimizer.step()
    for name, value in plain.named_parameters():
        assert torch.allclose(model.get_parameter(name), value, rtol=0, atol=1e-6), name
    assert record.steps["grad_norm"] == pytest.approx(norms, rel=1e-5) and min(norms) < 0.5 < max(norms)
    assert record.steps["learning_rate"] == pytest.approx(rates, rel=1e-6)


def test_only_matrices_decay_and_only_trainable_parameters_are_given_to_adamw():
    model = tiny.model()
    decayed, spared = preparation.parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model.head.weight)] and decayed["weight_decay"] == 0.1
    assert len(spared["params"]) == 4 and spared["weight_decay"] == 0.0


def test_a_regression_is_scored_by_its_values():
    record, _ = run(
        tiny.model(classes=1), tiny.loaders(regression=True), metric=load_metric("pearson_spearman")
    )
    assert record.main_score == "pearson" and record.last["scores"]["pearson"] > 0.4


def test_evaluation_alone_counts_every_example_and_makes_no_gradient():
    model, (_, held_out) = tiny.model(), tiny.loaders()
    model.train()
    with_gradient = []
    model.head.register_forward_hook(lambda *_: with_gradient.append(torch.is_grad_enabled()))
    scores = evaluate_model(model, held_out, load_metric("accuracy"))
    data = held_out.dataset
    assert with_gradient == [False] * 6
    with torch.no_grad():
        expected = (model(data.points).logits.argmax(-1) == data.labels).float().mean().item()
    assert scores["accuracy"] == pytest.approx(expected) and not model.training
    assert model.seen == 0


def test_another_scorer_takes_the_place_of_loader_and_metric():
    def scorer(model, accelerator):
        assert isinstance(model, tiny.Tiny) and accelerator.num_processes == 1
        return {"exact": 0.25, "f1": 0.5}

    record, _ = run(loaders=(tiny.loaders()[0], None), scorer=scorer)
    assert record.main_score == "exact" and record.best["scores"] == {"exact": 0.25, "f1": 0.5}


def test_bf16_then_full_precision_in_one_process():
    half, model = run(recipe=tiny.recipe(mixed_precision="bf16"))
    full, _ = run()
    assert half.mixed_precision == "bf16" and half.steps["loss"] != full.steps["loss"]
    assert half.steps["loss"] == pytest.approx(full.steps["loss"], abs=0.1)
    assert "forward" not in vars(model), "accelerate's wrapper stays on the caller's model"
    assert model(**torch.utils.data.default_collate([tiny.Points(2)[0]])).logits.dtype == torch.float32


def test_lora_trains_through_the_same_loop():
    from lora_tutorial import LoraConfig, inject_lora

    seed_everything(3)
    model = tiny.Tiny()
    inject_lora(model, LoraConfig(r=2, target_modules=("body",), modules_to_save=("head",)))
    base = model.body.weight.clone()
    record, _ = run(model)
    assert torch.equal(model.body.weight, base) and model.body.lora_B.abs().max() > 0
    assert record.trainable_parameters == 2 * 8 + 8 * 2 + 3 * 8 + 3


def test_seeding_everything_repeats_every_generator():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    assert preparation.stream_seed(5, "order") != preparation.stream_seed(5, "training") != 5


# ---- what is kept ----


def test_the_record_on_disk_tells_the_whole_run(tmp_path):
    record, _ = run(output_dir=tmp_path, config={"task": "points"}, checkpoint_every=3)
    assert load_record(tmp_path / "record.json") == record
    assert {len(series) for series in record.steps.values()} == {24}
    assert [(epoch["epoch"], epoch["step"]) for epoch in record.epochs] == [(1, 8), (2, 16), (3, 24)]
    assert record.epochs[1]["train_loss"] == pytest.approx(sum(record.steps["loss"][8:16]) / 8)
    assert record.wall_seconds == pytest.approx(sum(epoch["seconds"] for epoch in record.epochs), rel=0.5)
    assert record.peak_memory_bytes > 50e6 and record.config == {"task": "points"}
    assert (record.trainable_parameters, record.total_parameters) == (45, 45 + 72)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000021", "step-00000024"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_tracker_receives_losses_and_scores(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, _ = run(output_dir=tmp_path, log_with=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "logs" / "lora-tutorial"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(record.steps["loss"])
    assert [event.step for event in events.Scalars("eval/accuracy")] == [8, 16, 24]


def test_nothing_is_printed_off_a_terminal(capfd):
    run(progress=True)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_on_a_terminal_and_not_when_switched_off(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(progress=False)
    assert capfd.readouterr() == ("", "")
    run(progress=True)
    assert "24/24" in capfd.readouterr().err


class Diverging(tiny.Tiny):
    """Its loss is not finite from a given call on."""

    def __init__(self, at, value=math.nan):
        super().__init__()
        self.left, self.value = at, value

    def forward(self, points, labels=None):
        outputs = super().forward(points, labels)
        if self.training:
            self.left -= 1
            if self.left < 0:
                outputs["loss"] = outputs.loss * self.value
        return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, value):
    model = Diverging(13, value)
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is (nan|inf) at step 14 of 24.*step-00000012"
    ) as stop:
        run(model, output_dir=tmp_path, checkpoint_every=4)
    assert "learning rate" in str(stop.value)
    record = load_record(tmp_path / "record.json")
    assert record.status == "failed" and "step 14" in record.error and len(record.steps["loss"]) == 13
    assert (tmp_path / "checkpoints" / "step-00000012" / "manifest.json").exists()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights():
    model = tiny.model()
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match=r"The norm of the gradient is (inf|nan) at step 1 of 24"):
        run(model)
    assert torch.isfinite(model.head.weight).all()


# ---- what is refused ----


def refused(said, error=ValueError, **arguments):
    with pytest.raises(error, match=said):
        run(**arguments)


def test_what_cannot_work_is_refused_before_any_work(tmp_path):
    train_loader, held_out = tiny.loaders()
    frozen = tiny.model().requires_grad_(False)
    refused("no trainable parameter", model=frozen)
    refused("meta", model=tiny.model().to("meta"))
    refused("batches of 4, recipe 'test' of 8", loaders=(DataLoader(tiny.Points(9), 4), None))
    refused("yields no batch from 3", loaders=(DataLoader(tiny.Points(3), 8, drop_last=True), None))
    refused("at most 10 examples, given 64", recipe=tiny.recipe(max_examples=10))
    refused("checkpoint_every=0", checkpoint_every=0, output_dir=tmp_path)
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


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.load_recipe("quick").epochs = 2
