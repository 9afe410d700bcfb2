"""Shapes without a download, silence while loading, and one sentence for everything that cannot be loaded."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaModel,
)
from transformers.utils import logging as transformers_logging

from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.storage import hub
from lora_tutorial.storage.hub import HubUnreachableError


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """As on a machine without a network: nothing is cached and nothing answers."""
    from huggingface_hub import HfApi

    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub, "cached_checkpoint", lambda repository: None)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(HfApi, "dataset_info", unreachable)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "model_class", "overrides", "count"),
    [
        ("roberta-base", RobertaModel, {}, 124_645_632),
        ("FacebookAI/roberta-base", RobertaForSequenceClassification, {"num_labels": 2}, 124_647_170),
        ("roberta-large", RobertaModel, {}, 355_359_744),
        ("distilroberta-base", RobertaModel, {}, 82_118_400),
        ("minilm", RobertaModel, {}, 22_713_600),
    ],
)
def test_shapes_without_memory_or_hub_have_the_published_sizes(no_hub, name, model_class, overrides, count):
    model, _ = load_encoder(name, weights="meta", model_class=model_class, **overrides)
    assert isinstance(model, model_class) and not model.training
    assert all(parameter.is_meta for parameter in model.parameters())
    assert parameters(model) == count


def test_roberta_base_has_the_published_settings(no_hub):
    config = load_encoder("roberta-base", weights="meta").model.config
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (50265, 514, 1)
    assert (config.layer_norm_eps, config.pad_token_id, config.hidden_size) == (1e-5, 1, 768)


def test_random_weights_follow_torchs_seed_and_the_overrides(no_hub):
    def draw(seed):
        torch.manual_seed(seed)
        return load_encoder(
            "minilm", weights="random", num_hidden_layers=1, attn_implementation="eager"
        ).model

    first, again, other = draw(3), draw(3), draw(4)
    words = "embeddings.word_embeddings.weight"
    assert all(torch.equal(first.state_dict()[key], value) for key, value in again.state_dict().items())
    assert not torch.equal(first.state_dict()[words], other.state_dict()[words])
    assert first.config.num_hidden_layers == 1 and first.config._attn_implementation == "eager"


def test_the_hub_out_of_reach_ends_quickly_and_names_what_works_without_it(no_hub):
    start = time.monotonic()
    for load in (load_encoder, load_tokenizer):
        with pytest.raises(HubUnreachableError, match=r"'roberta-base'.*'minilm'.*folder.*weights='random'"):
            load("roberta-base")
    with pytest.raises(HubUnreachableError):
        load_encoder("someone/roberta-of-unknown-shape", weights="random")
    assert time.monotonic() - start < 5
    assert not hub.is_reachable()


def test_a_name_the_hub_cannot_have_is_told_apart_from_a_hub_out_of_reach():
    with pytest.raises(ValueError, match="check its name"):
        hub.require_hub("not a name!", "model", "take another")


def test_loading_writes_to_neither_stream_and_restores_the_settings(minilm, capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    model = load_encoder("minilm", model_class=RobertaForQuestionAnswering).model
    assert parameters(model) > 0
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "minilm", "weights": "none"}, ValueError, "'none' is not one of 'pretrained', 'random'"),
        ({"name": "minilm", "model_class": BertModel}, TypeError, "must be a RoBERTa class"),
        ({"name": "minilm", "model_class": None}, TypeError, "must be a RoBERTa class"),
        ({"name": "minilm", "num_label": 2}, TypeError, "no setting 'num_label'"),
        ({"name": " "}, ValueError, "name is empty"),
        ({"name": "./absent"}, FileNotFoundError, "There is no folder ./absent"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        load_encoder(**arguments)


def test_a_folder_without_a_tokenizer_has_none_instead_of_one_of_five_tokens(tiny_roberta):
    assert load_encoder(tiny_roberta).tokenizer is None
    assert load_encoder(tiny_roberta, weights="meta").tokenizer is None
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        load_tokenizer(tiny_roberta)


def test_folders_that_hold_no_whole_roberta_are_refused(tmp_path, tiny_roberta):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a 'bert' checkpoint"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="holds a 'bert' checkpoint"):
        load_encoder(tmp_path, weights="random")
    RobertaConfig.from_pretrained(tiny_roberta).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_encoder(tmp_path)
    weights = load_file(f"{tiny_roberta}/model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoder(tmp_path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights such as encoder\.layer\.1\.output\.dense\.weight"):
        load_encoder(tmp_path)
