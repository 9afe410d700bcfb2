"""One evaluator for classes, numbers, spans and texts: it predicts a split once and keeps all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import in_row_order, make_loader
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.span_metrics import score_answer
from lora_tutorial.data.tasks import Task
from lora_tutorial.experiments.inputs import EVALUATION_BATCH, OVERLAP, Prepared
from lora_tutorial.lm.chat import Message, encode_chat
from lora_tutorial.lm.evaluator import ResponseScorer, text_losses, write_and_compare
from lora_tutorial.squad.evaluator import SquadScorer
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.trainer import predict

#: Of a language model's test rows, how many it answers by itself, and in how many tokens at most.
ANSWERED, MOST_NEW = 64, 64
#: Newspaper snippets on which the grasp of other text is measured.
OTHER_TEXTS = 100


class Evaluation(NamedTuple):
    """What a model answered on one split.

    Attributes
    ----------
    predictions
        In the order of the rows: a class's number, a value, or an answer (``""`` is a refusal).
    scores
        The metric's.
    labels
        The rows' own, for classes and numbers.
    by_question
        For spans: exact match (0 or 1) and F1 (in percent) of each question; empty otherwise.
    """

    predictions: list[Any]
    scores: dict[str, float]
    labels: Sequence[float] = ()
    by_question: Sequence[tuple[int, float]] = ()

    def summary(self, keep_predictions: bool = False) -> dict[str, Any]:
        """What a record keeps: rows, scores, the predictions' hash, and where asked for each prediction."""
        spans = any(isinstance(answer, str) for answer in self.predictions)
        kept: dict[str, Any] = {
            "rows": len(self.predictions),
            "scores": self.scores,
            "predictions_sha256": predictions_hash(self.predictions),
        }
        if spans:
            kept["refused"] = self.predictions.count("")
        if keep_predictions and spans:
            kept["exact"] = "".join(str(exact) for exact, _ in self.by_question)
            kept["f1"] = [round(f1) for _, f1 in self.by_question]
        elif keep_predictions:
            # a comparison of two runs needs the labels too, and a reader may not have the data
            kept |= {"predictions": _compact(self.predictions), "labels": _compact(self.labels)}
        return kept


def _compact(values: Sequence[float]) -> str | list[float]:
    """Classes as a digit each, numbers to four decimals."""
    if all(float(value).is_integer() and 0 <= value < 10 for value in values):
        return "".join(str(int(value)) for value in values)
    return [round(float(value), 4) for value in values]


class RowEvaluator:
    """Scores a model on rows with a label each: classes or numbers.

    Parameters
    ----------
    metric
        The task's, by name.
    rows
        Tokenised, in the data set's own order.
    tokenizer
        The encoder's.

    Attributes
    ----------
    main_score
        The score that stands for the task.
    last
        The evaluation made last, ``None`` before the first.
    """

    def __init__(self, metric: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        self.metric = load_metric(metric)
        self.main_score = self.metric.main_score
        self.last: Evaluation | None = None
        self._lengths = [len(ids) for ids in rows["input_ids"]]
        self._loader = make_loader(rows, tokenizer, EVALUATION_BATCH, sort_by_length=True)
        self._prepared: tuple[Accelerator, Any] | None = None

    def __call__(self, model: nn.Module, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The scores, as ``train`` asks for them after each epoch."""
        return self.evaluate(model, accelerator).scores

    def evaluate(self, model: nn.Module, accelerator: Accelerator | None = None) -> Evaluation:
        """Predict every row, without gradients and in eval mode, in which the model is left."""
        loader = self._loader
        if accelerator is not None:
            if self._prepared is None or self._prepared[0] is not accelerator:
                self._prepared = accelerator, accelerator.prepare(self._loader)
            loader = self._prepared[1]
        guessed, gold = [], []
        batches = predict(model, loader, accelerator)
        for predicted, labels in tqdm(batches, "scoring", len(loader), leave=False, disable=None):
            guessed += predicted.tolist()
            gold += labels.tolist()
        scores = self.metric.compute(predictions=guessed, references=gold)
        predictions, labels = (in_row_order(values, self._lengths) for values in (guessed, gold))
        self.last = Evaluation(predictions, scores, labels)
        return self.last


class SpanEvaluator:
    """Scores a model on SQuAD's questions; parameters are `SquadScorer`'s, attributes `RowEvaluator`'s."""

    main_score = SquadScorer.main_score

    def __init__(
        self,
        metric: str,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        threshold_rows: Dataset | None,
        max_length: int,
    ) -> None:
        settings = {"max_length": max_length, "overlap": OVERLAP, "batch_size": EVALUATION_BATCH}
        self._scorer = SquadScorer(metric, rows, tokenizer, threshold_rows, **settings)
        self._golds = [answers["text"] for answers in rows["answers"]]
        self.last: Evaluation | None = None

    def __call__(self, model: nn.Module, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The scores, as ``train`` asks for them after each epoch."""
        return self.evaluate(model, accelerator).scores

    def evaluate(self, model: nn.Module, accelerator: Accelerator | None = None) -> Evaluation:
        """Answer every question, without gradients and in eval mode, in which the model is left."""
        scores = self._scorer(model, accelerator)
        given = self._scorer.given()
        pairs = [score_answer(text, golds) for text, golds in zip(given, self._golds, strict=True)]
        questions = [(exact, 100 * f1) for exact, f1 in pairs]
        self.last = Evaluation(given, scores, by_question=questions)
        return self.last


class TextEvaluator:
    """Scores a language model on conversations by the loss of their responses; attributes `RowEvaluator`'s.

    An evaluation's ``predictions`` are each row's loss in nats, its ``labels`` the row's response tokens.
    """

    main_score = ResponseScorer.main_score

    def __init__(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        self._scorer = ResponseScorer(rows, tokenizer)
        self.last: Evaluation | None = None

    def __call__(self, model: nn.Module, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The scores, as ``train`` asks for them after each epoch."""
        return self.evaluate(model, accelerator).scores

    def evaluate(self, model: nn.Module, accelerator: Accelerator | None = None) -> Evaluation:
        """Read every row, without gradients and in eval mode, in which the model is left."""
        scores, losses = self._scorer(model, accelerator), self._scorer.last
        assert losses is not None
        self.last = Evaluation(list(losses.sums), scores, losses.tokens)
        return self.last


Evaluator = RowEvaluator | SpanEvaluator | TextEvaluator


def make_evaluators(
    task: Task, tokens: DatasetDict, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> dict[str, Evaluator]:
    """An evaluator for every split that can be scored; ``tokens`` come from `tokenize_rows`."""
    splits = [split for split in tokens if split not in ("train", "threshold")]
    if task.generative:
        return {split: TextEvaluator(tokens[split], tokenizer) for split in splits}
    if not task.extractive:
        return {split: RowEvaluator(task.metric, tokens[split], tokenizer) for split in splits}
    apart = tokens.get("threshold")
    return {
        split: SpanEvaluator(task.metric, tokens[split], tokenizer, apart, recipe.max_length)
        for split in splits
    }


def written(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    split: str,
    examples: Sequence[Message] = (),
) -> dict[str, Any]:
    """What a record keeps of a language model's own answers.

    Parameters
    ----------
    model, tokenizer
        As they are at the end of a run.
    prepared
        The run's data.
    split
        Its first ``ANSWERED`` rows are answered.
    examples
        Messages in front of every prompt.

    Returns
    -------
    dict
        ``"written"``: what ``Written.summary`` says, with every answer and its chrF.
    """
    rows = prepared.tokenized[split]["row"][:ANSWERED]
    conversations = prepared.loaded.data[split].select(rows)["messages"]
    found = write_and_compare(model, tokenizer, list(conversations), examples, max_new_tokens=MOST_NEW)
    answers = {
        "answers": [answer.text for answer in found.answers],
        "each_chrf": [round(score, 2) for score in found.chrf],
        "each_stopped": "".join(str(int(answer.stopped)) for answer in found.answers),
    }
    return {"written": found.summary() | answers}


def other_text(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a record keeps of a language model's grasp of text that has nothing to do with its task.

    Returns
    -------
    dict
        ``"other_text"``: each loss in nats of ``OTHER_TEXTS`` newspaper snippets, and their tokens.
    """
    texts = load_task("editorials").data["test"]["text"][:OTHER_TEXTS]
    other = text_losses(model, tokenizer, list(texts))
    sums = [round(value, 4) for value in other.sums]
    return {"other_text": {"loss": other.loss, "sums": sums, "tokens": list(other.tokens)}}


def prompt(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, shots: int
) -> dict[str, Any]:
    """What the record of an untrained language model holds: asked as it is, or after examples.

    Parameters
    ----------
    model, tokenizer, prepared
        As for `written`.
    shots
        How many of the training rows, those with the shortest conversations, go in front of each prompt.
    """
    train = prepared.tokenized["train"]
    shortest = sorted(range(len(train)), key=lambda row: (len(train[row]["input_ids"]), row))[:shots]
    chosen = prepared.loaded.data["train"].select([train[row]["row"] for row in shortest])["messages"]
    examples = [message for messages in chosen for message in messages]
    splits = {}
    for split in [name for name in prepared.tokenized if name != "train"]:
        rows = prepared.loaded.data[split].select(prepared.tokenized[split]["row"])["messages"]
        encoded = [encode_chat([*examples, *m], tokenizer, last_only=True)._asdict() for m in rows]
        evaluator = TextEvaluator(Dataset.from_list(encoded), tokenizer)
        splits[split] = evaluator.evaluate(model).summary(keep_predictions=True)
    final = "test" if "test" in splits else "validation"
    scores = {"scored_on": final, "scores": {"trained": splits[final]["scores"]}, "splits": splits}
    return (
        scores
        | {"shots": shots}
        | written(model, tokenizer, prepared, final, examples)
        | other_text(model, tokenizer)
    )


def predictions_hash(predictions: Sequence[Any]) -> str:
    """SHA-256 of the predictions as a JSON list, in the order of the rows.

    Numbers are rounded to four decimals. A class is a whole number, so its hash is exact; a regression's may
    still differ between machines. Answers are texts, hashed as they are.
    """
    plain = [p if isinstance(p, str) else round(float(p), 4) for p in predictions]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()
