"""The speed benchmark: every variant computes the same function, and costs are what the sizes say.

No time is asserted anywhere: times are for a quiet machine, and for the reader.
"""

import pytest
import speed_variants
import tiny_speed
import torch
from speed_measure import Trainer, first_pass
from speed_memory import UNCOUNTED, memory_of_a_step, saved_and_gradients
from speed_settings import LORA, TARGETS, Setting
from tiny_speed import SIZE
from torch.utils.flop_counter import FlopCounterMode

from lora_tutorial.analysis import costs

BATCH, LENGTH, R = 2, 16, 3
ADAPTED = {"query-value": costs.QUERY_VALUE, "all-linear": costs.EVERY_LINEAR}
PLACES = {"query-value": {"minilm": 6, "smollm2": 6}, "all-linear": {"minilm": 18, "smollm2": 21}}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, seeded_on_one_thread):
    """The models of the benchmark, three layers deep."""
    tiny_speed.shrink(monkeypatch)


def setting(**values):
    return Setting(**{"model": "minilm", "batch": BATCH, "length": LENGTH, "r": R, **values})


def gradients(trainer):
    """The gradients of one step: of all (lora_A, lora_B) by place, and of the input of a single layer."""
    torch.manual_seed(1)
    trainer.loss().backward()
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            # The attention written by hand has lora_query_A where the others have query.lora_A.
            name = name.replace(".default.weight", "").replace("lora_query_", "query.lora_")
            found[name.replace("lora_value_", "value.lora_")] = parameter.grad
    x = trainer.bench.batch.get("x")
    return found if x is None else found | {"x": x.grad.clone()}


@pytest.mark.parametrize(
    "asked",
    [
        {"targets": "query-value"},
        {"targets": "all-linear"},
        {"targets": "all-linear", "phase": "infer"},
        {"targets": "query-value", "checkpointing": True},
        {"model": "linear-24-40", "targets": "all-linear"},
        {"model": "linear-24-40", "targets": "all-linear", "lora_dropout": 0.3},
        {"model": "smollm2", "targets": "query-value"},
        {"model": "smollm2", "targets": "all-linear", "checkpointing": True},
        {"model": "smollm2", "targets": "all-linear", "precision": "nf4"},
    ],
    ids=str,
)
def test_all_variants_have_one_loss_and_those_of_lora_one_gradient(asked):
    asked = setting(**asked)
    bench = speed_variants.make_bench(asked)
    assert len(bench.names) == (1 if asked.layer_sizes else PLACES[asked.targets][asked.model])
    trainers = {variant: Trainer(bench, variant) for variant in asked.variants}
    losses = {variant: first_pass(trainer)[0] for variant, trainer in trainers.items()}
    reference = losses["teaching"]
    without = [v for v in trainers if v not in LORA]
    packed = asked.precision == "nf4"  # products in bfloat16, and the floor has no adapters
    for variant, loss in losses.items():
        if not ((asked.lora_dropout or packed) and variant in without):
            assert loss == pytest.approx(reference, rel=1e-2 if packed else 1e-5), variant
    for layer in bench.factors.values():  # without adapters the loss is another: they do something
        layer[1].zero_()
    unadapted = first_pass(Trainer(bench, "teaching"))[0]
    assert abs(unadapted - reference) > 5e-4 * abs(reference)
    assert losses.get("floor") == pytest.approx(unadapted if packed else reference, rel=1e-5) or (
        asked.lora_dropout or asked.phase == "infer"
    )
    if asked.phase == "train":
        compare_gradients(trainers, bench, 5e-2 if packed else 1e-4)


def compare_gradients(trainers, bench, tolerance):
    found = {}
    for variant in LORA:
        if variant in trainers:
            found[variant] = gradients(trainers[variant])
            bench.batch.get("x", torch.empty(0)).grad = None
    teaching = found["teaching"]
    factors = {f"{name}.lora_{x}" for name in bench.names for x in "AB"}
    assert factors == teaching.keys() - {"x"}
    for variant, grads in found.items():
        assert grads.keys() == teaching.keys(), variant
        for name, grad in grads.items():
            assert (grad - teaching[name]).norm() <= tolerance * teaching[name].norm(), (variant, name)


@pytest.mark.parametrize("targets", TARGETS)
def test_flops_and_what_is_kept_are_what_the_sizes_say(targets):
    asked = setting(targets=targets)
    bench = speed_variants.make_bench(asked)
    head = BATCH * (SIZE.hidden + SIZE.labels) + 1  # tanh, the log-probabilities, the mean's count
    for variant in asked.variants:
        method = "lora" if variant in LORA and variant != "materialised" else variant
        arguments = (SIZE, BATCH, LENGTH, method, R, ADAPTED[targets])
        trainer = Trainer(bench, variant)
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            trainer.step()
        assert counter.get_total_flops() == costs.step_flops(*arguments).total, variant
        ids = 2 * BATCH * LENGTH * 2 * (variant == "full")  # positions and types, of 8 bytes each
        saved, grads = saved_and_gradients(trainer)
        assert saved / 4 == costs.saved_numbers(*arguments) + head + ids, variant
        trained = sum(p.numel() for p in trainer.parameters)
        assert grads == 4 * trained
        if method in ("lora", "materialised"):
            pairs = [(a.numel() + b.numel()) for a, b in bench.factors.values()]
            assert trained == sum(pairs)


def test_the_limit_of_two_thirds():
    frozen, trained = (costs.linear_flops(100, 8, 6, trains, passes=True).total for trains in (False, True))
    assert frozen / trained == pytest.approx(2 / 3)
    full, floor, head = (
        costs.step_flops(costs.EncoderSize(), 16, 128, m).total for m in ("full", "floor", "head")
    )
    assert 0.66 < floor / full < 0.69 and 0.3 < head / full < 0.34
    lora = [costs.step_flops(costs.EncoderSize(), 16, 128, "lora", r).total for r in (1, 8, 64)]
    assert floor < lora[0] < lora[1] < lora[2] < full
    with pytest.raises(ValueError, match="method must be one of full"):
        costs.step_flops(SIZE, 1, 1, "qlora")
    with pytest.raises(ValueError, match="No linear layer dense"):
        costs.saved_numbers(SIZE, 1, 1, "lora", 8, ("dense",))


def test_training_one_variant_leaves_the_shared_base_alone():
    bench = speed_variants.make_bench(setting())
    before = {n: p.clone() for n, p in bench.base.named_parameters()}
    for variant in bench.setting.variants:
        trainer = Trainer(bench, variant)
        for group in trainer.optimizer.param_groups if trainer.optimizer else []:
            group["lr"] = 0.1
        own = [p.clone() for p in trainer.parameters]
        trainer.step()
        assert all(
            not torch.equal(a, b) for a, b in zip(own, trainer.parameters, strict=True)
        ) or variant in (
            "full",  # rows of embeddings that no token reads
            "bitfit",  # a key's bias, which attention does not feel
        )
        assert all(torch.equal(p, before[n]) for n, p in bench.base.named_parameters()), variant
    assert not any(p.requires_grad for p in bench.base.parameters())


def test_the_floor_reaches_as_deep_as_adapters_and_no_deeper():
    bench = speed_variants.make_bench(setting())
    asked = []
    for variant in ("floor", "fast"):
        trainer, reached = Trainer(bench, variant), []
        for name, module in trainer.model.named_modules():
            if name.endswith(("query", "key", "output.dense")):
                module.register_forward_hook(
                    lambda m, i, y, n=name, r=reached: r.append((n, y.requires_grad))
                )
        trainer.loss()
        asked.append(reached)
    assert asked[0] == asked[1] and len(asked[0]) == SIZE.layers * 4
    assert dict(asked[0])["roberta.encoder.layer.0.attention.self.key"] is False
    assert dict(asked[0])["roberta.encoder.layer.1.attention.self.key"] is True


def test_memory_of_a_step_adds_up():
    found = memory_of_a_step(setting(model="linear-96-64", targets="all-linear"), "fast")
    factors = R * (96 + 64)
    assert found["gradients"] == 4 * factors
    assert found["optimizer"] == 2 * 4 * factors + 2 * 4  # two moments, and a count for each tensor
    assert found["weights"] == 4 * (96 * 64 + 64 + factors)
    assert found["saved"] == 4 * BATCH * LENGTH * R
    assert found["flops"] == (
        costs.linear_flops(BATCH * LENGTH, 96, 64, False, True).total
        + costs.lora_flops(BATCH * LENGTH, 96, 64, R, True).total
    )
    assert found["peak"] >= found["resting"] - 2**20


def test_a_variant_or_device_that_is_not_there_is_refused():
    bench = speed_variants.make_bench(setting())
    with pytest.raises(ValueError, match="No variant 'qlora'; there are base, full"):
        speed_variants.build(bench, "qlora")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees none here"):
            speed_variants.make_bench(setting(device="cuda"))
