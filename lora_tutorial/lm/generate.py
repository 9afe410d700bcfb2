"""Let a language model write: token by token with a cache, or for many prompts at once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase

from lora_tutorial.lm.chat import Message, template_ids


class Reply(NamedTuple):
    """What a model wrote.

    Attributes
    ----------
    text
        Without special tokens.
    tokens
        How many it wrote, the end token included.
    stopped
        Whether it wrote the end token, instead of being cut off.
    """

    text: str
    tokens: int
    stopped: bool


@torch.no_grad()
def next_tokens(model: Any, ids: Sequence[int], temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
    """The tokens that a model writes after a prompt, one at a time and without end.

    Each step gives the model only the newest token; keys and values of the earlier ones are in the cache.

    Parameters
    ----------
    model
        A causal language model of transformers, in evaluation mode.
    ids
        The prompt.
    temperature
        0 takes the likeliest token; above it tokens are drawn with logits divided by it.
    seed
        Of the draws.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    new = torch.tensor([list(ids)], device=model.device)  # (1, prompt)
    cache = DynamicCache(config=model.config)
    while True:
        logits = model(input_ids=new, cache=cache, logits_to_keep=1).logits[0, -1].float()  # (vocabulary,)
        if temperature > 0:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[
                None
            ]  # (1, 1)
        else:
            new = logits.argmax().view(1, 1)
        yield int(new)


def stream(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[str, None, Reply]:
    """A model's answer to a conversation, in pieces as they are written, up to its end token.

    Parameters
    ----------
    model, tokenizer
        From ``load_lm``.
    messages
        The last is the user's.
    max_new_tokens
        Where to cut an answer that does not end.
    temperature, seed
        As for `next_tokens`.

    Yields
    ------
    str
        Whole characters: one of several bytes may take several tokens.

    Returns
    -------
    Reply
        The whole answer, and whether it ended by itself or was cut: what ``yield from`` gives at the end.
    """
    ids, shown = [], ""
    prompt = template_ids(messages, tokenizer, answer=True)
    for token in next_tokens(model, prompt, temperature, seed):
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if not text.endswith("\ufffd"):  # half a character
            yield text[len(shown) :]
            shown = text
        if len(ids) == max_new_tokens:
            break
    return _answer(ids, tokenizer)


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[Reply]:
    """The likeliest answer to each of many conversations, token by token.

    Prompts of a batch are filled up on the *left*, so that every one of them ends where the answers begin.

    Parameters
    ----------
    model, tokenizer
        From ``load_lm``.
    conversations
        The last message of each is the user's.
    max_new_tokens
        Where to cut an answer that does not end.
    batch_size
        Conversations at a time, those of like length together.

    Returns
    -------
    list of Reply
        In the order of the conversations.
    """
    prompts = [template_ids(messages, tokenizer, answer=True) for messages in conversations]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers: dict[int, Reply] = {}
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, "writing", leave=False, disable=None):
        places = order[start : start + batch_size]
        batch = pad_left([prompts[place] for place in places], tokenizer.pad_token_id)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
        settings |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        written = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]  # (batch, new)
        for place, ids in zip(places, written.tolist(), strict=True):
            answers[place] = _answer(ids, tokenizer)
    return [answers[place] for place in range(len(prompts))]


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, (batch, longest), filled up on the left."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[pad_id] * (longest - len(ids)) + list(ids) for ids in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]),
    }


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    stopped = tokenizer.eos_token_id in ids
    kept = ids[: ids.index(tokenizer.eos_token_id)] if stopped else ids
    return Reply(str(tokenizer.decode(kept, skip_special_tokens=True)).strip(), len(kept) + stopped, stopped)
