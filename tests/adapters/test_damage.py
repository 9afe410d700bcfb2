"""Damaged adapters do not answer: each kind of damage ends in a sentence, at load, whoever loads."""

import contextlib
import json
import re
import shutil

import pytest
import torch
from adapter_folders import SETTINGS, TENSORS, as_format_1, contents, moved
from safetensors.torch import load_file
from tiny_checkpoint import make_checkpoint
from transformers import RobertaForSequenceClassification

from lora_tutorial import (
    AdapterShelf,
    LoraConfig,
    LoraWrapperRoberta,
    inject_lora,
    load_adapter,
    load_encoder,
    save_adapter,
)
from lora_tutorial.adapters.files import read_adapter

IDS = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
ABOUT = {"labels": ["no", "maybe", "yes"], "max_length": 32}
QUERY_A = "model.encoder.layer.0.attention.self.lora_query_A"
QUERY_B = "model.encoder.layer.1.attention.self.lora_query_B"
HEAD = "finetune_head_classifier.weight"


@pytest.fixture(scope="module")
def whole(tiny_roberta, tmp_path_factory):
    """An adapter of each kind, as it was saved: of the wrapper, of a model that was injected."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    wrapper = moved(LoraWrapperRoberta("glue", 3, model_id=tiny_roberta, lora_rank=2))
    plain = load_encoder(tiny_roberta, model_class=RobertaForSequenceClassification, num_labels=3).model
    injected = moved(inject_lora(plain, LoraConfig(r=2, modules_to_save=["classifier"])))
    return {
        "wrapper": save_adapter(wrapper, root / "wrapper", ABOUT),
        "injected": save_adapter(injected, root / "injected", ABOUT),
    }


@pytest.fixture
def copy(whole, tmp_path):
    """Makes a copy of an adapter that a test may spoil."""
    return lambda kind="wrapper": shutil.copytree(whole[kind], tmp_path / kind)


def refusal(action):
    """The sentence that an action ends in; it has to be one, of one of the two kinds that are promised."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        action()
    assert caught.type in (ValueError, FileNotFoundError), caught.value
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600, text
    return text


def test_whole_adapters_of_both_formats_answer(copy, tiny_roberta):
    for kind in ("wrapper", "injected"):
        folder = copy(kind)
        expected = load_adapter(folder)(IDS).logits
        as_format_1(folder)
        assert torch.equal(load_adapter(folder)(IDS).logits, expected) and expected.std() > 0.01
    shelf = AdapterShelf(tiny_roberta)
    shelf.add("old", folder.parent / "wrapper")
    assert shelf.use("old").adapter_metadata == ABOUT


def flip(data, place, bit=0):
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


BYTES = {
    "empty": lambda data: b"",
    "its first byte": lambda data: data[:1],
    "its first ten": lambda data: data[:10],
    "a third of it": lambda data: data[: len(data) // 3],
    "all but ten bytes": lambda data: data[:-10],
    "all but two bytes": lambda data: data[:-2],
    "one byte more": lambda data: data + b"\0",
    "another first byte": lambda data: flip(data, 0),
    "another byte in the header": lambda data: flip(data, 40),
    "another byte in the middle": lambda data: flip(data, len(data) // 2, 7),
    "another last byte": lambda data: flip(data, len(data) - 2, 3),
    "zeros": lambda data: bytes(len(data)),
    "a web page": lambda data: b"<!doctype html><title>Sign in</title>",
}


@pytest.mark.parametrize("name", [SETTINGS, TENSORS])
@pytest.mark.parametrize("damage", BYTES)
def test_other_bytes_are_refused(copy, tiny_roberta, name, damage):
    folder = copy()
    file = folder / name
    file.write_bytes(BYTES[damage](file.read_bytes()))
    assert "is damaged: " in refusal(lambda: load_adapter(folder)).replace("adapter format", "is damaged: ")
    shelf = AdapterShelf(tiny_roberta)
    refusal(lambda: shelf.add("bad", folder))
    assert shelf.names == []


def test_no_flipped_bit_gets_past_the_checksum(copy):
    folder = copy()
    for name, step in ((SETTINGS, 1), (TENSORS, 97)):
        before = (folder / name).read_bytes()
        for place in range(0, len(before), step):
            (folder / name).write_bytes(flip(before, place, place % 8))
            refusal(lambda: read_adapter(folder))
        (folder / name).write_bytes(before)
    read_adapter(folder)


def test_files_of_two_adapters_do_not_mix(copy, whole):
    for name in (SETTINGS, TENSORS):
        folder = copy()
        other = moved(load_adapter(folder), seed=1)
        shutil.rmtree(folder)
        save_adapter(other, folder, ABOUT)
        shutil.copyfile(whole["wrapper"] / name, folder / name)
        assert "SHA-256" in refusal(lambda folder=folder: load_adapter(folder))
        (folder / name).unlink()
        assert f"{name} is missing" in refusal(lambda folder=folder: load_adapter(folder))
        shutil.rmtree(folder)


def test_the_first_formats_tensors_file_is_whole_or_refused(copy):
    """Without a checksum a flipped bit of a number can't be seen; what the header says can."""
    folder = as_format_1(copy())
    data = (folder / TENSORS).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    own = load_file(folder / TENSORS)
    for place in range(0, header, 7):
        (folder / TENSORS).write_bytes(flip(data, place, place % 7))
        with contextlib.suppress(ValueError):
            _, tensors = read_adapter(folder)  # a name is another, or two ranges of equal size
            assert tensors.keys() != own.keys() or any(t.shape != own[n].shape for n, t in tensors.items())


def put(path, value):
    """A change that sets one entry of the settings, its path joined by dots."""

    def change(settings, tensors):
        *above, last = path.split(".")
        for key in above:
            settings = settings[key]
        settings[last] = value

    return change


def drop(path):
    def change(settings, tensors):
        *above, last = path.split(".")
        for key in above:
            settings = settings[key]
        del settings[last]

    return change


def tensor(name, make):
    return lambda settings, tensors: tensors.update({name: make(tensors[name])})


def spoil(value):
    def make(tensor):
        tensor.view(-1)[1] = value
        return tensor

    return make


NAN, INF = float("nan"), float("inf")
WRAPPER = {
    "a list": (lambda s, t: [], "adapter.json is damaged: it holds a list"),
    "null": (lambda s, t: "null", "adapter.json is damaged: it holds null"),
    "a number": (lambda s, t: 3, "it holds a whole number"),
    "no format": (drop("format"), "adapter format None; this version reads 1 and 2"),
    "a later format": (put("format", 99), "adapter format 99"),
    "a format in words": (put("format", "2"), "adapter format '2'"),
    "no base": (drop("base"), "base is missing"),
    "base null": (put("base", None), "its base is null, not an object"),
    "no metadata": (drop("metadata"), "metadata is missing"),
    "metadata a list": (put("metadata", []), "its metadata is a list, not an object"),
    "no count": (drop("parameters"), "parameters is missing"),
    "a count in words": (put("parameters", "many"), "its parameters is a text, not a whole number"),
    "no name": (drop("base.name"), "base.name is missing"),
    "name a number": (put("base.name", 7), "its base.name is a whole number, not a text"),
    "no hash": (drop("base.sha256_of_frozen_parameters"), "base.sha256_of_frozen_parameters is missing"),
    "another hash": (put("base.sha256_of_frozen_parameters", "0" * 64), "not .* trained on"),
    "folder a number": (put("base.folder", 1), "base.folder"),
    "wrapper a text": (put("base.wrapper", "glue"), "its base.wrapper is a text, not an object"),
    "no task": (drop("base.wrapper.task_type"), "base.wrapper.task_type is missing"),
    "no encoder": (drop("base.wrapper.model_id"), "base.wrapper.model_id is missing"),
    "a task of no kind": (put("base.wrapper.task_type", "glee"), "task_type must be one of"),
    "rank a text": (put("base.wrapper.lora_rank", "2"), "its base.wrapper.lora_rank is '2'"),
    "rank true": (put("base.wrapper.lora_rank", True), "its base.wrapper.lora_rank is True"),
    "another rank": (put("base.wrapper.lora_rank", 3), "lora_query_A is .2, 24. in the adapter"),
    "rank above the size": (put("base.wrapper.lora_rank", 999), "r = 999 is above 24"),
    "scale NaN": (put("base.wrapper.lora_alpha", NAN), "lora_alpha must be positive and finite"),
    "weights of no kind": (put("base.wrapper.weights", "some"), "its base.wrapper.weights is 'some'"),
    "an unknown setting": (put("base.wrapper.rank", 2), "base.wrapper.rank, which no wrapper has"),
    "a switch of 1": (put("base.wrapper.train_biases", 1), "its base.wrapper.train_biases is 1"),
    "too few labels": (put("metadata.labels", ["no", "yes"]), "names 2 labels, and the head has 3 outputs"),
    "labels a text": (put("metadata.labels", "yes"), "names no list of labels"),
    "texts too long": (put("metadata.max_length", 1000), "max_length 1000, and its encoder takes at most 38"),
    "a length in words": (put("metadata.max_length", "long"), "its metadata.max_length is 'long'"),
    "no length": (put("metadata.max_length", 0), "its metadata.max_length is 0"),
    "a factor less": (lambda s, t: t.pop(QUERY_A), "1 tensors missing .*lora_query_A"),
    "no head": (lambda s, t: t.pop(HEAD), "1 tensors missing .*finetune_head_classifier.weight"),
    "a bias less": (lambda s, t: t.pop("model.encoder.layer.0.output.dense.bias"), "not .* trained on"),
    "nothing": (lambda s, t: t.clear(), "tensors missing"),
    "one more": (lambda s, t: t.update(extra=torch.zeros(1)), "1 unexpected .'extra'."),
    "a factor transposed": (tensor(QUERY_A, lambda t: t.T.contiguous()), r"lora_query_A is \(24, 2\) in"),
    "a head of two": (tensor(HEAD, lambda t: t[:2].clone()), r"classifier.weight is \(2, 24\) in"),
    "half precision": (tensor(QUERY_A, torch.Tensor.half), "lora_query_A is torch.float16 in the adapter"),
    "whole numbers": (tensor(QUERY_A, torch.Tensor.int), "lora_query_A holds whole numbers, an infinity"),
    "NaN in the head": (
        tensor(HEAD, spoil(NAN)),
        "classifier.weight holds whole numbers, an infinity or NaN",
    ),
    "infinity in the head": (tensor(HEAD, spoil(INF)), "classifier.weight holds"),
    "NaN in a factor": (tensor(QUERY_B, spoil(NAN)), "lora_query_B holds"),
}
INJECTED = {
    "no wrapper, no class": (drop("base.class"), "base.class is missing"),
    "a class of no library": (
        put("base.class", "BertaModel"),
        "a BertaModel, is no RoBERTa model .* pass base=",
    ),
    "another model's class": (put("base.class", "GPT2Model"), "a GPT2Model, is no RoBERTa model"),
    "something that is no class": (put("base.class", "pipeline"), "a pipeline, is no RoBERTa model"),
    "no name": (put("base.name", ""), "has no name to load it by: pass base="),
    "labels a list": (put("base.id2label", []), "its base.id2label is a list, not an object"),
    "labels by name": (put("base.id2label", {"a": "b"}), "keys of its base.id2label are not numbers"),
    "no settings of LoRA": (drop("base.lora"), "base.lora is missing"),
    "no rank": (drop("base.lora.r"), "base.lora.r is missing"),
    "no scale": (drop("base.lora.lora_alpha"), "base.lora.lora_alpha is missing"),
    "rank a text": (put("base.lora.r", "2"), "its base.lora is refused .r must be the rank"),
    "targets a number": (put("base.lora.target_modules", 5), "its base.lora is refused .target_modules"),
    "targets that are not there": (put("base.lora.target_modules", ["quary"]), "'quary' matches no module"),
    "an unknown setting": (put("base.lora.rank", 2), "refused .Unknown LoRA settings: rank"),
    "an unknown variant": (put("base.variant", "vera"), "base.variant"),
    "variant a list": (put("base.variant", ["lora"]), "base.variant"),
    "two outputs": (put("base.id2label", {"0": "a", "1": "b"}), "names 3 labels, and the head has 2 outputs"),
}


def check(folder, change, says):
    """Whatever is wrong shows without the checksum too, which the first format did not have."""
    as_format_1(folder, change)
    before = contents(folder)
    text = refusal(lambda: load_adapter(folder))
    assert re.search(says, text), text
    assert contents(folder) == before


@pytest.mark.parametrize("damage", WRAPPER)
def test_a_wrapper_that_is_not_whole_is_refused(copy, damage):
    check(copy("wrapper"), *WRAPPER[damage])


@pytest.mark.parametrize("damage", INJECTED)
def test_an_injected_model_that_is_not_whole_is_refused(copy, damage):
    check(copy("injected"), *INJECTED[damage])


def test_settings_that_somebody_edited_are_refused(copy):
    folder = copy()
    settings = json.loads((folder / SETTINGS).read_text())
    settings["base"]["wrapper"]["lora_alpha"] = 9
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert "SHA-256" in refusal(lambda: load_adapter(folder))


def test_a_given_base_stays_as_it_was(copy, tiny_roberta):
    base = load_encoder(tiny_roberta, model_class=RobertaForSequenceClassification, num_labels=3).model.eval()
    before, trained = base(IDS).logits, [p.requires_grad for p in base.parameters()]
    for change in (
        lambda s, t: t.update(extra=torch.zeros(1)),
        lambda s, t: t.pop("roberta.encoder.layer.0.attention.self.query.lora_A"),
        put("base.sha256_of_frozen_parameters", "0" * 64),
    ):
        folder = as_format_1(copy("injected"), change)
        refusal(lambda folder=folder: load_adapter(folder, base))
        shutil.rmtree(folder)
        assert torch.equal(base(IDS).logits, before)
        assert [p.requires_grad for p in base.parameters()] == trained


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path):
    model = load_encoder(make_checkpoint(tmp_path / "good", ["a day", "a night"])).model
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "good")
    assert "tokens and the model 100: save the model with its own" in refusal(
        lambda: load_encoder(tmp_path / "good")
    )


def test_what_would_be_refused_is_not_saved(tiny_roberta, tmp_path):
    model = LoraWrapperRoberta("glue", 3, model_id=tiny_roberta, lora_rank=2)
    for metadata, says in (
        ({"labels": ["no", "yes"]}, "names 2 labels, and the head has 3 outputs"),
        ({"score": NAN}, "are no JSON"),
        ({"when": object()}, "are no JSON"),
    ):
        text = refusal(lambda metadata=metadata: save_adapter(model, tmp_path / "a", metadata))
        assert says in text
        assert not (tmp_path / "a").exists()
