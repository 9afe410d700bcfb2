"""What a run is scored by: baselines, predictions and their hash, for classes, numbers and spans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from datasets import DatasetDict
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_tutorial.adapters.files import adapter_tensors
from lora_tutorial.data.batches import make_loader, tokenize
from lora_tutorial.data.metrics import TaskMetric, load_metric
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.squad.evaluator import SquadScorer
from lora_tutorial.squad.threshold import split_by_article
from lora_tutorial.squad.windows import make_windows
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.trainer import evaluate_model


def majority_baseline(loaded: LoadedTask, metric: TaskMetric, split: str = "test") -> dict[str, float]:
    """The score of always giving the commonest training class (the mean, for a regression)."""
    train_labels = loaded.data["train"]["label"]
    dummy = DummyRegressor() if loaded.task.regression else DummyClassifier(strategy="most_frequent")
    dummy.fit([[0]] * len(train_labels), train_labels)
    gold = loaded.data[split]["label"]
    return metric.compute(predictions=dummy.predict([[0]] * len(gold)), references=list(gold))


def frozen_encoder_baseline(
    model: LoraWrapperRoberta, loaders: Loaders, metric: TaskMetric, regression: bool, split: str = "test"
) -> dict[str, float]:
    """The score of a linear head on the frozen encoder's first token: what is there before any adaptation.

    ``model`` must be fresh: its adapters add nothing yet. The head is scikit-learn's, trained to its optimum
    on the same training rows.
    """
    x, y = _first_tokens(model.model, loaders.train)
    head = RidgeCV(alphas=(0.1, 1, 10, 100, 1000)) if regression else LogisticRegression(C=0.1, max_iter=1000)
    fitted = make_pipeline(StandardScaler(), head).fit(x, y)
    x, y = _first_tokens(model.model, loaders.scored[split])
    return metric.compute(predictions=fitted.predict(x), references=y)


@torch.no_grad()
def _first_tokens(encoder: nn.Module, loader: DataLoader) -> tuple[Any, Any]:
    """First token of the last hidden state, (rows, hidden), and the labels, (rows,), as NumPy arrays."""
    encoder.eval()
    states, labels = [], []
    for batch in loader:
        labels.append(batch.pop("labels"))
        batch = {key: value.to(encoder.device) for key, value in batch.items()}
        states.append(encoder(**batch).last_hidden_state[:, 0].float().cpu())
    return torch.cat(states).numpy(), torch.cat(labels).numpy()


class _KeepsPredictions:
    """A metric that also keeps what it was given."""

    def __init__(self, metric: TaskMetric) -> None:
        self.metric, self.predictions = metric, []

    def add_batch(self, predictions: Any, references: Any) -> None:
        self.predictions.extend(predictions.tolist())
        self.metric.add_batch(predictions=predictions, references=references)

    def compute(self) -> dict[str, float]:
        return self.metric.compute()


def score_split(
    model: nn.Module, loader: DataLoader, metric: TaskMetric, lengths: Sequence[int]
) -> dict[str, Any]:
    """Score a split and hash what was predicted.

    Parameters
    ----------
    model
        As for ``evaluate_model``.
    loader
        A split from ``make_loader(..., sort_by_length=True)``.
    metric
        The task's.
    lengths
        Tokens of each row in the data set's own order, from which the loader's order follows.

    Returns
    -------
    dict
        ``rows``, ``scores`` and ``predictions_sha256`` (see `predictions_hash`).
    """
    kept = _KeepsPredictions(metric)
    scores = evaluate_model(model, loader, kept)
    in_order = np.empty(len(lengths))
    in_order[np.argsort(lengths, kind="stable")] = kept.predictions
    return {"rows": len(lengths), "scores": scores, "predictions_sha256": predictions_hash(in_order)}


def predictions_hash(predictions: Sequence[float]) -> str:
    """SHA-256 of the predictions as a JSON list, in the order of the rows, to four decimals.

    A class is a whole number, so its hash is exact; a regression's may still differ between machines.
    """
    return hashlib.sha256(json.dumps([round(float(value), 4) for value in predictions]).encode()).hexdigest()


def trained_file(model: nn.Module) -> bytes:
    """The safetensors file that holds everything that trained: an adapter's own, or all of a full copy."""
    tensors = {name: value.cpu().contiguous() for name, value in adapter_tensors(model).items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


EVALUATION_BATCH = 64
OVERLAP = 128  # tokens that neighbouring windows of a context share, as in Transformers' SQuAD examples
THRESHOLD_SHARE = 0.15  # of SQuAD v2's training questions, whole articles: for the no-answer threshold only


class Loaders(NamedTuple):
    """What a run reads: shuffled training batches, and every split with a label in each row, for scoring."""

    train: DataLoader
    scored: dict[str, DataLoader]


class Reading(NamedTuple):
    """What ``train`` is given beside model and recipe, and how the outcome is scored.

    Attributes
    ----------
    loaders
        See `Loaders`; nothing is ``scored`` for SQuAD, where ``scorer`` does it.
    metric
        For the loaders.
    scorer
        For ``train``, where a score needs more than a label for each row.
    splits
        The splits that can be scored.
    score
        ``score(model, split, known)`` gives ``rows``, ``scores`` and ``predictions_sha256``. ``known`` are
        the scores that ``train`` ended with: where ``scorer`` gave them last, its answers are not made again.
    """

    loaders: Loaders
    metric: Any
    scorer: SquadScorer | None
    splits: tuple[str, ...]
    score: Callable[..., dict[str, Any]]


def tokenize_rows(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> DatasetDict:
    """Cut the training set to the recipe's ``max_examples``, the same rows for every seed, and tokenise.

    SQuAD's training questions become windows, ``max_examples`` of them at most. Of v2's, whole articles are
    set aside first, as split ``"threshold"``. The other splits stay questions.
    """
    if "train" not in loaded.data:
        raise ValueError(f"Task {loaded.task.name!r} has no training split in this source; choose another.")
    if loaded.task.extractive:
        return _span_rows(loaded, tokenizer, recipe)
    rows = loaded.data["train"]
    data = DatasetDict({**loaded.data, "train": rows.select(recipe.subset(len(rows), seed=0))})
    return tokenize(LoadedTask(loaded.task, data), tokenizer, recipe.max_length)


def _span_rows(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> DatasetDict:
    data = dict(loaded.data)
    if loaded.task.metric == "squad_v2":
        data["train"], data["threshold"] = split_by_article(data["train"], THRESHOLD_SHARE)
    questions = data["train"].select(recipe.subset(len(data["train"]), seed=0))
    windows = make_windows(questions, tokenizer, recipe.max_length, OVERLAP, training=True).inputs
    # a long context has several windows: they are what a step reads, so they are what is counted
    return DatasetDict({**data, "train": windows.select(recipe.subset(len(windows), seed=0))})


def make_loaders(
    loaded: LoadedTask,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    seed: int = 0,
    tokenized: DatasetDict | None = None,
) -> Loaders:
    """Batch a task as the recipe says; ``tokenized``, from `tokenize_rows`, saves tokenising it again."""
    data = tokenize_rows(loaded, tokenizer, recipe) if tokenized is None else tokenized
    grouped = {"shuffle": True, "group_by_length": recipe.group_by_length}
    shuffled = make_loader(data["train"], tokenizer, recipe.batch_size, seed=seed, **grouped)
    scored = {
        split: make_loader(data[split], tokenizer, EVALUATION_BATCH, sort_by_length=True)
        for split in data
        if split != "train" and not loaded.task.extractive
    }
    return Loaders(shuffled, scored)


def make_reading(
    loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, seed: int, tokens: DatasetDict
) -> Reading:
    """What a run trains on and is scored on; ``tokens`` come from `tokenize_rows`."""
    loaders = make_loaders(loaded, tokenizer, recipe, seed, tokens)
    if loaded.task.extractive:
        return _span_reading(loaded.task.metric, tokenizer, recipe, loaders, tokens)
    metric = load_metric(loaded.task.metric)

    def score(model: nn.Module, split: str, known: Mapping[str, float] | None = None) -> dict[str, Any]:
        lengths = [len(ids) for ids in tokens[split]["input_ids"]]
        return score_split(model, loaders.scored[split], metric, lengths)

    return Reading(loaders, metric, None, tuple(loaders.scored), score)


def _span_reading(
    metric: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, loaders: Loaders, tokens: DatasetDict
) -> Reading:
    settings = {"max_length": recipe.max_length, "overlap": OVERLAP, "batch_size": EVALUATION_BATCH}
    rows = tokens["validation"]
    scorer = SquadScorer(metric, rows, tokenizer, tokens.get("threshold"), **settings)

    def score(model: nn.Module, split: str, known: Mapping[str, float] | None = None) -> dict[str, Any]:
        scores = dict(known) if known and scorer.scores == known else scorer(model)
        given = scorer.given()
        return {
            "rows": len(rows),
            "scores": scores,
            "predictions_sha256": answers_hash(given),
            "refused": given.count(""),
        }

    return Reading(loaders, None, scorer, ("validation",), score)


def answers_hash(texts: Sequence[str]) -> str:
    """SHA-256 of the answers as a JSON list, in the order of the questions; ``""`` is a refusal."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()
