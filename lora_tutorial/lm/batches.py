"""From encoded conversations to batches: padded side by side, or packed one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import make_loader
from lora_tutorial.lm.chat import IGNORED, encode_chat

Row = Mapping[str, Sequence[int]]


def tokenize_chats(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Encode every conversation, and leave out those of more than ``max_length`` tokens.

    A conversation that is cut has lost its answer or its end token, and a model that never sees an end never
    stops. So the long ones are left out whole; compare the numbers of rows to see how many.

    Parameters
    ----------
    data
        Splits with a column ``messages``.
    tokenizer
        As for `encode_chat`.
    max_length
        In tokens.

    Returns
    -------
    DatasetDict
        The same splits with ``input_ids`` and ``labels`` (see `EncodedChat`), and ``row``, each row's number
        in its split before any was left out.

    Raises
    ------
    ValueError
        If a split has no row that is short enough.
    """
    tokens = DatasetDict()
    for split, rows in data.items():
        encoded = [encode_chat(messages, tokenizer) for messages in rows["messages"]]
        kept = [row for row, chat in enumerate(encoded) if len(chat.input_ids) <= max_length]
        if not kept:
            shortest = min(len(chat.input_ids) for chat in encoded)
            raise ValueError(
                f"No conversation of split {split!r} fits into max_length={max_length} tokens; the shortest "
                f"has {shortest}."
            )
        columns = {
            name: [list(getattr(encoded[row], name)) for row in kept] for name in ("input_ids", "labels")
        }
        tokens[split] = Dataset.from_dict({**columns, "row": kept})
    return tokens


def pad(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """One row each, filled up on the right to the longest.

    Parameters
    ----------
    rows
        With ``input_ids`` and ``labels``.
    pad_id
        Any token: it is neither attended to nor learnt. That it may be the end token is no harm, because the
        mask goes by place and not by token.

    Returns
    -------
    dict
        ``input_ids``, ``attention_mask`` and ``labels``, each (batch, longest).
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([fill(row["input_ids"], pad_id) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([fill(row["labels"], IGNORED) for row in rows]),
    }


def pack(rows: Sequence[Row]) -> dict[str, Tensor]:
    """All rows in one sequence, without a filler; none sees another.

    Parameters
    ----------
    rows
        With ``input_ids`` and ``labels``.

    Returns
    -------
    dict
        ``input_ids``, ``position_ids`` (each row's begin at 0) and ``labels``, each (1, total); and
        ``attention_mask`` (1, 1, total, total), True where the token of a row (third axis) may look at the
        token of a column (fourth). The first token of each row is no one's to predict.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)  # (total,): which row a token is of
    positions = torch.cat([torch.arange(int(length)) for length in lengths])
    place = torch.arange(len(owner))
    same, earlier = owner[:, None] == owner[None, :], place[:, None] >= place[None, :]  # (total, total)
    labels = torch.tensor([label for row in rows for label in (IGNORED, *row["labels"][1:])])
    return {
        "input_ids": torch.tensor([token for row in rows for token in row["input_ids"]])[None],
        "position_ids": positions[None],
        "attention_mask": (same & earlier)[None, None],
        "labels": labels[None],
    }


def at_answers(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let a model compute logits only where an answer's token is predicted; its loss stays what it was.

    The output layer of a small model is a fifth of its work, and most of a conversation is prompt.

    Parameters
    ----------
    batch
        From `pad` or `pack`.

    Returns
    -------
    dict
        The same, with ``logits_to_keep`` (kept,), the places where some row has an answer's token next, and
        ``shift_labels`` (batch, kept), each row's next token there or ``IGNORED``. Models of transformers
        know both names.
    """
    next_labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # (batch, length)
    kept = (next_labels != IGNORED).any(0).nonzero().flatten()  # (batch, length) -> (kept,)
    return {**batch, "logits_to_keep": kept, "shift_labels": next_labels[:, kept]}


def make_chat_loader(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    packed: bool = False,
    **order: Any,
) -> DataLoader:
    """Batches of conversations, see `pad`, `pack` and `at_answers`.

    Parameters
    ----------
    rows
        One split from `tokenize_chats`.
    tokenizer
        Its tokenizer.
    batch_size
        Conversations in a batch.
    packed
        Whether a batch is one packed sequence. Several processes cannot share such a batch.
    **order
        ``shuffle``, ``seed``, ``sort_by_length`` and ``group_by_length``, as for `make_loader`.
    """
    assert tokenizer.pad_token_id is not None  # load_lm_tokenizer sees to it
    together = pack if packed else partial(pad, pad_id=tokenizer.pad_token_id)

    def collate(batch: Sequence[Row]) -> dict[str, Tensor]:
        return at_answers(together(batch))

    return make_loader(rows, tokenizer, batch_size, collate=collate, **order)
