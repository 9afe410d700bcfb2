"""Score a model on SQuAD: run the windows, decode, choose the threshold where it may be chosen, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import make_loader
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.squad.decoding import Answer, decode
from lora_tutorial.squad.threshold import Threshold, choose_threshold
from lora_tutorial.squad.windows import Windows, make_windows

if TYPE_CHECKING:
    from accelerate import Accelerator


class Reader:
    """Answers a fixed set of questions with whatever model it is given; cut into windows once.

    Parameters
    ----------
    rows
        Questions as for ``make_windows``; they need no answers.
    tokenizer
        The encoder's.
    max_length, overlap
        As for ``make_windows``.
    batch_size
        Windows in a batch, over all processes together.
    n_best, max_answer_length
        As for ``decode``.
    """

    def __init__(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 384,
        overlap: int = 128,
        batch_size: int = 32,
        n_best: int = 1,
        max_answer_length: int = 30,
    ) -> None:
        self.windows: Windows = make_windows(rows, tokenizer, max_length, overlap)
        self.n_best, self.max_answer_length = n_best, max_answer_length
        self._loader = make_loader(self.windows.inputs, tokenizer, batch_size, sort_by_length=True)
        self._prepared: tuple[Accelerator, DataLoader] | None = None

    def __call__(self, model: nn.Module, accelerator: Accelerator | None = None) -> list[Answer]:
        """Answer the questions, without gradients and in eval mode, in which the model is left.

        Parameters
        ----------
        model
            ``forward(**batch)`` returns ``start_logits`` and ``end_logits`` (batch, tokens).
        accelerator
            The run's. Without one the model stays where it is and does all by itself.
        """
        if accelerator is not None and (self._prepared is None or self._prepared[0] is not accelerator):
            self._prepared = accelerator, accelerator.prepare(self._loader)
        loader = self._loader if accelerator is None or self._prepared is None else self._prepared[1]
        device = next(model.parameters()).device
        start: list[Any] = [None] * len(self.windows.rows)
        end: list[Any] = [None] * len(self.windows.rows)
        model.eval()
        with torch.no_grad():
            for batch in tqdm(loader, desc="reading", leave=False, disable=None):  # hidden off a terminal
                inputs = {name: value.to(device) for name, value in batch.items() if name != "window"}
                outputs = model(**inputs)
                logits = outputs.start_logits.float(), outputs.end_logits.float(), batch["window"]
                for number, first, last in zip(*_gathered(logits, accelerator), strict=True):
                    start[number], end[number] = first, last
        return decode(self.windows, start, end, self.n_best, self.max_answer_length)


def _gathered(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], accelerator: Accelerator | None
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Windows' numbers and logits of all processes; what only evens out their shares is gone."""
    start, end, numbers = logits
    if accelerator is not None:
        # each process pads to its own longest window; decode ignores what lies beyond a window's tokens
        start, end = (accelerator.pad_across_processes(x.contiguous(), dim=1) for x in (start, end))
        start, end, numbers = accelerator.gather_for_metrics((start, end, numbers))
    return numbers.tolist(), start.cpu().numpy(), end.cpu().numpy()


class SquadScorer:
    """``scorer(model, accelerator)`` for ``train``: SQuAD's scores of a model, in percent.

    Parameters
    ----------
    task
        ``"squad"`` or ``"squad_v2"``.
    reported
        The questions that are scored, with ``answers``.
    tokenizer
        The encoder's.
    held_out
        For v2: training questions that are neither trained on nor reported, on which the no-answer threshold
        is chosen before each score; ``split_by_article`` makes them. Not for v1, where every question has an
        answer.
    **settings
        As for `Reader`.

    Attributes
    ----------
    answers
        Of the reported questions, after a call.
    scores
        Of the last call.
    threshold
        The one chosen last, with its F1 on the held-out questions; ``None`` for v1.

    Raises
    ------
    ValueError
        If ``held_out`` is missing for v2 or given for v1, or has an id, a context or an article in common
        with the reported questions.
    """

    main_score = "f1"

    def __init__(
        self,
        task: str,
        reported: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        held_out: Dataset | None = None,
        **settings: Any,
    ) -> None:
        if task not in ("squad", "squad_v2"):
            raise ValueError(f"task must be squad or squad_v2; got {task!r}.")
        if (held_out is not None) != (task == "squad_v2"):
            raise ValueError(
                "squad_v2 needs held_out, training questions to choose its no-answer threshold on (see "
                f"split_by_article), and squad takes none; got {task!r} with"
                f"{'out' if held_out is None else ''} them."
            )
        self.task, self.reported, self.held_out = task, reported, held_out
        self.answers: list[Answer] = []
        self.scores: dict[str, float] = {}
        self.threshold: Threshold | None = None
        self._held_out_reader = None
        if held_out is not None:
            _check_disjoint(held_out, reported)
            self._held_out_reader = Reader(held_out, tokenizer, **settings)
        self._reader = Reader(reported, tokenizer, **settings)

    def __call__(self, model: nn.Module, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The metric's scores; for v2 the threshold used comes along as ``threshold``."""
        self.scores = self._score(model, accelerator)
        return dict(self.scores)

    def _score(self, model: nn.Module, accelerator: Accelerator | None) -> dict[str, float]:
        if self._held_out_reader is not None and self.held_out is not None:
            golds = [answers["text"] for answers in self.held_out["answers"]]
            self.threshold = choose_threshold(self._held_out_reader(model, accelerator), golds)
        self.answers = self._reader(model, accelerator)
        references = [
            {"id": identifier, "answers": answers}
            for identifier, answers in zip(self.reported["id"], self.reported["answers"], strict=True)
        ]
        predictions: list[dict[str, Any]] = [
            {"id": answer.id, "prediction_text": answer.text()} for answer in self.answers
        ]
        if self.threshold is None:
            return load_metric(self.task).compute(predictions=predictions, references=references)
        for prediction, answer in zip(predictions, self.answers, strict=True):
            prediction["no_answer_probability"] = answer.doubt
        scores = load_metric(self.task).compute(
            predictions=predictions, references=references, no_answer_threshold=self.threshold.value
        )
        return scores | {"threshold": self.threshold.value}

    def given(self) -> list[str]:
        """The answers to the reported questions after a call; ``""`` where the model refused to answer."""
        limit = None if self.threshold is None else self.threshold.value
        return [a.text() if limit is None else a.text(limit) for a in self.answers]


def _check_disjoint(held_out: Dataset, reported: Dataset) -> None:
    for column in ("id", "context", "title"):
        if column in held_out.column_names and column in reported.column_names:
            shared = set(held_out[column]) & set(reported[column])
            if shared:
                raise ValueError(
                    f"Held-out and reported questions share {len(shared)} values of {column!r}, such as "
                    f"{min(shared)[:40]!r}: the threshold would be chosen on what is scored."
                )
