"""The tutorial's model: the counts that must come out, what trains, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import RobertaForSequenceClassification

from lora_tutorial import (
    LoraRobertaSelfAttention,
    LoraWrapperRoberta,
    count_parameters,
    load_encoder,
    lora_modules,
)


def trainable(model, part):
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and part(n))


def test_roberta_base_counts():
    encoder = load_encoder("roberta-base", weights="meta").model
    classifier = load_encoder(
        "roberta-base", weights="meta", model_class=RobertaForSequenceClassification, num_labels=2
    ).model
    assert count_parameters(encoder).total == 124_645_632
    assert count_parameters(classifier).total == 124_647_170
    model = LoraWrapperRoberta("glue", 2, model_id="roberta-base", lora_rank=8, weights="meta")
    lora = trainable(model, lambda n: "lora_" in n)
    head = trainable(model, lambda n: n.startswith("finetune_head"))
    count = count_parameters(model)
    assert (lora, head, count.trainable) == (294_912, 3_074, 420_098)
    assert count.trainable - lora - head == 122_112
    assert f"{count.percent:.2f}" == "0.34" and f"{4 * count.trainable / 1e6:.2f}" == "1.68"
    model.freeze_pooler()
    assert count_parameters(model).trainable == 420_098 - 768


@pytest.fixture
def model(tiny_roberta):
    torch.manual_seed(0)
    return LoraWrapperRoberta("glue", 3, model_id=tiny_roberta, lora_rank=2, lora_alpha=6)


@pytest.fixture
def batch():
    ids = torch.randint(5, 50, (4, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_every_attention_is_replaced_and_gradients_reach_all_that_trains_but_the_pooler(model, batch):
    layers = model.model.config.num_hidden_layers
    assert sum(isinstance(m, LoraRobertaSelfAttention) for m in model.modules()) == layers
    for name, parameter in model.named_parameters():
        if name.endswith("_B"):
            nn.init.normal_(parameter)
    model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    dead = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert dead == {"model.pooler.dense.bias"}
    assert not any(p.grad is not None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("flags", "yes", "no"),
    [
        ({}, ["query.bias", "LayerNorm.weight"], ["word_embeddings.weight", "query.weight"]),
        ({"train_biases": False}, ["LayerNorm.bias"], ["query.bias"]),
        ({"train_layer_norms": False}, ["LayerNorm.bias"], ["LayerNorm.weight"]),
        ({"train_embedding": True}, ["word_embeddings.weight", "position_embeddings.weight"], ["key.weight"]),
    ],
)
def test_what_the_flags_let_train(tiny_roberta, flags, yes, no):
    model = LoraWrapperRoberta("glue", 2, model_id=tiny_roberta, lora_rank=2, **flags)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    for ending in yes:
        assert any(n.endswith(ending) for n in trains), ending
    for ending in no:
        assert not any(n.startswith("model.") and n.endswith(ending) for n in trains), ending


def test_the_head_reads_the_first_token_and_the_loss_is_the_textbooks(model, batch):
    model.eval()
    labels = torch.tensor([0, 2, 1, 1])
    out = model(**batch, labels=labels)
    hidden = model.model(**batch).last_hidden_state[:, 0]
    logits = model.finetune_head_classifier(model.finetune_head_norm(hidden))
    assert out.logits.shape == (4, 3) and torch.equal(out.logits, logits)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, labels))
    assert model(**batch).loss is None


def test_regression_compares_equal_shapes(tiny_roberta, batch):
    model = LoraWrapperRoberta("glue", 1, model_id=tiny_roberta, lora_rank=2).eval()
    labels = torch.tensor([0.0, 1.0, -2.0, 3.0])
    out = model(**batch, labels=labels)
    assert out.logits.shape == (4, 1)
    torch.testing.assert_close(out.loss, (out.logits[:, 0] - labels).square().mean())


@pytest.mark.parametrize("task", ["squad_v1", "squad_v2"])
def test_squad_scores_every_token_twice(tiny_roberta, batch, task):
    model = LoraWrapperRoberta(task, model_id=tiny_roberta, lora_rank=2).eval()
    start, end = torch.tensor([0, 3, 1, 7]), torch.tensor([2, 3, 5, 7])
    out = model(**batch, start_positions=start, end_positions=end)
    assert out.start_logits.shape == out.end_logits.shape == (4, 8)
    expected = (F.cross_entropy(out.start_logits, start) + F.cross_entropy(out.end_logits, end)) / 2
    torch.testing.assert_close(out.loss, expected)
    assert not torch.equal(out.start_logits, out.end_logits)


def test_without_a_rank_there_are_no_adapters_and_nothing_of_them_is_drawn(tiny_roberta, batch):
    models = []
    for rank in (None, 2):
        torch.manual_seed(3)
        model = LoraWrapperRoberta("glue", 2, model_id=tiny_roberta, lora_rank=rank, train_biases=False)
        models.append(model.eval())
    bare, adapted = models
    assert not list(lora_modules(bare)) and bare.init_args["lora_rank"] is None
    assert torch.equal(bare(**batch).logits, adapted(**batch).logits)  # one head, and lora_B is zero
    trains = {n for n, p in bare.named_parameters() if p.requires_grad and not n.startswith("finetune_head")}
    assert trains and all("LayerNorm" in n for n in trains)


def test_the_mean_is_over_the_tokens_that_are_no_padding(tiny_roberta, batch):
    torch.manual_seed(3)
    model = LoraWrapperRoberta("glue", 3, model_id=tiny_roberta, lora_rank=2, pooling="mean").eval()
    assert model.init_args["pooling"] == "mean"
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 5:] = mask[3, 1:] = 0
    ids = batch["input_ids"].masked_fill(mask == 0, 1)
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    pooled = torch.stack([row[: keep.sum()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
    logits = model.finetune_head_classifier(model.finetune_head_norm(pooled))
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, logits)
    torch.testing.assert_close(model(ids[3:, :1]).logits, logits[3:])  # without a mask nothing is padding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nlp", 2), "task_type must be one of glue, squad_v1, squad_v2; got 'nlp'"),
        (("glue", None), "needs num_classes.*got None"),
        (("glue", 0), "got 0"),
        (("glue", True), "got True"),
        (("squad_v1", 2), "num_classes is for glue"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoraWrapperRoberta(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"lora_rank": 0}, "r must be"),
        ({"lora_rank": None, "lora_alpha": 8}, "lora_alpha scales adapters"),
        ({"head": "bert"}, "head must be one of tutorial, roberta; got 'bert'"),
        ({"pooling": "max"}, "pooling must be one of first, mean; got 'max'"),
        ({"pooling": "mean", "head": "roberta"}, "RoBERTa's own head reads the first token"),
        ({"model_id": "no/such/encoder/folder"}, "no/such/encoder/folder"),
        ({"rank": 8, "lora_rank": 8}, "has no option rank; it has dropout_rate, model_id, lora_rank"),
    ],
)
def test_bad_options_are_refused(tiny_roberta, options, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        LoraWrapperRoberta("glue", 2, **{"model_id": tiny_roberta} | options)


def test_spans_have_no_pooling(tiny_roberta):
    with pytest.raises(ValueError, match="pooling is for glue; the head of squad_v1 reads every token"):
        LoraWrapperRoberta("squad_v1", model_id=tiny_roberta, pooling="mean")
