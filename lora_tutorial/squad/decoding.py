"""From scores to answers: start and end chosen together, over all windows of a question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_tutorial.squad.windows import NOWHERE, Windows, source_text


class Span(NamedTuple):
    """A candidate: the context's characters ``start`` to ``end - 1``, and start plus end logit."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """What a model answers to one question.

    Attributes
    ----------
    id
        The question's.
    spans
        The best candidates over all windows, best first; at least one.
    no_answer_score
        Start plus end logit of the first token, the smallest over the windows: a question has no answer only
        if no window holds one.
    """

    id: str
    spans: tuple[Span, ...]
    no_answer_score: float

    @property
    def doubt(self) -> float:
        """No-answer score minus the best candidate's; positive where refusing scores higher."""
        return self.no_answer_score - self.spans[0].score

    def text(self, threshold: float = math.inf) -> str:
        """The best candidate's text, or the empty text where the doubt is above ``threshold``."""
        return "" if self.doubt > threshold else self.spans[0].text


def decode(
    windows: Windows,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best: int = 1,
    max_answer_length: int = 30,
) -> list[Answer]:
    """Find each question's best spans.

    Every pair of a start and an end in the same window counts, if both lie in the context, the end is not
    before the start, and the span has at most ``max_answer_length`` tokens. A span seen by several windows
    has its best score.

    Parameters
    ----------
    windows
        From ``make_windows``.
    start_logits, end_logits
        For each window an array (tokens,) or longer: what stands beyond the window's own tokens is padding.
    n_best
        Candidates to keep for each question.
    max_answer_length
        Tokens in an answer at most.

    Returns
    -------
    list of Answer
        One for each question, in order.

    Raises
    ------
    ValueError
        If a logit is missing or not finite, or a setting is not a positive whole number.
    """
    for name, value in (("n_best", n_best), ("max_answer_length", max_answer_length)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not a positive whole number.")
    if not len(start_logits) == len(end_logits) == len(windows.rows):
        raise ValueError(
            f"{len(windows.rows)} windows need as many logits; got {len(start_logits)} and {len(end_logits)}."
        )
    best: list[dict[tuple[int, int], float]] = [{} for _ in windows.ids]
    refusal = [math.inf] * len(windows.ids)
    for window, (row, offsets) in enumerate(zip(windows.rows, windows.offsets, strict=True)):
        start = _own_logits(start_logits[window], offsets, windows.ids[row])
        end = _own_logits(end_logits[window], offsets, windows.ids[row])
        refusal[row] = min(refusal[row], float(start[NOWHERE] + end[NOWHERE]))
        possible = offsets[:, 0] >= 0
        start, end = np.where(possible, start, -np.inf), np.where(possible, end, -np.inf)
        for first, last, score in best_spans(start, end, n_best, max_answer_length):
            place = int(offsets[first, 0]), int(offsets[last, 1])
            best[row][place] = max(score, best[row].get(place, -math.inf))
    answers = []
    for identifier, context, spans, none in zip(windows.ids, windows.contexts, best, refusal, strict=True):
        ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
        answers.append(Answer(identifier, tuple(_span(context, *item) for item in ranked), none))
    return answers


def best_spans(
    start: np.ndarray, end: np.ndarray, n_best: int = 1, max_answer_length: int = 30
) -> list[tuple[int, int, float]]:
    """The pairs first <= last < first + ``max_answer_length`` with the largest ``start[first] + end[last]``.

    Parameters
    ----------
    start, end
        Logits (tokens,); -inf where no answer may begin or end.

    Returns
    -------
    list of tuple
        ``(first, last, score)``, best first, of equals the earlier and then the shorter; none with -inf.
    """
    padded = np.concatenate([end, np.full(max_answer_length - 1, -np.inf)])
    ends = np.lib.stride_tricks.sliding_window_view(padded, max_answer_length)  # (tokens, length)
    scores = (start[:, None] + ends).ravel()  # (tokens, length) -> (tokens * length,)
    if n_best == 1:
        order = np.array([scores.argmax()])
    else:
        n_best = min(n_best, len(scores))
        able = np.flatnonzero(scores >= np.partition(scores, -n_best)[-n_best])
        order = able[np.argsort(-scores[able], kind="stable")][:n_best]
    pairs = [(*divmod(int(place), max_answer_length), float(scores[place])) for place in order]
    return [(first, first + more, score) for first, more, score in pairs if score > -math.inf]


def _own_logits(logits: np.ndarray, offsets: np.ndarray, identifier: str) -> np.ndarray:
    own = np.asarray(logits, dtype=np.float64)[: len(offsets)]
    if own.shape != (len(offsets),) or not np.isfinite(own).all():
        raise ValueError(
            f"A window of question {identifier!r} has {len(offsets)} tokens and logits of shape {own.shape}, "
            "or some are not finite: the model diverged, or these are another data set's."
        )
    return own


def _span(context: str, place: tuple[int, int], score: float) -> Span:
    text, end = source_text(context, *place)
    return Span(text, place[0], end, score)
