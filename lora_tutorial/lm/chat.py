"""From a conversation to tokens and labels: the chat template, and what of it the model learns to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

#: The label that cross-entropy leaves out (its default ``ignore_index``).
IGNORED = -100
Message = Mapping[str, str]


class EncodedChat(NamedTuple):
    """A conversation as the model reads it.

    Attributes
    ----------
    input_ids
        The whole conversation as the chat template writes it.
    labels
        The same tokens where the assistant speaks, its end token included, and ``IGNORED`` elsewhere. They
        stand at the tokens' own places: whoever computes the loss shifts them by one.
    """

    input_ids: list[int]
    labels: list[int]


def encode_chat(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, last_only: bool = False
) -> EncodedChat:
    """Write a conversation with the tokenizer's chat template and mark what the assistant says.

    Parameters
    ----------
    messages
        Dictionaries with ``role`` (``"system"``, ``"user"`` or ``"assistant"``) and ``content``; the last is
        the assistant's.
    tokenizer
        With a chat template and an end token.
    last_only
        Whether earlier answers are part of the prompt (examples), instead of something to learn too.

    Raises
    ------
    ValueError
        If the assistant does not have the last word, or the template does not write a conversation's
        beginning the same way when more follows.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("A conversation to learn from ends with the assistant's message.")
    ids = template_ids(messages, tokenizer)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or (last_only and turn < len(messages) - 1):
            continue
        prompt = template_ids(messages[:turn], tokenizer, answer=True)
        through = ids if turn == len(messages) - 1 else template_ids(messages[: turn + 1], tokenizer)
        if ids[: len(prompt)] != prompt or ids[: len(through)] != through:
            raise ValueError(
                "This chat template changes what it wrote when a conversation goes on, so it does not tell "
                "which tokens are the assistant's. Train on single answers, or give the tokenizer another."
            )
        end = _end_of_turn(through, len(prompt), tokenizer)
        labels[len(prompt) : end] = ids[len(prompt) : end]
    return EncodedChat(ids[: _last(labels) + 1], labels[: _last(labels) + 1])


def template_ids(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, answer: bool = False
) -> list[int]:
    """The tokens of a conversation; with ``answer`` the opening of the assistant's turn follows.

    The template writes every special token itself. A tokenizer that is called on its text afterwards would
    put a second begin token in front of it, so that is switched off.
    """
    plain = [dict(message) for message in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer)
    return tokenizer(str(text), add_special_tokens=False)["input_ids"]


def _end_of_turn(ids: list[int], start: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """The place after the last end token from ``start`` on; what a template writes after it is not learnt."""
    ends = [place for place in range(start, len(ids)) if ids[place] == tokenizer.eos_token_id]
    return ends[-1] + 1 if ends else len(ids)


def _last(labels: list[int]) -> int:
    return max(place for place, label in enumerate(labels) if label != IGNORED)
