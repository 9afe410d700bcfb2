"""When to refuse an answer (SQuAD v2.0): a threshold chosen on held-out training questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lora_tutorial.data.span_metrics import score_answer
from lora_tutorial.squad.decoding import Answer

if TYPE_CHECKING:
    from datasets import Dataset


class Threshold(NamedTuple):
    """A no-answer threshold and the average score it reaches on the questions it was chosen on."""

    value: float
    score: float


def find_threshold(
    doubts: Sequence[float], when_answered: Sequence[float], when_refused: Sequence[float]
) -> Threshold:
    """The threshold above which refusing pays: the best average score when doubts above it are refused.

    Choose it on questions that are not reported. Equal doubts are answered or refused together. The value
    lies half-way between two doubts, so that it is not tied to one question; among equally good ones it is
    the lowest.

    Parameters
    ----------
    doubts
        For each question, such as ``Answer.doubt``.
    when_answered, when_refused
        The score of each question if it is answered, and if it is refused.

    Raises
    ------
    ValueError
        If there is no question, the lengths differ, or a number is not finite.
    """
    lengths = {len(doubts), len(when_answered), len(when_refused)}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(f"A threshold needs equally many numbers of each kind; got {sorted(lengths)}.")
    order = np.argsort(np.asarray(doubts, dtype=np.float64), kind="stable")
    doubt, answered, refused = (
        np.asarray(x, np.float64)[order] for x in (doubts, when_answered, when_refused)
    )
    if not np.isfinite([doubt, answered, refused]).all():
        raise ValueError("A doubt or a score is not finite: the model diverged or the data are broken.")
    # totals[k]: the k smallest doubts are answered, the others refused
    totals = np.concatenate([[0.0], np.cumsum(answered - refused)]) + refused.sum()
    border = np.concatenate([[True], doubt[1:] > doubt[:-1], [True]])
    k = int(np.where(border, totals, -np.inf).argmax())
    if k == 0:
        value = min(doubt[0] - 1, np.nextafter(doubt[0], -np.inf))
    elif k == len(doubt):
        value = max(doubt[-1] + 1, np.nextafter(doubt[-1], np.inf))
    else:
        middle = doubt[k - 1] / 2 + doubt[k] / 2
        value = middle if doubt[k - 1] <= middle < doubt[k] else doubt[k - 1]
    return Threshold(float(value), float(totals[k] / len(doubt)))


def choose_threshold(answers: Sequence[Answer], golds: Sequence[Sequence[str]]) -> Threshold:
    """The threshold that gives the best F1 on held-out questions.

    Parameters
    ----------
    answers
        From ``decode``.
    golds
        For each question its gold answers; none where it has no answer.

    Raises
    ------
    ValueError
        If the questions all have an answer, or none has: such a set says nothing about when to refuse.
    """
    if len({bool(gold) for gold in golds}) < 2:
        raise ValueError("A threshold needs held-out questions with an answer and some without; take more.")
    when_answered = [score_answer(a.text(), gold)[1] for a, gold in zip(answers, golds, strict=True)]
    return find_threshold([a.doubt for a in answers], when_answered, [float(not gold) for gold in golds])


def split_by_article(rows: Dataset, share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Part training questions into ``(kept, held_out)`` with no article in both.

    Questions of one article share contexts, so a split by question would hold out texts that were trained on.

    Parameters
    ----------
    rows
        With a column ``title``.
    share
        Held-out share of the questions, in (0, 1); reached or passed by the last article drawn.
    seed
        Of the order in which articles are drawn.

    Raises
    ------
    ValueError
        If the share is out of range, there is no column ``title``, or an article would have to be in both.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share!r} is not between 0 and 1.")
    titles = list(rows["title"]) if "title" in rows.column_names else []
    articles = sorted(set(titles))
    if len(articles) < 2:
        raise ValueError(
            f"Questions of two articles or more are needed; got {len(articles)} in column 'title'."
        )
    random.Random(seed).shuffle(articles)
    held: set[str] = set()
    for article in articles[:-1]:
        held.add(article)
        if sum(title in held for title in titles) >= share * len(titles):
            break
    places = range(len(titles))
    kept = [place for place in places if titles[place] not in held]
    return rows.select(kept), rows.select([place for place in places if titles[place] in held])
