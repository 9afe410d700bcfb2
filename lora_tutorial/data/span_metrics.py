"""SQuAD's scores, exact match and F1 in percent, as ``evaluate`` metrics that need no hub.

Version 1.1 follows Rajpurkar et al. (2016), section 6.1; version 2.0 Rajpurkar et al. (2018). torchmetrics
has the first, but adds in single precision and scores a missing answer 0; no library has the second.
"""

from __future__ import annotations

import math
import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import evaluate
from datasets import Features, List, Value

_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only, as in the official evaluators
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """What answers are compared by: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, gold: str) -> int:
    """1 where both texts normalise to the same, else 0."""
    return int(normalize_answer(predicted) == normalize_answer(gold))


def token_f1(predicted: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, in [0, 1].

    Where one side has no word left after normalising it is 1 if both have none, else 0.
    """
    guessed, wanted = normalize_answer(predicted).split(), normalize_answer(gold).split()
    if not guessed or not wanted:
        return float(guessed == wanted)
    shared = (Counter(guessed) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(guessed), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score_answer(predicted: str, golds: Sequence[str]) -> tuple[int, float]:
    """Exact match and F1 against the best gold answer, as version 2.0 has it.

    Golds that normalise to nothing do not count. Where no gold is left the right answer is the empty text.
    """
    golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact = max(exact_match(predicted, gold) for gold in golds)
    return exact, max(token_f1(predicted, gold) for gold in golds)


class SpanMetric(evaluate.Metric, ABC):
    """Common part: predictions and references are matched by ``id``, in whatever order they come.

    As in the hub's schema, a prediction is ``{"id": str, "prediction_text": str}`` and a reference
    ``{"id": str, "answers": {"text": [str, ...], "answer_start": [int, ...]}}``.
    """

    #: The score that stands for the task.
    main_score = "f1"
    prediction: Mapping[str, Any] = {"id": Value("string"), "prediction_text": Value("string")}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        reference = {"id": Value("string"), "answers": answers}
        return evaluate.MetricInfo(
            description="Exact match and F1 of answers, in percent.",
            citation="",
            inputs_description="predictions and references: one for each question, matched by id.",
            features=Features({"predictions": dict(self.prediction), "references": reference}),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        """Score everything added so far.

        Returns
        -------
        dict
            Scores in percent, 0 to 100.

        Raises
        ------
        ValueError
            If nothing was added, or an id is missing, unknown or there twice; the message names it.
        """
        if predictions is not None and references is not None:
            _check_ids(predictions, references)  # before evaluate says only that the lengths differ
        if self.writer is None and not predictions:
            raise ValueError(f"Nothing to score with {self.name}: add predictions and references first.")
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        predictions, references = list(predictions), list(references)
        _check_ids(predictions, references)
        by_id = {prediction["id"]: prediction for prediction in predictions}
        golds = {reference["id"]: reference["answers"]["text"] for reference in references}
        return self._scores(by_id, golds, **kwargs)

    @abstractmethod
    def _scores(self, by_id: dict[str, Any], golds: dict[str, list[str]]) -> dict[str, float]:
        """The scores of predictions and gold answers, both by question."""


class Squad(SpanMetric):
    """SQuAD v1.1: ``exact_match`` and ``f1``; every question has an answer."""

    def _scores(self, by_id: dict[str, Any], golds: dict[str, list[str]]) -> dict[str, float]:
        exact = f1 = 0.0
        for identifier, texts in golds.items():
            if not texts:
                raise ValueError(
                    f"Question {identifier!r} has no gold answer, which only 'squad_v2' can score."
                )
            predicted = by_id[identifier]["prediction_text"]
            exact += max(exact_match(predicted, text) for text in texts)
            f1 += max(token_f1(predicted, text) for text in texts)
        return {"exact_match": 100.0 * exact / len(golds), "f1": 100.0 * f1 / len(golds)}


class SquadV2(SpanMetric):
    """SQuAD v2.0: ``exact``, ``f1`` and ``total``; of answerable questions alone (HasAns) and others (NoAns).

    A prediction has a ``no_answer_probability`` too, any finite number. Where it is above
    ``no_answer_threshold`` (of ``compute``, 1 by default) the question counts as refused, whatever the text.
    The best threshold on the scored set itself is not among the scores: choose one on other questions, with
    :func:`lora_tutorial.squad.threshold.find_threshold`.
    """

    prediction: Mapping[str, Any] = {**SpanMetric.prediction, "no_answer_probability": Value("float64")}

    def _scores(
        self, by_id: dict[str, Any], golds: dict[str, list[str]], no_answer_threshold: float = 1.0
    ) -> dict[str, float]:
        exact, f1 = {}, {}
        for identifier, texts in golds.items():
            probability = by_id[identifier]["no_answer_probability"]
            if not math.isfinite(probability):
                raise ValueError(f"The no-answer probability of {identifier!r} is {probability}, not finite.")
            if probability > no_answer_threshold:
                exact[identifier] = f1[identifier] = float(not texts)
            else:
                answer = by_id[identifier]["prediction_text"]
                exact[identifier], f1[identifier] = score_answer(answer, texts)
        groups = {"": list(golds)}
        groups |= {"HasAns_": [key for key, texts in golds.items() if texts]}
        groups |= {"NoAns_": [key for key, texts in golds.items() if not texts]}
        scores: dict[str, float] = {}
        for prefix, ids in groups.items():
            if ids:
                scores[f"{prefix}exact"] = 100.0 * sum(exact[key] for key in ids) / len(ids)
                scores[f"{prefix}f1"] = 100.0 * sum(f1[key] for key in ids) / len(ids)
                scores[f"{prefix}total"] = float(len(ids))
        return scores


def _check_ids(predictions: Iterable[Any], references: Iterable[Any]) -> None:
    guessed = Counter(prediction["id"] for prediction in predictions)
    wanted = Counter(reference["id"] for reference in references)
    for ids, problem in (
        (wanted.keys() - guessed.keys(), "no prediction for"),
        (guessed.keys() - wanted.keys(), "a prediction, but no reference, for"),
        ([key for key, times in guessed.items() if times > 1], "more than one prediction for"),
        ([key for key, times in wanted.items() if times > 1], "more than one reference for"),
    ):
        if ids:
            named = ", ".join(repr(key) for key in sorted(ids)[:5])
            more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
            raise ValueError(f"There is {problem} {named}{more}; give exactly one for each question.")
