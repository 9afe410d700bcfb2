"""What a run reads: rows held out for choosing, the training set cut to the recipe, tokens, batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_tutorial.data.batches import make_loader, tokenize
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.lm.batches import make_chat_loader, tokenize_chats
from lora_tutorial.squad.threshold import split_by_article
from lora_tutorial.squad.windows import make_windows
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.records import HELD_OUT

EVALUATION_BATCH = 64
OVERLAP = 128  # tokens that neighbouring windows of a context share, as in Transformers' SQuAD examples
THRESHOLD_SHARE = 0.15  # of SQuAD v2's training questions, whole articles: for the no-answer threshold only
HOLD_OUT_SEED = 0


class Loaders(NamedTuple):
    """Shuffled training batches, and batches of every other split with a label in each row."""

    train: DataLoader
    scored: dict[str, DataLoader]


class Prepared(NamedTuple):
    """What the runs of one task share: its data, its tokens (see `tokenize_rows`) and its hash."""

    loaded: LoadedTask
    tokenized: DatasetDict
    data_sha256: str


def hold_out(loaded: LoadedTask, recipe: Recipe, share: float) -> LoadedTask:
    """Take a share of the rows that a run would train on out of the training set, as split ``"held_out"``.

    Learning rates are chosen on it and training stops by it, so that validation rows decide nothing. The rows
    are the same for every seed. SQuAD's are whole articles.

    Raises
    ------
    ValueError
        If ``share`` is not between 0 and 1, or there is no training split.
    """
    if not 0 < share < 1:
        raise ValueError(f"held_out={share!r} is not a share between 0 and 1.")
    if "train" not in loaded.data:
        raise ValueError(f"Task {loaded.task.name!r} has no training split in this source; choose another.")
    rows = loaded.data["train"]
    rows = rows.select(recipe.subset(len(rows), seed=0))
    if loaded.task.extractive:
        kept, held = split_by_article(rows, share, HOLD_OUT_SEED)
    else:
        kept, held = rows.train_test_split(share, seed=HOLD_OUT_SEED).values()
    return LoadedTask(loaded.task, DatasetDict({**loaded.data, "train": kept, HELD_OUT: held}))


def fewer_scored(loaded: LoadedTask, most: int) -> LoadedTask:
    """Leave at most ``most`` rows of every split but the training set, drawn, and the same for every run.

    Of SQuAD's, whole articles are drawn until there are as many questions; so there may be a few more.
    """
    data = dict(loaded.data)
    for split, rows in data.items():
        if split == "train" or len(rows) <= most:
            continue
        if loaded.task.extractive:
            data[split] = split_by_article(rows, most / len(rows), HOLD_OUT_SEED)[1]
        else:
            data[split] = rows.shuffle(seed=HOLD_OUT_SEED).select(range(most))
    return LoadedTask(loaded.task, DatasetDict(data))


def tokenize_rows(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> DatasetDict:
    """Cut the training set to the recipe's ``max_examples``, the same rows for every seed, and tokenise.

    SQuAD's training questions become windows, ``max_examples`` of them at most. Of v2's, whole articles are
    set aside first, as split ``"threshold"``. The other splits stay questions. Of conversations, those longer
    than ``max_length`` are left out, in every split, before any are counted.
    """
    if "train" not in loaded.data:
        raise ValueError(f"Task {loaded.task.name!r} has no training split in this source; choose another.")
    if loaded.task.extractive:
        return _span_rows(loaded, tokenizer, recipe)
    if loaded.task.generative:
        tokens = tokenize_chats(loaded.data, tokenizer, recipe.max_length)
        tokens["train"] = tokens["train"].select(recipe.subset(len(tokens["train"]), seed=0))
        return tokens
    rows = loaded.data["train"]
    data = DatasetDict({**loaded.data, "train": rows.select(recipe.subset(len(rows), seed=0))})
    return tokenize(LoadedTask(loaded.task, data), tokenizer, recipe.max_length)


def _span_rows(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> DatasetDict:
    data = dict(loaded.data)
    if loaded.task.metric == "squad_v2":
        data["train"], data["threshold"] = split_by_article(data["train"], THRESHOLD_SHARE)
    questions = data["train"].select(recipe.subset(len(data["train"]), seed=0))
    windows = make_windows(questions, tokenizer, recipe.max_length, OVERLAP, training=True).inputs
    # a long context has several windows: they are what a step reads, so they are what is counted
    return DatasetDict({**data, "train": windows.select(recipe.subset(len(windows), seed=0))})


def make_loaders(
    loaded: LoadedTask,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    seed: int = 0,
    tokenized: DatasetDict | None = None,
) -> Loaders:
    """Batch a task as the recipe says; ``tokenized``, from `tokenize_rows`, saves tokenising it again."""
    data = tokenize_rows(loaded, tokenizer, recipe) if tokenized is None else tokenized
    scored = {
        split: make_loader(data[split], tokenizer, EVALUATION_BATCH, sort_by_length=True)
        for split in data
        if split != "train" and not loaded.task.extractive
    }
    return Loaders(train_loader(data["train"], tokenizer, recipe, seed), scored)


def train_loader(rows: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, seed: int) -> DataLoader:
    """Shuffled batches of tokenised training rows, of like length where the recipe says so."""
    grouped: dict[str, Any] = {"shuffle": True, "group_by_length": recipe.group_by_length}
    if "row" in rows.column_names:  # conversations
        return make_chat_loader(rows, tokenizer, recipe.batch_size, seed=seed, **grouped)
    return make_loader(rows, tokenizer, recipe.batch_size, seed=seed, **grouped)


def data_hash(splits: Mapping[str, Dataset] | Iterable[tuple[str, Dataset]]) -> str:
    """SHA-256 over every row of every split, so that a record says which data it saw."""
    digest = hashlib.sha256()
    for split, rows in sorted(dict(splits).items()):
        digest.update(split.encode())
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()
