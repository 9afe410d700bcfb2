"""What kind of mistake each answer is: SQuAD's scores say how often a model is wrong, not how."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_tutorial.data.span_metrics import score_answer
from lora_tutorial.squad.decoding import Answer

if TYPE_CHECKING:
    from datasets import Dataset

#: From right to far off. ``"boundary"``: the answer holds a gold answer or lies within one. ``"overlap"``:
#: they share some characters, and each has more. ``"same sentence"``: as a gold answer, with no character in
#: common. ``"wrong sentence"``: elsewhere. ``"refused"``: no answer given where there is one.
#: ``"answered"``: one given where there is none.
KINDS = ("right", "boundary", "overlap", "same sentence", "wrong sentence", "refused", "answered")

# A full stop and the like, closing marks, a space, and then something that can begin a sentence.
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")


def error_kind(
    answer: Answer, context: str, golds: Mapping[str, Sequence[Any]], threshold: float = math.inf
) -> str:
    """Which of ``KINDS`` an answer is; with several gold answers, the mildest.

    Right is what scores an exact match in version 2.0, so it may also stand elsewhere in the context. A
    sentence ends at a full stop, question or exclamation mark before a capital or a digit: a rule of thumb.

    Parameters
    ----------
    answer
        From ``decode``.
    context
        The question's.
    golds
        ``text`` and ``answer_start``, as SQuAD has them; both empty where there is no answer.
    threshold
        Doubts above it are refusals; without one nothing is refused.

    Raises
    ------
    ValueError
        If there are not as many offsets as texts.
    """
    texts, starts = golds["text"], golds["answer_start"]
    if len(texts) != len(starts):
        raise ValueError(f"Question {answer.id!r} has {len(texts)} gold answers and {len(starts)} offsets.")
    given = answer.text(threshold)
    if not given and texts:
        return "refused"
    if score_answer(given, texts)[0]:
        return "right"
    if not texts:
        return "answered"
    span, ends = answer.spans[0], [match.end() for match in _SENTENCE_END.finditer(context)]
    places = [(start, start + len(text)) for text, start in zip(texts, starts, strict=True)]
    return min((_distance((span.start, span.end), place, ends) for place in places), key=KINDS.index)


def count_kinds(rows: Dataset, answers: Sequence[Answer], threshold: float = math.inf) -> dict[str, int]:
    """How many answers are of each kind, in the order of ``KINDS``; they add up to the questions.

    Parameters
    ----------
    rows
        Columns ``id``, ``context`` and ``answers``.
    answers
        One for each row, in the same order, as a ``Reader`` gives them.
    threshold
        As for `error_kind`.

    Raises
    ------
    ValueError
        If the answers are those of other questions, or in another order.
    """
    if list(rows["id"]) != [answer.id for answer in answers]:
        raise ValueError(
            f"The {len(answers)} answers are not those to these {len(rows)} questions in their order; "
            "read these rows with a Reader."
        )
    counts = dict.fromkeys(KINDS, 0)
    for answer, context, golds in zip(answers, rows["context"], rows["answers"], strict=True):
        counts[error_kind(answer, context, golds, threshold)] += 1
    return counts


def _distance(given: tuple[int, int], gold: tuple[int, int], ends: Sequence[int]) -> str:
    """How far an answer is from a gold one; both as first character and the one after the last."""
    if given[0] < gold[1] and gold[0] < given[1]:
        shared = max(given[0], gold[0]), min(given[1], gold[1])
        return "boundary" if shared in (given, gold) else "overlap"
    sentence, wanted = (sum(end <= place[0] for end in ends) for place in (given, gold))
    return "same sentence" if sentence == wanted else "wrong sentence"
