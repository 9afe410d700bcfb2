"""What a score is compared with: the commonest answer, and a linear probe on the untouched encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import in_row_order, make_loader
from lora_tutorial.data.metrics import TaskMetric, load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.experiments.inputs import EVALUATION_BATCH, Loaders
from lora_tutorial.models.roberta import LoraWrapperRoberta, mean_of_tokens

#: Strengths of regularisation that the probe tries.
STRENGTHS = {"logisticregression__C": np.logspace(-4, 0, 5), "ridge__alpha": np.logspace(0, 5, 6)}
FOLDS = 5


class Vectors(NamedTuple):
    """What an encoder makes of a split's rows, as NumPy arrays.

    Attributes
    ----------
    mean, first
        The mean over the tokens that are not padding, and the first token's vector, (rows, hidden).
    labels
        (rows,).
    """

    mean: Any
    first: Any
    labels: Any


class Probe(NamedTuple):
    """A linear probe's scores, its predictions in the loader's order, and the strength that was chosen."""

    scores: dict[str, float]
    predictions: list[float]
    strength: float

    def in_order(self, lengths: Sequence[int]) -> list[float]:
        """The predictions in the order of the rows, from the lengths by which the loader sorted them."""
        return in_row_order(self.predictions, lengths)


def majority_baseline(loaded: LoadedTask, metric: TaskMetric, split: str = "test") -> dict[str, float]:
    """The score of always giving the commonest training class (the mean, for a regression)."""
    train_labels = loaded.data["train"]["label"]
    dummy = DummyRegressor() if loaded.task.regression else DummyClassifier(strategy="most_frequent")
    dummy.fit([[0]] * len(train_labels), train_labels)
    gold = loaded.data[split]["label"]
    return metric.compute(predictions=dummy.predict([[0]] * len(gold)), references=list(gold))


def frozen_encoder_baseline(
    model: LoraWrapperRoberta,
    loaders: Loaders,
    metric: TaskMetric,
    regression: bool,
    split: str = "test",
    pooling: str = "mean",
) -> dict[str, float]:
    """The score of `linear_probe` on a fresh model's encoder: what is there before any adaptation.

    ``model``'s adapters add nothing yet; the other parameters are those of `linear_probe`.
    """
    return linear_probe(model.model, loaders, metric, regression, (split,), pooling)[split].scores


def linear_probe(
    encoder: nn.Module,
    loaders: Loaders,
    metric: TaskMetric,
    regression: bool,
    splits: tuple[str, ...],
    pooling: str = "mean",
    vectors: Mapping[str, Vectors] | None = None,
) -> dict[str, Probe]:
    """Fit logistic (or ridge) regression to the frozen encoder's vectors, and score it on some splits.

    MiniLM was trained for the mean over a text's tokens, so that is the fair default; a probe of its first
    token is weaker. The strength of regularisation is chosen by five-fold cross-validation on the training
    rows, by the task's own score. Nothing of the scored splits is looked at.

    Parameters
    ----------
    encoder
        Gives ``last_hidden_state`` (batch, tokens, hidden).
    loaders
        From `make_loaders`.
    metric, regression
        The task's.
    splits
        Which to score.
    pooling
        ``"mean"`` over the tokens that are not padding, or ``"first"``.
    vectors
        From `encode_splits`, where they are at hand already.
    """
    if pooling not in ("mean", "first"):
        raise ValueError(f"pooling must be mean or first; got {pooling!r}.")
    vectors = encode_splits(encoder, loaders, splits) if vectors is None else vectors
    x, y = getattr(vectors["train"], pooling), vectors["train"].labels
    head = Ridge() if regression else LogisticRegression(max_iter=2000)
    name = type(head).__name__.lower()
    strengths = {key: values for key, values in STRENGTHS.items() if key.startswith(name)}

    def score(gold: Any, guessed: Any) -> float:
        return metric.compute(predictions=list(guessed), references=list(gold))[metric.main_score]

    rarest = len(y) if regression else int(np.unique(y, return_counts=True)[1].min())
    folds = min(FOLDS, rarest)
    if folds < 2:
        raise ValueError(
            f"The linear probe is fitted by cross-validation, and a class has {rarest} training row; give at "
            "least two of each class."
        )
    cv = (KFold if regression else StratifiedKFold)(folds, shuffle=True, random_state=0)
    search = GridSearchCV(make_pipeline(StandardScaler(), head), strengths, scoring=make_scorer(score), cv=cv)
    search.fit(x, y)
    probes = {}
    for split in splits:
        x, y = getattr(vectors[split], pooling), vectors[split].labels
        guessed = search.predict(x)
        scores = metric.compute(predictions=guessed, references=y)
        probes[split] = Probe(scores, guessed.tolist(), float(next(iter(search.best_params_.values()))))
    return probes


def encode_splits(encoder: nn.Module, loaders: Loaders, splits: Sequence[str]) -> dict[str, Vectors]:
    """Encode the training rows and some other splits once, for any number of probes.

    Training rows are in the order of their lengths, which pads less, the others in their loader's order.
    """
    collate: Any = loaders.train.collate_fn
    training = make_loader(loaders.train.dataset, collate.tokenizer, EVALUATION_BATCH, sort_by_length=True)
    loaders_of = {"train": training} | {split: loaders.scored[split] for split in splits}
    return {split: encode_rows(encoder, loader) for split, loader in loaders_of.items()}


@torch.no_grad()
def encode_rows(encoder: nn.Module, loader: DataLoader) -> Vectors:
    """Each row's vectors and label, in the loader's order."""
    encoder.eval()
    means, firsts, labels = [], [], []
    for batch in tqdm(loader, desc="encoding", leave=False, disable=None):  # hidden off a terminal
        labels.append(batch.pop("labels"))
        batch = {key: value.to(encoder.device) for key, value in batch.items()}
        hidden = encoder(**batch).last_hidden_state.float()  # (rows, tokens, hidden)
        means.append(mean_of_tokens(hidden, batch["attention_mask"]).cpu())
        firsts.append(hidden[:, 0].cpu())
    return Vectors(*(torch.cat(parts).numpy() for parts in (means, firsts, labels)))


def similarity_pairs(source: str, most: int) -> Dataset:
    """The first so many validation rows of STS-B, from a source as for ``load_task``."""
    rows = load_task("stsb", source).data["validation"]
    return rows.select(range(min(most, len(rows))))


def sentence_similarity(encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> float:
    """How well an encoder still tells which sentences mean the same, without being trained to.

    A sentence encoder can do this before any training of ours, so it shows what a run has made it forget.

    Parameters
    ----------
    encoder, tokenizer
        With adapters or without; it is left in eval mode.
    rows
        Pairs with a label each, as STS-B has them.

    Returns
    -------
    float
        Spearman's correlation of the labels with the cosine of the two sentences' mean-pooled vectors.
    """
    sides = []
    for column in ("sentence1", "sentence2"):
        ids = tokenizer(list(rows[column]), truncation=True, max_length=128)["input_ids"]
        tokens = Dataset.from_dict({"input_ids": ids, "labels": list(rows["label"])})
        loader = make_loader(tokens, tokenizer, EVALUATION_BATCH, sort_by_length=True)
        means = in_row_order(encode_rows(encoder, loader).mean, [len(row) for row in ids])
        sides.append(torch.tensor(means))  # (rows, hidden)
    cosines = torch.cosine_similarity(sides[0], sides[1])
    metric = load_metric("pearson_spearman")
    return metric.compute(predictions=cosines.tolist(), references=list(rows["label"]))["spearman"]
