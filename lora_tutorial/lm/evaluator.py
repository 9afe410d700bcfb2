"""How well a language model answers: the loss on the responses' tokens, and what it writes by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import in_row_order
from lora_tutorial.lm.basics import check_chrf
from lora_tutorial.lm.batches import make_chat_loader
from lora_tutorial.lm.chat import IGNORED, Message
from lora_tutorial.lm.generate import Reply, generate_answers


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every token, given those before it; 0 where the label is ``IGNORED``.

    The logits at a place are a guess at the *next* token, so they are compared with the labels one further.

    Parameters
    ----------
    logits
        (batch, length, vocabulary).
    labels
        (batch, length).

    Returns
    -------
    Tensor
        (batch, length - 1), in nats.
    """
    return _losses(logits[:, :-1], labels[:, 1:])  # the shift


def _losses(guesses: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (batch, places) of guesses (batch, places, vocabulary)."""
    flat = guesses.float().flatten(0, 1)  # (batch * places, vocabulary)
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none").view(
        targets.shape
    )


class ResponseLosses(NamedTuple):
    """What a model's answers cost: each row's sum over its response tokens, in nats, and their number."""

    sums: Sequence[float]
    tokens: Sequence[int]

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a response token."""
        return sum(self.sums) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """``exp(loss)``: as unsure as a choice among so many equally likely tokens."""
        return math.exp(self.loss)

    def interval(self, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """A 95 % interval of the loss: rows, not tokens, drawn with replacement."""
        sums, tokens = np.asarray(self.sums), np.asarray(self.tokens)
        rows = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))  # (draws, rows)
        low, high = np.quantile(sums[rows].sum(1) / tokens[rows].sum(1), [0.025, 0.975])
        return float(low), float(high)


class ResponseScorer:
    """Scores a language model on tokenised conversations.

    Parameters
    ----------
    rows
        One split from ``tokenize_chats``.
    tokenizer
        Its tokenizer.
    batch_size
        Conversations at a time.

    Attributes
    ----------
    main_score
        ``"log_likelihood"`` per response token, the loss with its sign changed: higher is better.
    """

    main_score = "log_likelihood"

    def __init__(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8) -> None:
        self._loader = make_chat_loader(rows, tokenizer, batch_size, sort_by_length=True)
        self._lengths = [len(ids) for ids in rows["input_ids"]]
        self.last: ResponseLosses | None = None

    def __call__(self, model: nn.Module, accelerator: Any = None) -> dict[str, float]:
        """The scores, as ``train`` asks for them after each epoch; every process scores all rows."""
        found = self.losses(model)
        return {"log_likelihood": -found.loss, "perplexity": found.perplexity}

    @torch.no_grad()
    def losses(self, model: nn.Module) -> ResponseLosses:
        """The loss of every row, in the rows' order; the model is left in evaluation mode."""
        model.eval()
        device = next(model.parameters()).device
        sums: list[float] = []
        counts: list[int] = []
        for batch in tqdm(self._loader, "scoring", leave=False, disable=None):
            batch.pop("labels")
            targets = batch.pop("shift_labels").to(device)
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
            sums += _losses(logits, targets).sum(1).tolist()
            counts += (targets != IGNORED).sum(1).tolist()
        tokens = [int(count) for count in in_row_order(counts, self._lengths)]
        self.last = ResponseLosses(in_row_order(sums, self._lengths), tokens)
        return self.last


class Written(NamedTuple):
    """What a model wrote for a set of prompts, and how it compares.

    Attributes
    ----------
    answers
        In the order of the conversations.
    chrf
        For each answer, the F-score of its runs of up to six characters against the reference, 0 to 100.
    """

    answers: Sequence[Reply]
    chrf: Sequence[float]

    def summary(self) -> dict[str, float]:
        """Mean chrF, the share of answers that stop, and their mean length in tokens."""
        number = len(self.answers)
        return {
            "rows": number,
            "chrf": sum(self.chrf) / number,
            "stopped": sum(answer.stopped for answer in self.answers) / number,
            "tokens": sum(answer.tokens for answer in self.answers) / number,
        }


def write_and_compare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    examples: Sequence[Message] = (),
    **options: Any,
) -> Written:
    """Let a model answer conversations whose own answers are known.

    Parameters
    ----------
    model, tokenizer
        From ``load_lm``.
    conversations
        Each ends with the reference answer, which the model does not see.
    examples
        Messages to put in front of every prompt (few-shot).
    **options
        ``max_new_tokens`` and ``batch_size``, as for `generate_answers`.

    Returns
    -------
    Written
        chrF as Popović (2015) defines it, by torchmetrics.

    Raises
    ------
    ModuleNotFoundError
        If torchmetrics is not installed.
    """
    check_chrf()
    from torchmetrics.functional.text import chrf_score

    prompts = [[*examples, *messages[:-1]] for messages in conversations]
    answers = generate_answers(model, tokenizer, prompts, **options)
    references = [[messages[-1]["content"]] for messages in conversations]
    texts = [answer.text for answer in answers]
    _, each = chrf_score(texts, references, n_word_order=0, return_sentence_level_score=True)
    return Written(answers, [100 * float(score) for score in each])


def text_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 256,
    batch_size: int = 8,
) -> ResponseLosses:
    """What plain texts cost a model, each read by itself from its second token on.

    The same before and after training says what training took: how much of the model's grasp of other text
    is gone. Texts of like length are read side by side; one of a single token is left out.
    """
    ids = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_length)[
        "input_ids"
    ]
    ids = [row for row in ids if len(row) > 1]
    if not ids:
        return ResponseLosses([], [])
    # Every token is a label, as if the whole text were a response.
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    return ResponseScorer(rows, tokenizer, batch_size).losses(model)
