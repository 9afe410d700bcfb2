"""One run: what each method trains, what the head reads, what it begins with, and that it predicts once."""

import dataclasses

import numpy as np
import pytest
import torch
from bench_rows import BAD, BRIEF, GOOD, write
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_checkpoint import make_checkpoint
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from lora_tutorial.adapters.files import load_adapter, save_adapter
from lora_tutorial.data.batches import tokenize
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import get_task
from lora_tutorial.experiments import run
from lora_tutorial.experiments.baselines import encode_splits, linear_probe, majority_baseline
from lora_tutorial.experiments.evaluate import RowEvaluator, make_evaluators, predictions_hash
from lora_tutorial.experiments.experiment import Experiment
from lora_tutorial.experiments.inputs import data_hash, fewer_scored, hold_out, make_loaders, tokenize_rows
from lora_tutorial.experiments.run import (
    TRAINED,
    build_model,
    encoder_hash,
    run_experiment,
    save_run_adapter,
    start_from,
    trained_file,
)
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.fast import FastLoraLinear
from lora_tutorial.lora.merge import factor_names, lora_modules
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.models.fast_roberta import FastLoraRobertaSelfAttention
from lora_tutorial.squad.evaluator import SquadScorer
from lora_tutorial.training.recipes import load_recipe

pytest_plugins = ["bench_fixtures"]
QUIET = {"progress": False, "cpu": True}
EVERY = LoraConfig(r=2, lora_alpha=4, target_modules=r"model\.encoder\.layer\..*\.(query|key|value|dense)")


def trains(model):
    """Kinds of parameters that train, by the last part of their names."""
    return {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("method", "kinds", "numbers"),
    [
        ("head", {"weight", "bias"}, 2 * 24 + 2 * 24 + 2),
        ("bitfit", {"weight", "bias"}, None),
        ("lora", {"lora_query_A", "lora_query_B", "lora_value_A", "lora_value_B", "weight", "bias"}, None),
        ("full", {"weight", "bias"}, None),
    ],
)
def test_a_method_trains_its_own_parameters_and_the_head(encoder, method, kinds, numbers):
    model = build_model(get_task("sst2"), method, encoder)
    assert trains(model) == kinds
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    body = {n for n, p in model.named_parameters() if n.startswith("model.") and "pooler" not in n}
    if method == "head":
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == numbers
    if method == "bitfit":
        assert {n for n in body if n.endswith("bias")} == body - frozen
    if method == "full":
        assert not body & frozen
    assert all(n in frozen for n, _ in model.named_parameters() if "pooler" in n), "nothing reads it"
    base = encoder_hash(load_encoder(encoder).model)
    assert encoder_hash(model.model) == base


def test_only_some_layers_weights_train_where_it_says_so(data, encoder):
    model = build_model(get_task("sst2"), "full", encoder, only=["query", "value"])
    body = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("model.")}
    weights = {n for n in dict(model.named_parameters()) if n.endswith(("query.weight", "value.weight"))}
    assert body == weights and len(weights) == 2 * model.model.config.num_hidden_layers
    with pytest.raises(ValueError, match="'qury' matches no module"):
        build_model(get_task("sst2"), "full", encoder, only=["qury"])
    planned = Experiment(load_recipe("quick", **BRIEF), "sst2", encoder, "full", str(data), only=("query",))
    before = encoder_hash(load_encoder(encoder).model)
    done = run_experiment(planned, **QUIET)
    assert done.record.config["only"] == ["query"] and encoder_hash(done.model.model) != before
    for wrong in ({"only": "query"}, {"only": ("query",), "method": "lora"}):
        with pytest.raises(ValueError, match="must be a list of layers' names, for method 'full'"):
            dataclasses.replace(planned, **wrong)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "pissa"])
def test_an_adapter_goes_where_its_configuration_says(encoder, variant):
    model = build_model(get_task("sst2"), "lora", encoder, lora=EVERY, variant=variant)
    adapted = {name.rpartition(".lora_")[0] for name in factor_names(model)}
    assert len(adapted) == 2 * 6 and not any("pooler" in n or "finetune" in n for n in adapted)
    same = build_model(get_task("sst2"), "lora", encoder, lora=LoraConfig(2, 4, target_modules="all-linear"))
    assert {name.rpartition(".lora_")[0] for name in factor_names(same)} == adapted, "not the pooler"
    if variant in ("lora", "rslora"):
        assert {type(module) for _, module in lora_modules(model)} == {FastLoraLinear}, "fast unless asked"
    by_hand = build_model(get_task("sst2"), "lora", encoder, lora=LoraConfig(r=2, lora_alpha=4))
    assert {type(module) for _, module in lora_modules(by_hand)} == {FastLoraRobertaSelfAttention}
    assert {n.partition("lora_")[2] for n in factor_names(by_hand)} == {
        "query_A",
        "query_B",
        "value_A",
        "value_B",
    }


def test_loraplus_learns_b_faster(data, encoder, monkeypatch):
    rates = {}
    original = torch.optim.AdamW.__init__

    def look(self, groups, *rest, **options):
        original(self, groups, *rest, **options)
        rates[len(rates)] = sorted({group["lr"] for group in self.param_groups})

    monkeypatch.setattr(torch.optim.AdamW, "__init__", look)
    recipe = load_recipe("cpu", learning_rate=1e-3, **BRIEF)
    for variant in ("lora", "loraplus"):
        run_experiment(
            Experiment(recipe, "sst2", encoder, "lora", str(data), lora=EVERY, variant=variant), **QUIET
        )
    assert rates[0] == [1e-3] and rates[1] == pytest.approx([1e-3, 16e-3])


def test_a_quantised_base_is_not_sharded(data, encoder):
    experiment = Experiment(load_recipe("cpu", **BRIEF), "sst2", encoder, "lora", str(data), bits=4)
    with pytest.raises(ValueError, match="bits=4: quantised weights cannot be sharded"):
        run_experiment(experiment, shard=True, **QUIET)


def test_four_bits_hold_the_base_and_the_adapter_is_whole(encoder):
    model = build_model(get_task("sst2"), "lora", encoder, lora=EVERY, bits=4)
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    packed = [n for n, dtype in dtypes.items() if dtype == torch.uint8]
    assert len(packed) >= 12 and all(n.endswith("weight") for n in packed)
    assert all(dtypes[n] == torch.float32 for n in factor_names(model))
    assert dtypes["finetune_head_classifier.weight"] == torch.float32
    assert (
        build_model(get_task("sst2"), "head", encoder, bits=4)
        .model.encoder.layer[0]
        .output.dense.weight.dtype
        == torch.uint8
    )


def test_the_methods_and_settings_that_there_are():
    with pytest.raises(ValueError, match="method must be one of head, bitfit.*'lroa'"):
        build_model(get_task("sst2"), "lroa")
    with pytest.raises(ValueError, match="bits must be 4 or left out; got 8"):
        Experiment(load_recipe("quick"), bits=8)
    with pytest.raises(ValueError, match="starts from 'mnli' and start=None.*or neither"):
        Experiment(load_recipe("paper", "mrpc"), "mrpc")


@pytest.mark.parametrize("lora", [LoraConfig(), EVERY], ids=["by hand", "injected"])
def test_a_saved_run_predicts_what_it_predicted(data, encoder, lora, tmp_path):
    recipe = load_recipe("cpu", learning_rate=1e-2, **BRIEF)
    experiment = Experiment(recipe, "sst2", encoder, "lora", str(data), lora=lora, pooling="mean")
    result = run_experiment(experiment, keep_predictions=True, **QUIET)
    save_run_adapter(result, tmp_path / "adapter")
    again = make_evaluators(
        result.loaded.task,
        tokenize_rows(result.loaded, load_tokenizer(encoder), recipe),
        load_tokenizer(encoder),
        recipe,
    )["validation"].evaluate(load_adapter(tmp_path / "adapter"))
    assert again.summary(True) == result.record.extra["splits"]["validation"]


def test_what_training_ended_with_is_predicted_once(questions, question_encoder, data, encoder, monkeypatch):
    calls = []
    for kind in (RowEvaluator, SquadScorer):
        name = "evaluate" if kind is RowEvaluator else "__call__"
        original = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *a, do=original: calls.append(1) or do(*a))
    recipe = load_recipe("cpu", "squad", epochs=2)
    run_experiment(Experiment(recipe, "squad", question_encoder, "lora", str(questions)), **QUIET)
    run_experiment(Experiment(load_recipe("cpu", **BRIEF), "sst2", encoder, "lora", str(data)), **QUIET)
    assert len(calls) == 2 + 2, "once an epoch"
    best = load_recipe("cpu", **BRIEF, keep_best=True)
    run_experiment(Experiment(best, "sst2", encoder, "lora", str(data)), **QUIET)
    assert len(calls) == 4 + 3, "the best epoch's weights may be others than the last one's"


def test_the_recipes_attention_dropout_reaches_each_layer(questions, question_encoder, monkeypatch):
    seen = []

    def look(model, *rest, **options):
        seen.extend(m.dropout.p for m in model.modules() if isinstance(m, RobertaSelfAttention))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", look)
    for dropout in (0.0, 0.3, None):
        recipe = load_recipe("cpu", "squad", attention_dropout=dropout)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(Experiment(recipe, "squad", question_encoder, "lora", str(questions)))
    assert seen == [0.0, 0.0, 0.3, 0.3, 0.1, 0.1], "two layers; the encoder's own is 0.1"


def test_the_held_out_rows_are_a_share_of_those_a_run_would_train_on(data):
    loaded, recipe = load_task("sst2", data), load_recipe("cpu", max_examples=20)
    parts = hold_out(loaded, recipe, 0.2).data
    train, held = set(parts["train"]["sentence"]), set(parts["held_out"]["sentence"])
    capped = loaded.data["train"].select(recipe.subset(40))["sentence"]
    assert (len(train), len(held)) == (16, 4) and train | held == set(capped)
    assert parts["validation"]["sentence"] == loaded.data["validation"]["sentence"]
    assert hold_out(loaded, recipe, 0.2).data["held_out"]["sentence"] == parts["held_out"]["sentence"]
    with pytest.raises(ValueError, match="held_out=1 is not a share"):
        hold_out(loaded, recipe, 1)


def test_fewer_rows_are_scored_where_that_is_asked_and_all_of_them_train(data, encoder):
    loaded = load_task("sst2", data)
    some = fewer_scored(loaded, 10).data
    assert some["train"]["sentence"] == loaded.data["train"]["sentence"]
    assert len(set(some["validation"]["sentence"])) == 10 < len(loaded.data["validation"])
    assert set(some["validation"]["sentence"]) < set(loaded.data["validation"]["sentence"])
    assert fewer_scored(loaded, 10).data["validation"]["sentence"] == some["validation"]["sentence"]
    assert len(fewer_scored(loaded, 1000).data["validation"]) == len(loaded.data["validation"])
    planned = Experiment(load_recipe("cpu", **BRIEF), "sst2", encoder, "head", str(data), scored=10)
    record = run_experiment(planned, every_split=True, **QUIET).record
    assert record.extra["splits"]["validation"]["rows"] == 10 and record.config["scored"] == 10
    with pytest.raises(ValueError, match="scored=-1: give a number of rows, or 0"):
        dataclasses.replace(planned, scored=-1)


def test_of_questions_whole_articles_are_scored(questions):
    loaded = load_task("squad_v2-articles", questions)
    rows = loaded.data["train"]
    some = fewer_scored(loaded._replace(data={"validation": rows}), len(rows) // 2).data["validation"]
    left = set(rows["title"]) - set(some["title"])
    assert left and len(rows) // 2 <= len(some) < len(rows)
    assert len(some) == sum(title not in left for title in rows["title"]), "of an article all or nothing"


def test_the_training_rows_are_the_recipes_draw_whatever_the_seed(data, encoder):
    loaded, tokenizer = load_task("sst2", data), load_tokenizer(encoder)
    recipe = load_recipe("cpu", max_examples=7)
    tokens = tokenize_rows(loaded, tokenizer, recipe)["train"]
    chosen = loaded.data["train"].select(recipe.subset(40, seed=0))["sentence"]
    assert [tokenizer(text)["input_ids"] for text in chosen] == list(tokens["input_ids"])
    assert recipe.subset(40, seed=0) != recipe.subset(40, seed=1)


def test_the_data_hash_is_over_every_row_split_and_letter():
    """Records hold such hashes, so a change of the rule would make every one of them another's."""
    rows = {
        "train": Dataset.from_list([{"text": "Köln", "label": 1}]),
        "test": Dataset.from_list([{"text": ""}]),
    }
    first = data_hash(rows)
    assert first == "22ade2c9b5a96ba86831111c5b04a54004e77c13e82dabacc87993cc45174ddc"
    assert data_hash(reversed(list(rows.items()))) == first
    assert data_hash({"train": rows["train"]}) != first != data_hash(rows | {"test": rows["train"]})


def test_of_questions_whole_articles_are_held_out_and_the_threshold_has_its_own(questions, question_encoder):
    loaded = load_task("squad_v2-articles", questions)
    parts = hold_out(loaded, load_recipe("cpu", "squad"), 0.2).data
    assert not set(parts["train"]["title"]) & set(parts["held_out"]["title"])
    assert set(parts["train"]["title"]) | set(parts["held_out"]["title"]) == set(
        loaded.data["train"]["title"]
    )
    recipe = load_recipe("cpu", "squad_v2-articles", max_examples=10)
    assert recipe.max_length == 384
    tokens = tokenize_rows(loaded, load_tokenizer(question_encoder), recipe)
    assert len(tokens["train"]) == 10, "windows count against max_examples"
    assert len(set(tokens["threshold"]["title"])) == 1


def test_a_development_set_without_the_articles_is_refused(article_files):
    with pytest.raises(ValueError, match="whole development set.*19 are not there, such as 'Amazon_rain"):
        load_task("squad_v2-articles", article_files)


def test_the_real_partition_has_the_published_counts(data_folder):
    rows = load_task("squad_v2-articles", data_folder).data
    assert (len(rows["train"]), len(rows["validation"])) == (5795, 6078)
    assert sum(not answer["text"] for answer in rows["validation"]["answers"]) == 3168


# ---- the start of a run ----


@pytest.fixture(params=["adapter", "run"])
def earlier(request, encoder, tmp_path):
    """What another task's training left, with factors that are not a fresh model's."""
    model = build_model(get_task("sst2"), "lora", encoder, seed=5)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.fill_(0.01 * (number + 1))
    save_adapter(model, tmp_path / "adapter", {"task": "sst2"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / TRAINED).write_bytes(trained_file(model, encoder_hash(model.model)))
    return tmp_path / request.param, model


def test_what_training_left_has_one_hash(encoder):
    model = build_model(get_task("sst2"), "lora", encoder)
    assert len({trained_file(model, encoder_hash(model.model)) for _ in range(20)}) == 1


def test_a_start_brings_the_factors_and_leaves_the_head(earlier, encoder):
    folder, old = earlier
    model = build_model(get_task("stsb"), "lora", encoder)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    start_from(model, folder)
    theirs = dict(old.named_parameters())
    for name, value in model.named_parameters():
        if "lora" in name:
            assert torch.equal(value, theirs[name]) and not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
        assert value.requires_grad == ("lora" in name or name.startswith("finetune_head_"))


def test_what_cannot_be_a_start_is_refused_and_nothing_changes(earlier, encoder, tmp_path):
    folder, _ = earlier
    fresh = build_model(get_task("stsb"), "lora", encoder, lora=LoraConfig(r=4))
    before = [value.detach().clone() for value in fresh.parameters()]
    with pytest.raises(ValueError, match="same method|in the adapter but"):
        start_from(fresh, folder)
    assert all(map(torch.equal, before, fresh.parameters()))
    with pytest.raises(ValueError, match="same method"):
        start_from(build_model(get_task("stsb"), "lora+bias+norm", encoder), folder)
    elsewhere = str(make_checkpoint(tmp_path / "elsewhere" / "tiny", GOOD + BAD, seed=1))
    with pytest.raises(ValueError, match="another base"):
        start_from(build_model(get_task("stsb"), "lora", elsewhere), folder)
    with pytest.raises(FileNotFoundError, match="no adapter folder"):
        start_from(fresh, tmp_path / "absent")


# ---- predictions and baselines ----


class OddLengths(torch.nn.Module):
    """Class 1 for an input of an odd number of tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, attention_mask, **rest):
        odd = attention_mask.sum(1) % 2
        logits = torch.nn.functional.one_hot(odd, 2).float()  # (batch, 2)
        return type("Output", (), {"logits": logits})


def test_predictions_are_kept_in_the_order_of_the_rows(data, encoder):
    loaded, tokenizer = load_task("sst2", data), load_tokenizer(encoder)
    tokens = tokenize(loaded, tokenizer, 64)["validation"]
    lengths = [len(ids) for ids in tokens["input_ids"]]
    assert lengths != sorted(lengths) and len({length % 2 for length in lengths}) == 2
    found = RowEvaluator("accuracy", tokens, tokenizer).evaluate(OddLengths())
    assert found.predictions == [float(length % 2) for length in lengths]
    assert found.summary(True)["predictions"] == "".join(str(length % 2) for length in lengths)
    assert found.summary(True)["labels"] == "".join(map(str, loaded.data["validation"]["label"]))
    assert "labels" not in found.summary()
    right = np.mean([length % 2 == label for length, label in zip(lengths, tokens["labels"], strict=True)])
    assert found.scores["accuracy"] == pytest.approx(right)


def test_the_hash_depends_on_each_prediction_and_on_their_order():
    first = predictions_hash(["Köln", ""])
    assert first != predictions_hash(["", "Köln"]) and first != predictions_hash(["Koln", ""])
    assert first == predictions_hash(("Köln", "")) and predictions_hash([1]) == predictions_hash([1.00001])
    # Letters beyond ASCII are hashed as UTF-8; records hold such hashes.
    assert first.startswith("5494d1acbb124926")


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_the_probe_is_scikit_learns_on_the_pooled_vectors(data, encoder, pooling):
    loaded, model, tokenizer = load_task("sst2", data), *load_encoder(encoder)
    recipe = load_recipe("quick", batch_size=8)
    loaders = make_loaders(loaded, tokenizer, recipe)
    probe = linear_probe(model, loaders, load_metric("accuracy"), False, ("validation",), pooling)[
        "validation"
    ]

    def vectors(split):
        states = []
        for row in tokenize(loaded, tokenizer, 128)[split]:
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                hidden = model(ids).last_hidden_state[0]
            states.append((hidden.mean(0) if pooling == "mean" else hidden[0]).numpy())
        return np.stack(states), loaded.data[split]["label"]

    head = make_pipeline(StandardScaler(), LogisticRegression(C=probe.strength, max_iter=2000))
    guessed = head.fit(*vectors("train")).predict(vectors("validation")[0])
    lengths = [len(row["input_ids"]) for row in tokenize(loaded, tokenizer, 128)["validation"]]
    assert np.mean(guessed == np.array(probe.in_order(lengths))) > 0.9
    known = encode_splits(model, loaders, ("validation",))
    again = linear_probe(None, loaders, load_metric("accuracy"), False, ("validation",), pooling, known)
    assert again["validation"] == probe  # nothing was encoded again
    with pytest.raises(ValueError, match="pooling must be mean or first"):
        linear_probe(model, loaders, load_metric("accuracy"), False, ("validation",), "max")


def test_the_majority_and_the_mean_are_what_they_say(data):
    sst2, stsb = load_task("sst2", data), load_task("stsb", data)
    assert majority_baseline(sst2, load_metric("accuracy"), "validation") == {"accuracy": 0.5}
    assert majority_baseline(stsb, load_metric("pearson_spearman"), "validation")["pearson"] == 0


def test_a_class_with_one_row_is_no_case_for_cross_validation(encoder, tmp_path):
    rows = [{"sentence": text, "label": int(i == 0)} for i, text in enumerate((*GOOD, *BAD))]
    for split in ("train", "validation"):
        write(tmp_path / "sst2", split, rows)
    recipe = load_recipe("cpu", **BRIEF)
    with pytest.raises(ValueError, match="a class has 1 training row; give at least two"):
        run_experiment(Experiment(recipe, "sst2", encoder, "head", str(tmp_path)), baselines=True, **QUIET)


def test_baselines_stand_beside_a_run_and_pairs_have_their_path(data, encoder):
    recipe = load_recipe("cpu", **BRIEF)
    result = run_experiment(Experiment(recipe, "stsb", encoder, "head", str(data)), baselines=True, **QUIET)
    assert set(result.scores) == {"majority class", "frozen encoder, linear probe", "trained"}
    assert all({"pearson", "spearman"} == set(scores) for scores in result.scores.values())


def test_a_task_without_a_training_split_is_refused(encoder, tmp_path):
    write(tmp_path / "sst2", "validation", [{"sentence": text, "label": 1} for text in GOOD])
    experiment = Experiment(load_recipe("quick"), "sst2", encoder, source=str(tmp_path))
    for tried in (experiment, dataclasses.replace(experiment, held_out=0.2)):
        with pytest.raises(ValueError, match="no training split"):
            run_experiment(tried, **QUIET)
