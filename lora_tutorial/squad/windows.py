"""SQuAD's questions as windows of tokens: from characters to token positions, and back to the source text.

A context longer than the encoder's input is read through several windows, each with the whole question in
front (Devlin et al. 2019, section 4.2, and their code). Neighbouring windows overlap, so that an answer cut
by one lies whole in the next.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.sources import check_split
from lora_tutorial.data.tasks import get_task

_BATCH = 1000  # rows tokenised together
NOWHERE = 0  # position of the first token, which stands for "no answer in this window"


@dataclass(frozen=True)
class Windows:
    """The windows of some questions, in the questions' order.

    Attributes
    ----------
    inputs
        One row a window: ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer makes
        them; for training ``start_positions`` and ``end_positions``, otherwise ``window``, its number.
    rows
        For each window, which question it belongs to.
    offsets
        For each window an array (tokens, 2): first character in the context and the one after the last.
        Tokens at which no answer can begin or end (question, special tokens, bare spaces) have -1 twice.
    ids, contexts
        For each question its id and context.
    """

    inputs: Dataset
    rows: list[int]
    offsets: list[np.ndarray]
    ids: list[str]
    contexts: list[str]


def make_windows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 384,
    overlap: int = 128,
    training: bool = False,
) -> Windows:
    """Cut questions with their contexts into windows.

    Parameters
    ----------
    rows
        Columns ``id``, ``question`` and ``context``; for training ``answers`` too, of which the first counts.
    tokenizer
        The encoder's fast tokenizer, padding on the right.
    max_length
        Tokens in a window at most, question and special tokens included.
    overlap
        Tokens of the context that neighbouring windows share. The Transformers examples call it
        ``doc_stride``; in BERT's own code that name is the step from one window to the next.
    training
        Whether to add the answer's positions. A window without the whole answer has both at ``NOWHERE``.

    Raises
    ------
    ValueError
        If a column is missing, there is no row, a question or context is empty, an answer is not at its
        offset or has no token, or ``max_length`` is too short for a question, the overlap and one token more.
    TypeError
        If the tokenizer cannot say where its tokens lie in the text.
    """
    _check_tokenizer(tokenizer, max_length, overlap)
    _check_rows(rows, training)
    ids, contexts = list(rows["id"]), list(rows["context"])
    questions = [question.strip() for question in rows["question"]]
    _check_lengths(ids, questions, tokenizer, max_length, overlap)
    columns: dict[str, list] = {name: [] for name in tokenizer.model_input_names}
    owners, offsets = [], []
    for begin in range(0, len(ids), _BATCH):
        encoded = tokenizer(
            questions[begin : begin + _BATCH],
            contexts[begin : begin + _BATCH],
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
        )
        for name, values in columns.items():
            values.extend(encoded[name])
        owners += [begin + row for row in encoded["overflow_to_sample_mapping"]]
        offsets += [_context_offsets(encoding) for encoding in encoded.encodings]
    readable = {row for row, window in zip(owners, offsets, strict=True) if (window >= 0).any()}
    for row in sorted(set(range(len(ids))) - readable)[:1]:
        raise ValueError(f"The context of question {ids[row]!r} has no token: {contexts[row][:40]!r}.")
    if training:
        answers = [_first_answer(answer) for answer in rows["answers"]]
        positions = answer_positions(ids, answers, owners, offsets)
        columns["start_positions"] = [start for start, _ in positions]
        columns["end_positions"] = [end for _, end in positions]
    else:
        columns["window"] = list(range(len(owners)))
    return Windows(Dataset.from_dict(columns), owners, offsets, ids, contexts)


def locate(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """First and last token, both included, that hold some of the characters ``start`` to ``end - 1``.

    Parameters
    ----------
    offsets
        Of one window, (tokens, 2).

    Returns
    -------
    tuple or None
        ``None`` where the window has no such token. An answer that begins or ends inside a token gets the
        whole token: an encoder cannot point between.
    """
    touched = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def source_text(context: str, start: int, end: int) -> tuple[str, int]:
    """The context's own characters from ``start`` to ``end``, and where they really end.

    A tokenizer that drops accents also drops a combining mark from the token's offsets, and an emoji's
    variation selector likewise; marks that follow the last character belong to it and are taken along.
    """
    while end < len(context) and _continues(context[end]):
        end += 1
    return context[start:end], end


def _continues(character: str) -> bool:
    """Whether the character is part of what stands before it: a mark, a joiner or a flag's tag."""
    joiner = character == "\u200d" or "\U000e0020" <= character <= "\U000e007f"
    return joiner or unicodedata.category(character).startswith("M")


def _context_offsets(encoding) -> np.ndarray:
    """(tokens, 2): characters of the context's tokens; -1 elsewhere, and for tokens without a character."""
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)  # (tokens, 2) even without tokens
    outside = np.array([sequence != 1 for sequence in encoding.sequence_ids])
    offsets[outside | (offsets[:, 0] >= offsets[:, 1])] = -1
    return offsets


def _first_answer(answers: dict[str, list]) -> tuple[int, str] | None:
    return (answers["answer_start"][0], answers["text"][0]) if answers["text"] else None


def answer_positions(
    ids: Sequence[str],
    answers: Sequence[tuple[int, str] | None],
    owners: Sequence[int],
    offsets: Sequence[np.ndarray],
) -> list[tuple[int, int]]:
    """Start and end token of each window, ``NOWHERE`` twice where the answer is not whole in it."""
    found: list[tuple[int, int] | None] = []
    extent: dict[
        int, tuple[int, int]
    ] = {}  # characters that the answer's tokens cover in all windows together
    for row, window in zip(owners, offsets, strict=True):
        tokens = None
        if (known_answer := answers[row]) is not None:
            start, text = known_answer
            tokens = locate(window, start, start + len(text))
        if tokens is not None:
            first, last = int(window[tokens[0], 0]), int(window[tokens[1], 1])
            known = extent.get(row, (first, last))
            extent[row] = min(first, known[0]), max(last, known[1])
        found.append(tokens)
    for row, answer in enumerate(answers):
        if answer is not None and row not in extent:
            raise ValueError(f"The answer {answer[1]!r} of question {ids[row]!r} has no token; leave it out.")
    positions = []
    for row, window, tokens in zip(owners, offsets, found, strict=True):
        if tokens is not None and (window[tokens[0], 0], window[tokens[1], 1]) == extent[row]:
            positions.append(tokens)
        else:
            positions.append((NOWHERE, NOWHERE))
    return positions


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, overlap: int) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise TypeError(f"tokenizer is {tokenizer!r}; windows need a fast one, which knows its offsets.")
    if tokenizer.padding_side != "right":
        raise ValueError(
            "The tokenizer pads on the left, where windows have their first token; set it right."
        )
    for name, value, least in (("max_length", max_length, 1), ("overlap", overlap, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} is not a whole number of at least {least}.")
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} is more than the {tokenizer.model_max_length} tokens that this "
            "tokenizer's encoder takes."
        )


def _check_rows(rows: Dataset, training: bool) -> None:
    if training:
        check_split(get_task("squad_v2"), "train", rows)
    absent = [name for name in ("id", "question", "context") if name not in rows.column_names]
    if absent or not len(rows):
        raise ValueError(f"There is nothing to read: {len(rows)} rows, no column {', '.join(absent) or '-'}.")
    for name in ("question", "context"):
        for identifier, text in zip(rows["id"], rows[name], strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"The {name} of question {identifier!r} is empty ({text!r}); leave it out.")


def _check_lengths(
    ids: Sequence[str],
    questions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    overlap: int,
) -> None:
    lengths = [len(tokens) for tokens in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    longest = int(np.argmax(lengths))
    needed = lengths[longest] + special + overlap + 1
    if needed > max_length:
        raise ValueError(
            f"max_length={max_length} is too short for question {ids[longest]!r}: its {lengths[longest]} "
            f"tokens, {special} special ones, overlap={overlap} and one token of progress make {needed}. "
            "Raise max_length, lower overlap, or leave the question out."
        )
