"""From texts to padded batches: tokenising a task and a loader that repeats itself exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import (
    Dataset,
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from lora_tutorial.data.tasks import LoadedTask


def tokenize(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> DatasetDict:
    """Tokenise the texts of a classification or a regression.

    Parameters
    ----------
    loaded
        What ``load_task`` returned.
    tokenizer
        The encoder's tokenizer. Pairs go in together, separated as it separates them.
    max_length
        Longer inputs are cut to this many tokens, special tokens included; of a pair, the longer text first.

    Returns
    -------
    DatasetDict
        The same splits and rows, with ``input_ids``, ``attention_mask``, ``token_type_ids`` where the
        tokenizer makes them, and ``labels`` (whole numbers, or floats for a regression). Nothing is padded.

    Raises
    ------
    ValueError
        If the task is SQuAD, or ``max_length`` leaves no room for text or is more than the encoder takes.
    TypeError
        If ``tokenizer`` is no tokenizer (the shapes of ``weights="random"`` may come without one).
    """
    if loaded.task.extractive:
        raise ValueError(f"Task {loaded.task.name!r} needs windows over its contexts, not tokenize().")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer is {tokenizer!r}; give the tokenizer of the encoder.")
    shortest = tokenizer.num_special_tokens_to_add(pair=len(loaded.task.columns) == 2) + 1
    if not shortest <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length!r} is not from {shortest} to {tokenizer.model_max_length}, the lengths "
            "that this tokenizer's encoder takes."
        )
    number = float if loaded.task.regression else int

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [list(rows[column]) for column in loaded.task.columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        return encoded | {"labels": [number(label) for label in rows["label"]]}

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return DatasetDict(
            {
                split: rows.map(
                    encode,
                    batched=True,
                    remove_columns=rows.column_names,
                    keep_in_memory=True,
                    load_from_cache_file=False,
                    new_fingerprint=f"{loaded.task.name}-{split}-{max_length}",  # else the closure is pickled
                )
                for split, rows in loaded.data.items()
            }
        )
    finally:
        if shown:
            enable_progress_bars()


def count_cut(
    loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, max_length: int = 128
) -> dict[str, int]:
    """How many rows of each split ``tokenize`` cuts, because they have more than ``max_length`` tokens."""
    cut = dict.fromkeys(loaded.data, 0)
    for split, rows in loaded.data.items():
        for batch in rows.select_columns(list(loaded.task.columns)).iter(1000):
            texts = zip(*(batch[column] for column in loaded.task.columns), strict=True)
            # no tokenizer of ours makes more tokens of a text than it has bytes, so short ones cannot be cut
            long = [row for row in texts if sum(len(text.encode()) + 2 for text in row) >= max_length]
            if long:
                encoded = tokenizer(*map(list, zip(*long, strict=True)), verbose=False)
                cut[split] += sum(len(ids) > max_length for ids in encoded["input_ids"])
    return cut


def make_loader(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    sort_by_length: bool = False,
    group_by_length: bool = False,
    collate: Callable[[list[Any]], dict[str, Any]] | None = None,
) -> DataLoader:
    """Batches of tensors, each padded to its own longest row.

    Parameters
    ----------
    dataset
        One split from ``tokenize``.
    tokenizer
        Its tokenizer, which knows how to pad.
    batch_size
        Rows in a batch; the last batch may have fewer.
    shuffle, seed
        Whether to draw a new order in each pass, from a generator of its own with this seed. It is
        ``loader.generator``: seeding it again repeats a pass.
    sort_by_length
        Put rows of like length together, so that evaluation pads less. The order of the rows then differs
        from the data set's; not to be combined with ``shuffle``.
    group_by_length
        With ``shuffle``: draw batches whose rows are of like length, see `GroupedBatches`.
    collate
        Makes a batch of rows, instead of transformers' ``DataCollatorWithPadding``.

    Returns
    -------
    DataLoader
        Dictionaries with ``input_ids`` and ``attention_mask`` (batch, length), ``token_type_ids`` likewise
        where there are any, and ``labels`` (batch,).

    Raises
    ------
    ValueError
        If ``batch_size`` is not a positive whole number, the data set is empty or not tokenised, or both
        orders are asked for.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is not a positive whole number.")
    if shuffle and sort_by_length:
        raise ValueError("shuffle and sort_by_length ask for two orders; choose one.")
    if group_by_length and not shuffle:
        raise ValueError("group_by_length is a way to shuffle: add shuffle=True, or take sort_by_length.")
    if not len(dataset) or "input_ids" not in dataset.column_names:
        raise ValueError(f"There is nothing to load: columns {dataset.column_names}, {len(dataset)} rows.")
    lengths = [len(ids) for ids in dataset["input_ids"]] if sort_by_length or group_by_length else []
    collate = DataCollatorWithPadding(tokenizer) if collate is None else collate
    if group_by_length:
        return DataLoader(
            dataset, batch_sampler=GroupedBatches(lengths, batch_size, seed), collate_fn=collate
        )
    if sort_by_length:
        dataset = dataset.select(np.argsort(lengths, kind="stable").tolist())
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )


def in_row_order(values: Any, lengths: Sequence[int]) -> list[Any]:
    """What came a row at a time from a loader with ``sort_by_length``, in the data set's own order.

    Parameters
    ----------
    values
        A number, or a vector, for each row, in the loader's order.
    lengths
        Tokens of each row, in the data set's order.
    """
    ordered = np.empty((len(lengths), *np.shape(values)[1:]))
    ordered[np.argsort(lengths, kind="stable")] = values
    return ordered.tolist()


class GroupedBatches:
    """Random batches of rows of like length: about half the padding of plain shuffling on GLUE's tasks.

    Fifty batches' worth of rows at a time are drawn at random and sorted by length (transformers'
    ``get_length_grouped_indices``). The batches then come in random order, a last short one last, so that
    long and short rows are spread over the epoch.

    Parameters
    ----------
    lengths
        Tokens of each row.
    batch_size
        Rows in a batch.
    seed
        With the epoch, which ``set_epoch`` sets, it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.drop_last, self.epoch = False, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=random)
        whole = len(rows) // self.batch_size
        for place in [*torch.randperm(whole, generator=random).tolist(), *range(whole, len(self))]:
            yield rows[place * self.batch_size : (place + 1) * self.batch_size]
