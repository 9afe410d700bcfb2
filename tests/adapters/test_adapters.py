"""Saving and loading: exact, small, strict."""

import shutil
from pathlib import Path

import pytest
import torch
from adapter_folders import moved
from safetensors.torch import load_file
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
from lora_tutorial.adapters.files import base_of, read_adapter


def classifier(folder, num_labels=3, seed=0):
    torch.manual_seed(seed)
    return load_encoder(folder, model_class=RobertaForSequenceClassification, num_labels=num_labels).model


def injected(folder, **settings):
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "modules_to_save": ["classifier"], **settings})
    return moved(inject_lora(classifier(folder), config), scale=1)


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
    model = moved(LoraWrapperRoberta(*task, model_id=tiny_roberta, lora_rank=3, lora_alpha=1), scale=1)
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


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="adapter.json is missing"):
        load_adapter(tmp_path)


def test_an_encoder_in_a_relative_folder_is_found_from_anywhere(tiny_roberta, tmp_path, ids, monkeypatch):
    shutil.copytree(tiny_roberta, tmp_path / "project" / "encoder")
    monkeypatch.chdir(tmp_path / "project")
    wrapper = moved(LoraWrapperRoberta("glue", 2, model_id="encoder"), scale=1)
    for name, model in (("wrapper", wrapper), ("injected", injected("encoder"))):
        expected = model(ids).logits
        folder = save_adapter(model, f"adapters/{name}")
        assert str(tmp_path) not in (folder / "adapter.json").read_text()
        monkeypatch.chdir(tmp_path)
        saved = Path("project", folder)
        assert base_of(saved, read_adapter(saved)[0]) == str(tmp_path / "project" / "encoder")
        assert torch.equal(load_adapter(saved)(ids).logits, expected)
        Path("project").rename("elsewhere")  # both together
        saved = Path("elsewhere", folder)
        loaded = load_adapter(saved)
        assert torch.equal(loaded(ids).logits, expected)
        save_adapter(loaded, "again")
        shutil.copytree(saved, "alone")
        with pytest.raises(
            FileNotFoundError, match=r"'encoder', ../../encoder from .* load_adapter.folder, base="
        ):
            load_adapter("alone")
        for moved_alone in ("alone", "again"):  # "again" has an absolute path
            assert torch.equal(load_adapter(moved_alone, "elsewhere/encoder")(ids).logits, expected)
            shutil.rmtree(moved_alone)
        Path("elsewhere").rename("project")
        monkeypatch.chdir(tmp_path / "project")


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
