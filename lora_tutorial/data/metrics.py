"""Scores as ``evaluate.Metric`` classes that need no hub (``evaluate.load`` fetches its scripts from one).

The arithmetic is scikit-learn's and SciPy's. What those leave open is settled here: an empty set is refused,
and constant predictions have a defined score.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora_tutorial.data.span_metrics import SpanMetric, Squad, SquadV2


class TaskMetric(evaluate.Metric, ABC):
    """Common part: columns ``predictions`` and ``references``, kept in memory, checked when computed.

    Use ``add_batch(predictions=..., references=...)`` for each batch, then ``compute()``, which returns
    ``{score name: float}`` and empties the metric.
    """

    #: The score that stands for the task.
    main_score = ""
    dtype = "int64"
    summary = ""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions and references: equally long, one value for each example.",
            features=Features({"predictions": Value(self.dtype), "references": Value(self.dtype)}),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        """Score everything added so far.

        Raises
        ------
        ValueError
            If nothing was added, the two differ in length, or a value is not finite.
        """
        if self.writer is None and (predictions is None or len(predictions) == 0):
            raise ValueError(f"Nothing to score with {self.name}: add predictions and references first.")
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        guessed, gold = np.asarray(predictions), np.asarray(references)
        if not (np.isfinite(guessed).all() and np.isfinite(gold).all()):
            raise ValueError(
                "A prediction or reference is not finite: the model diverged or the data are broken."
            )
        return {name: float(score) for name, score in self._scores(guessed, gold).items()}

    @abstractmethod
    def _scores(self, guessed: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        """The scores of two arrays, both of shape (examples,)."""


class Accuracy(TaskMetric):
    """Share of examples whose class is right."""

    main_score = "accuracy"
    summary = "Share of right classes."

    def _scores(self, guessed: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return {"accuracy": accuracy_score(gold, guessed)}


class AccuracyF1(TaskMetric):
    """Accuracy, and F1 of class 1 (MRPC, QQP). F1 is 0 where class 1 is neither predicted nor present."""

    main_score = "accuracy"
    summary = "Share of right classes, and the harmonic mean of precision and recall of class 1."

    def _scores(self, guessed: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        # labels=[1] scores class 1 alone, and works when a set holds one class only
        f1 = f1_score(gold, guessed, labels=[1], average="macro", zero_division=0.0)
        return {"accuracy": accuracy_score(gold, guessed), "f1": f1}


class Matthews(TaskMetric):
    """Matthews correlation (CoLA).

    A constant side makes it 0 / 0. It is 0 here, as in scikit-learn: such predictions say nothing about the
    reference. A model that answers the majority class scores 0, however high its accuracy.
    """

    main_score = "matthews"
    summary = "Correlation of two classifications."

    def _scores(self, guessed: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        if _constant(guessed) or _constant(gold):  # scikit-learn warns when both hold one and the same class
            return {"matthews": 0.0}
        return {"matthews": matthews_corrcoef(gold, guessed)}


class PearsonSpearman(TaskMetric):
    """Linear and rank correlation (STS-B, ratings).

    Both are undefined where a side is constant, and SciPy returns NaN. They are 0 here: a constant prediction
    orders nothing, and a NaN could be neither written to JSON nor compared.
    """

    main_score = "pearson"
    dtype = "float64"
    summary = "Linear and rank correlation."

    def _scores(self, guessed: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        if len(gold) < 2:
            raise ValueError(f"A correlation needs at least two examples, given {len(gold)}.")
        if _constant(guessed) or _constant(gold):
            return {"pearson": 0.0, "spearman": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nearly constant input: the value is still SciPy's
            return {
                "pearson": pearsonr(guessed, gold).statistic,
                "spearman": spearmanr(guessed, gold).statistic,
            }


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


METRICS: dict[str, type[TaskMetric | SpanMetric]] = {
    "accuracy": Accuracy,
    "accuracy_f1": AccuracyF1,
    "matthews": Matthews,
    "pearson_spearman": PearsonSpearman,
    "squad": Squad,
    "squad_v2": SquadV2,
}


def load_metric(name: str) -> TaskMetric | SpanMetric:
    """A fresh metric by name.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the known ones.
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}: choose from {', '.join(METRICS)}.")
    return METRICS[name]()
