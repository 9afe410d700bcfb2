"""Injection into whole models: what is selected, what is refused, what trains."""

import pytest
import torch
from torch import nn

from lora_tutorial import (
    LoraConfig,
    LoraLinear,
    count_parameters,
    inject_lora,
    lora_modules,
    merge_lora,
    print_trainable_parameters,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(12, 10), nn.Linear(12, 10, bias=False)
        self.norm = nn.LayerNorm(10)

    def forward(self, x):
        return self.norm(self.query(x) * torch.sigmoid(self.key(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.mix = nn.Linear(10, 12)
        self.classifier = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + self.mix(block(x))
        return self.classifier(x.mean(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def ids():
    return torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(1))


def randomise(model):
    for _, module in lora_modules(model):
        for _, lora_B in module.lora_factors().values():
            nn.init.normal_(lora_B)
    return model


def adapted(model):
    return [name for name, _ in lora_modules(model)]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query"], ["blocks.0.query", "blocks.1.query"]),
        (["0.query", "mix"], ["blocks.0.query", "mix"]),
        (r"blocks\.1\..*|mix", None),
        (r"blocks\.\d\.(query|key)", ["blocks.0.query", "blocks.0.key", "blocks.1.query", "blocks.1.key"]),
        ("all-linear", ["blocks.0.query", "blocks.0.key", "blocks.1.query", "blocks.1.key", "mix"]),
    ],
)
def test_targets_by_ending_pattern_and_all(model, targets, expected):
    config = LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
    if expected is None:  # the pattern also selects the LayerNorm
        with pytest.raises(TypeError, match=r"blocks\.1\.norm, a LayerNorm"):
            inject_lora(model, config)
        assert not adapted(model)
    else:
        assert inject_lora(model, config) is model
        assert adapted(model) == expected
        assert model.lora_config is config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["query", "qeury"]}, "'qeury' matches no module.*query"),
        ({"target_modules": ["uery"]}, "'uery' matches no module"),
        ({"target_modules": "nothing.*"}, "leaves no layer"),
        ({"target_modules": ["norm"]}, "a LayerNorm; LoRA adapts nn.Linear only"),
        (
            {"target_modules": ["mix", "query"], "r": 11},
            "r = 11 is above 10, the smaller side of blocks.0.query",
        ),
        ({"modules_to_save": ["score"]}, "modules_to_save: 'score' matches no module.*classifier"),
        ({"target_modules": ["mix"], "modules_to_save": ["mix"]}, "leaves no layer"),
    ],
)
def test_what_is_refused_leaves_the_model_untouched(model, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        inject_lora(model, LoraConfig(**{"r": 2, "target_modules": ["query"], **settings}))
    assert not adapted(model) and all(p.requires_grad for p in model.parameters())


def test_all_linear_leaves_a_head_out_even_unnamed(model):
    inject_lora(model, LoraConfig(r=2, target_modules="all-linear"))
    assert not any(name.startswith("classifier") for name in adapted(model)) and "mix" in adapted(model)


def test_a_module_is_never_wrapped_twice(model):
    inject_lora(model, LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="adapters already"):
        inject_lora(model, LoraConfig(r=2, target_modules=["mix"]))


QUERIES = {"blocks.0.query.bias", "blocks.1.query.bias"}
OTHERS = {"mix.bias", "blocks.0.norm.bias", "blocks.1.norm.bias"}


@pytest.mark.parametrize(
    ("bias", "extra"), [("none", set()), ("lora_only", QUERIES), ("all", QUERIES | OTHERS)]
)
def test_only_what_should_train_gets_gradients_and_the_base_stays_bit_identical(model, ids, bias, extra):
    before = {n: p.clone() for n, p in model.named_parameters()}
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], bias=bias)
    randomise(inject_lora(model, config))
    head = {n for n in before if n.startswith("classifier")}
    factors = {f"blocks.{i}.query.lora_{x}" for i in (0, 1) for x in "AB"}
    expected = factors | head | extra
    assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == expected
        optimizer.step()
    for name, old in before.items():
        assert torch.equal(old, model.get_parameter(name)) == (name not in expected), name


def test_one_bad_layer_leaves_no_layer_merged(model):
    randomise(inject_lora(model, LoraConfig(r=2, target_modules=["query"])))
    before = {n: p.clone() for n, p in model.named_parameters()}
    nn.init.constant_(model.blocks[1].query.lora_B, float("nan"))
    with pytest.raises(ValueError, match="infinite or NaN"):
        merge_lora(model)
    assert not any(m.merged for _, m in lora_modules(model))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items() if "lora" not in n)


def test_a_layer_under_two_names_stays_one_layer(model):
    model.again = model.mix
    inject_lora(model, LoraConfig(r=2, target_modules=["mix", "again"]))
    assert model.again is model.mix and isinstance(model.mix, LoraLinear)


def test_counting(model, capsys):
    inject_lora(model, LoraConfig(r=2, target_modules=["mix"]))
    count = count_parameters(model)
    assert count.trainable == 2 * (10 + 12)
    assert count.total == sum(p.numel() for p in Model().parameters()) + 44
    print_trainable_parameters(model)
    assert capsys.readouterr().out.startswith(
        f"trainable params: 44 || all params: {count.total:,} || trainable%: "
    )


def test_a_layer_that_make_refuses_leaves_the_model_untouched(model):
    model.blocks[0].key.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]

    def make(linear, config):
        if linear is model.mix:
            raise TypeError("not this one")
        return LoraLinear.from_linear(linear, config)

    with pytest.raises(TypeError, match="not this one"):
        inject_lora(model, LoraConfig(r=2, target_modules=["query", "mix"]), make)
    assert not adapted(model) and [p.requires_grad for p in model.parameters()] == flags
