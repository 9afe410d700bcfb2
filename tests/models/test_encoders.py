"""The encoder without a hub is exact, and what RoBERTa does and MiniLM does not is tried on a tiny one."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    RobertaForSequenceClassification,
    RobertaModel,
)

from lora_tutorial.models import minilm as conversion
from lora_tutorial.models.encoders import load_encoder, load_tokenizer, quiet
from lora_tutorial.models.minilm import minilm_folder
from lora_tutorial.storage import downloads

TEXTS = [
    "A film I love.",
    "What a wonderful, long and winding road it was, honestly!",
    "no",
    "émigré ½ naïve",
]
OTHERS = ["Segment two.", "x", "A much longer second segment than the first one, by far.", "?"]


@pytest.fixture(scope="module")
def bert():
    with quiet():
        return BertModel.from_pretrained(downloads.fetch("minilm")).eval()


def difference(model, bert, batch):
    """Largest absolute difference of hidden states on real tokens."""
    with torch.no_grad():
        ours, theirs = model(**batch).last_hidden_state, bert(**batch).last_hidden_state
    return (ours - theirs)[batch["attention_mask"].bool()].abs().max().item()


@pytest.mark.parametrize("second", [None, OTHERS], ids=["single", "pairs"])
def test_minilm_in_robertas_class_gives_berts_hidden_states_bit_for_bit(minilm, bert, second):
    batch = minilm.tokenizer(TEXTS, second, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all(), "the batch must hold padding"
    assert bool(batch["token_type_ids"].any()) == (second is not None)
    assert difference(minilm.model, bert, batch) == 0.0
    assert torch.equal(minilm.model(**batch).pooler_output, bert(**batch).pooler_output)


def test_minilm_is_exact_up_to_its_longest_input(minilm, bert):
    batch = minilm.tokenizer([" ".join(["word"] * 600)], truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 512)
    assert difference(minilm.model, bert, batch) == 0.0


def test_without_the_shift_of_positions_minilm_is_another_function(minilm, bert):
    state = {key: value.clone() for key, value in minilm.model.state_dict().items()}
    table = state["embeddings.position_embeddings.weight"]
    assert not table[0].any() and table.shape == (513, 384)
    state["embeddings.position_embeddings.weight"] = torch.cat([table[1:], torch.zeros(1, 384)])
    unshifted = RobertaModel(minilm.model.config).eval()
    unshifted.load_state_dict(state)
    batch = minilm.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert difference(unshifted, bert, batch) > 0.5


def test_the_converted_folder_is_an_ordinary_checkpoint(minilm, bert):
    folder = minilm_folder()
    with quiet():
        assert isinstance(AutoModel.from_pretrained(folder), RobertaModel)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, RobertaForSequenceClassification) and model.num_labels == 3
    assert tokenizer(TEXTS, OTHERS) == minilm.tokenizer(TEXTS, OTHERS)
    words = model.roberta.embeddings.word_embeddings.weight
    assert torch.equal(words, bert.embeddings.word_embeddings.weight)
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0
    assert tokenizer.model_max_length == 512 and len(tokenizer(" ".join(["word"] * 200))["input_ids"]) == 202


def test_the_conversion_happens_once_and_its_folder_names_the_weights(monkeypatch, tmp_path, minilm):
    source = downloads.fetch("minilm")
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path))
    monkeypatch.setattr(conversion, "CONVERSION", 99)
    monkeypatch.setattr(downloads, "fetch", lambda name: source)
    first = minilm_folder()
    assert "53aa51172d14" in first.name and first.is_relative_to(tmp_path)
    assert load_file(first / "model.safetensors").keys() == minilm.model.state_dict().keys()
    fixed = json.loads((first / "tokenizer.json").read_text(encoding="utf-8"))
    assert fixed["truncation"] is None and fixed["padding"] is None
    monkeypatch.setattr(conversion, "load_file", pytest.fail)
    monkeypatch.setattr(downloads, "fetch", pytest.fail)
    assert minilm_folder() == first


def test_an_interrupted_conversion_leaves_nothing(monkeypatch, tmp_path):
    source = downloads.fetch("minilm")
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "fetch", lambda name: source)

    def interrupted(tensors, path, metadata):
        path.write_bytes(b"{")
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        minilm_folder()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_byte_level_roberta_pads_with_id_1_and_separates_pairs_by_two_marks(byte_level):
    model, tokenizer = load_encoder(byte_level)
    batch = tokenizer(TEXTS, OTHERS, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}, "RoBERTa has one token type"
    assert tokenizer.pad_token_id == model.config.pad_token_id == 1
    assert "</s></s>" in tokenizer.decode(batch["input_ids"][0])
    assert batch["input_ids"][0].tolist().count(tokenizer.sep_token_id) == 3
    assert tokenizer.decode(tokenizer(TEXTS[3])["input_ids"], skip_special_tokens=True) == TEXTS[3]
    padded = model(**batch).last_hidden_state
    for row, (text, other) in enumerate(zip(TEXTS, OTHERS, strict=True)):
        alone = model(**tokenizer(text, other, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(padded[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_byte_level_roberta_counts_positions_from_two(byte_level):
    model, tokenizer = load_encoder(byte_level)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    positions = mask.cumsum(1) * mask + 1  # padding stands at 1, the first token at 2
    with torch.no_grad():
        default, explicit = model(**batch), model(**batch, position_ids=positions)
    assert torch.equal(default.last_hidden_state, explicit.last_hidden_state)


def test_a_saved_encoder_comes_back_equal(byte_level, tmp_path):
    torch.manual_seed(1)
    saved = load_encoder(byte_level, model_class=RobertaForSequenceClassification, num_labels=3)
    with quiet():
        saved.model.save_pretrained(tmp_path)
        saved.tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_encoder(tmp_path, model_class=RobertaForSequenceClassification)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), saved.model.state_dict().values(), strict=True)
    )
    assert model.num_labels == 3 and load_tokenizer(tmp_path)(TEXTS) == tokenizer(TEXTS)
    with pytest.raises(ValueError, match="other shapes than RobertaForSequenceClassification"):
        load_encoder(tmp_path, model_class=RobertaForSequenceClassification, num_labels=2)


def test_weights_of_half_precision_are_loaded_in_full(byte_level, tmp_path):
    for file in os.listdir(byte_level):
        (tmp_path / file).write_bytes((byte_level / file).read_bytes())
    half = {key: value.half() for key, value in load_file(byte_level / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert load_encoder(tmp_path).model.dtype == torch.float32
