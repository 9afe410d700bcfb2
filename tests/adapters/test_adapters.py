"""Saving and loading: exact, small, strict."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import RobertaForSequenceClassification

from lora_tutorial import (
    LoraConfig,
    LoraWrapperRoberta,
    inject_lora,
    load_adapter,
    load_encoder,
    lora_modules,
    merge_lora,
    save_adapter,
)


def classifier(folder, num_labels=3, seed=0):
    torch.manual_seed(seed)
    return load_encoder(folder, model_class=RobertaForSequenceClassification, num_labels=num_labels).model


def perturb(model):
    """Move everything that trains, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def injected(folder, **settings):
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "modules_to_save": ["classifier"], **settings})
    return perturb(inject_lora(classifier(folder), config))


@pytest.fixture
def ids():
    return torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_injected_models_come_back_exactly(tiny_roberta, tmp_path, ids, bias):
    model = injected(tiny_roberta, bias=bias, target_modules="all-linear", use_rslora=True)
    expected = model(ids).logits
    assert expected.shape == (3, 3)
    assert not torch.allclose(expected, classifier(tiny_roberta).eval()(ids).logits, rtol=1e-2)
    save_adapter(model, tmp_path / "a", metadata={"task": "x", "scores": {"accuracy": 0.5}})
    for base in (classifier(tiny_roberta, seed=9), None):  # head and labels come back by themselves
        loaded = load_adapter(tmp_path / "a", base)
        assert not loaded.training and torch.equal(loaded(ids).logits, expected)
        assert loaded.adapter_metadata == {"task": "x", "scores": {"accuracy": 0.5}}
        assert loaded.lora_config == model.lora_config


@pytest.mark.parametrize("task", [("glue", 2), ("glue", 1), ("squad_v1", None)])
def test_wrappers_come_back_exactly(tiny_roberta, tmp_path, ids, task):
    model = perturb(LoraWrapperRoberta(*task, model_id=tiny_roberta, lora_rank=3, lora_alpha=1))
    save_adapter(model, tmp_path / "a")
    loaded = load_adapter(tmp_path / "a")
    for key, value in model(ids).items():
        assert torch.equal(loaded(ids)[key], value)
    with pytest.raises(ValueError, match="without a base"):
        load_adapter(tmp_path / "a", loaded)


def test_only_what_trains_is_stored_and_merging_changes_neither_file(tiny_roberta, tmp_path):
    model = injected(tiny_roberta)
    save_adapter(model, tmp_path / "a")
    save_adapter(merge_lora(model), tmp_path / "b")
    tensors = load_file(tmp_path / "a" / "adapter.safetensors")
    assert set(tensors) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter.json", "adapter.safetensors"]
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def tamper(folder, change):
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors")


NAME = "roberta.encoder.layer.0.attention.self.query.lora_A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), "missing.*query.lora_A"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected.*extra"),
        (lambda t: t.update({NAME: t[NAME].T.contiguous()}), r"query.lora_A is \(24, 2\) in the adapter"),
        (lambda t: t.pop("classifier.out_proj.bias"), "frozen parameters differ|missing"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_roberta, tmp_path, change, message):
    save_adapter(injected(tiny_roberta), tmp_path / "a")
    tamper(tmp_path / "a", change)
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path / "a", classifier(tiny_roberta))


def test_another_base_is_refused_and_stays_as_it_was(tiny_roberta, tmp_path, ids):
    save_adapter(injected(tiny_roberta), tmp_path / "a")
    other = classifier(tiny_roberta)
    with torch.no_grad():
        other.roberta.encoder.layer[1].output.dense.weight[0, 0] += 1e-6
    before = other(ids).logits
    with pytest.raises(ValueError, match="not the one that the adapter was trained on"):
        load_adapter(tmp_path / "a", other)
    assert torch.equal(other(ids).logits, before) and not list(lora_modules(other))
    with pytest.raises(
        ValueError, match=r"classifier.out_proj.(weight|bias) is \((3|3, 24|3,)\) in the adapter"
    ):
        load_adapter(tmp_path / "a", classifier(tiny_roberta, num_labels=2))


def test_damaged_files_and_folders(tiny_roberta, tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter.json is missing"):
        load_adapter(tmp_path)
    save_adapter(injected(tiny_roberta), tmp_path / "a")
    weights = tmp_path / "a" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(tmp_path / "a", classifier(tiny_roberta))
    settings = json.loads((tmp_path / "a" / "adapter.json").read_text())
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(settings | {"format": 99}))
    with pytest.raises(ValueError, match="damaged|format 99"):
        load_adapter(tmp_path / "a", classifier(tiny_roberta))


def test_nothing_is_lost_or_overwritten_by_a_bad_save(tiny_roberta, tmp_path):
    model = injected(tiny_roberta)
    save_adapter(model, tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    nn.init.constant_(model.classifier.out_proj.bias, float("nan"))
    with pytest.raises(ValueError, match="classifier.out_proj.bias has no data or holds"):
        save_adapter(model, tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="thesis.txt"):
        save_adapter(injected(tiny_roberta), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="no LoRA adapter"):
        save_adapter(classifier(tiny_roberta), tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"]
