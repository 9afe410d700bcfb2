"""The loop: what it trains, in which order, at which rate, and how it is scored."""

import random

import numpy as np
import pytest
import tiny
import torch
from torch.utils.data import DataLoader
from training_runs import run

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.training import setup
from lora_tutorial.training.trainer import evaluate_model, seed_everything


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

    def draws(*_):
        return {"score": random.random() + np.random.rand() + torch.rand(1).item()}

    drawn, _ = run(loaders=(tiny.loaders()[0], None), scorer=draws)
    assert unscored.steps == scored.steps == drawn.steps
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
    decayed, spared = setup.parameter_groups(model, 0.1)
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
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    assert setup.stream_seed(5, "order") != setup.stream_seed(5, "training") != 5
