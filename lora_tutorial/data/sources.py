"""Load a task's data from wherever they are, and check every row."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset

from lora_tutorial.data import reviews
from lora_tutorial.data.docstrings import load_docstrings
from lora_tutorial.data.tasks import LoadedTask, Task, find_source, get_task
from lora_tutorial.storage import hub


def has_no_labels(task: Task, split: str, rows: Dataset) -> bool:
    """Whether this is a test split with its labels withheld: all are -1, as in GLUE on the hub."""
    if split != "test" or "label" not in rows.column_names or not len(rows):
        return False
    return bool((np.asarray(rows["label"]) == -1).all()) and not (
        task.label_range is not None and task.label_range[0] <= -1
    )


def check_split(task: Task, split: str, rows: Dataset) -> None:
    """Check the columns, texts and labels of one split.

    Raises
    ------
    ValueError
        If a column is missing, the split is empty, a text is missing, a label is out of range or no number,
        or a SQuAD answer is not at its offset in the context.
    """
    where = f"Split {split!r} of task {task.name!r}"
    absent = [column for column in task.required_columns if column not in rows.column_names]
    if absent:
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, absent))}; it has {', '.join(rows.column_names)}, "
            f"and {', '.join(task.required_columns)} are needed."
        )
    if not len(rows):
        raise ValueError(f"{where} is empty; give a source with at least one row.")
    if task.generative:
        return  # whoever makes conversations checks them
    for column in task.columns:
        for index, text in enumerate(rows[column]):
            if not isinstance(text, str):
                raise ValueError(f"{where}: {column!r} of row {index} is {text!r}, not a text.")
    if task.extractive:
        _check_answers(task, where, rows)
    else:
        _check_labels(task, where, rows)


def _check_labels(task: Task, where: str, rows: Dataset) -> None:
    low, high = task.label_range or (0, len(task.labels) - 1)
    for index, label in enumerate(rows["label"]):
        number = isinstance(label, int) or (task.regression and isinstance(label, float))
        if not number or not low <= label <= high:  # NaN is in no range
            kind = "numbers" if task.regression else "whole numbers"
            raise ValueError(
                f"{where}: the label of row {index} is {label!r}; {kind} from {low} to {high} are accepted."
            )


def _check_answers(task: Task, where: str, rows: Dataset) -> None:
    for batch in rows.select_columns(["id", "context", "answers"]).iter(1000):
        for identifier, context, answers in zip(batch["id"], batch["context"], batch["answers"], strict=True):
            texts, starts = answers["text"], answers["answer_start"]
            if len(texts) != len(starts):
                raise ValueError(f"{where}: {identifier} has {len(texts)} answers and {len(starts)} offsets.")
            if not texts and task.name == "squad":
                raise ValueError(f"{where}: {identifier} has no answer, which only 'squad_v2' allows.")
            for text, start in zip(texts, starts, strict=True):
                found = context[start : start + len(text)]
                if start < 0 or not text or found != text:
                    raise ValueError(
                        f"{where}: the answer {text!r} of {identifier} is not at offset {start} of its "
                        f"context, where {found!r} stands."
                    )


def load_task(name: str, source: str | os.PathLike[str] = "auto") -> LoadedTask:
    """Load a task's data and check every row.

    Parameters
    ----------
    name
        A key of ``TASKS``.
    source
        ``"embedded"``; ``"hub"``; a folder that holds ``<task>/<split>.parquet`` in the hub's schema; or
        ``"auto"``: embedded where possible, else the folder in ``LORA_TUTORIAL_DATA`` if set, else the hub.

    Returns
    -------
    LoadedTask
        The splits the source has. A split whose labels are all -1, as GLUE's test splits on the hub, is not
        among them.

    Raises
    ------
    ValueError
        If there is no such task, the source does not have it, or a row is wrong: a missing column, an empty
        split, a label out of range, a SQuAD answer that is not at its offset.
    FileNotFoundError
        If the folder is missing or has no file for the task.
    HubUnreachableError
        If the hub is needed and does not answer.
    AssetError
        If embedded data are needed and cannot be fetched.
    """
    task = get_task(name)
    place = find_source(name, source)
    if task.generative:
        data = load_docstrings()
    elif place == "embedded":
        data = reviews.load_corpus(name.removesuffix("-rating"), task.regression)
    else:
        found = _from_hub(task) if place == "hub" else _from_folder(task, Path(place))
        data = DatasetDict()
        for split, names in task.splits.items():
            for existing in [candidate for candidate in names if candidate in found][:1]:
                data[split] = found[existing]
    if task.train_articles:
        data = _part_by_article(task, data)
    elif task.train_share and "validation" in data:
        data = _part_by_text(task, data["validation"])
    data = DatasetDict({split: rows for split, rows in data.items() if not has_no_labels(task, split, rows)})
    for split, rows in data.items():
        check_split(task, split, rows)
    if not data:
        raise ValueError(f"Source {str(place)!r} has no labelled split of task {name!r}.")
    return LoadedTask(task, data)


def check_no_overlap(trained_on: Task | str, reported_on: Task | str) -> None:
    """Refuse a score on texts that the model may have been trained on.

    A task's own splits are taken to be disjoint.

    Raises
    ------
    ValueError
        If the two tasks share texts, or there is no such task.
    """
    first = get_task(trained_on) if isinstance(trained_on, str) else trained_on
    second = get_task(reported_on) if isinstance(reported_on, str) else reported_on
    if second.name in first.shares_text_with or first.name in second.shares_text_with:
        raise ValueError(
            f"{first.name!r} and {second.name!r} share texts: a model trained on one may not be scored on "
            "the other; report another task."
        )


def count_shared_rows(trained_on: LoadedTask, reported_on: LoadedTask, split: str = "validation") -> int:
    """How many rows of a split also stand in another task's data, whatever the split, the label or the case.

    Rows are compared by ``reviews.text_key`` of every text column, so that spaces and punctuation do not
    count: SST-2 has "it 's" where the reviews have "it's".

    Raises
    ------
    ValueError
        If ``reported_on`` has no such split.
    """
    if split not in reported_on.data:
        raise ValueError(
            f"{reported_on.task.name!r} has no split {split!r}; it has {', '.join(reported_on.data)}."
        )
    known = {row for rows in trained_on.data.values() for row in _keys(trained_on.task, rows)}
    return sum(row in known for row in _keys(reported_on.task, reported_on.data[split]))


def _keys(task: Task, rows: Dataset) -> list[tuple[str, ...]]:
    texts = zip(*(rows[column] for column in task.columns), strict=True)
    return [tuple(reviews.text_key(text) for text in row) for row in texts]


def _part_by_article(task: Task, data: DatasetDict) -> DatasetDict:
    rows = data.get("validation")
    titles = list(rows["title"]) if rows is not None and "title" in rows.column_names else []
    absent = sorted(task.train_articles - set(titles))
    if absent:
        raise ValueError(
            f"Task {task.name!r} needs the whole development set, with column 'title'; of its articles "
            f"{len(absent)} are not there, such as {absent[0]!r}."
        )
    return _part(rows, [title in task.train_articles for title in titles])


def _part_by_text(task: Task, rows: Dataset) -> DatasetDict:
    """By a hash of the first text, so that a text's side does not depend on what else is there."""
    digests = (hashlib.sha256(text.encode()).digest() for text in rows[task.columns[0]])
    return _part(rows, [int.from_bytes(digest[:8]) < task.train_share * 2**64 for digest in digests])


def _part(rows: Dataset, for_training: list[bool]) -> DatasetDict:
    chosen: dict[bool, list[int]] = {True: [], False: []}
    for place, train in enumerate(for_training):
        chosen[train].append(place)
    return DatasetDict(train=rows.select(chosen[True]), validation=rows.select(chosen[False]))


def _from_folder(task: Task, folder: Path) -> dict[str, Dataset]:
    wanted = {name for names in task.splits.values() for name in names}
    try:
        return {
            file.stem: Dataset(pyarrow.parquet.read_table(file))
            for file in sorted(folder.glob("*.parquet"))
            if file.stem in wanted
        }
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"A file in {folder} is not readable parquet ({error}).") from error


_INSTEAD = (
    "without it name a folder of parquet files in LORA_TUTORIAL_DATA, or take 'reviews' or another "
    "embedded task"
)


def _from_hub(task: Task) -> DatasetDict:
    """The task's data from the hub, or as they were loaded last where the hub does not answer."""
    files = [f"{task.config}/*" if task.config else "*.parquet", "README.md"]
    try:
        revision = hub.download(task.path, "dataset", files, _INSTEAD).name
    except hub.HubUnreachableError:
        cached = _from_cache(task)
        if cached is None:
            raise
        return cached
    try:
        return load_dataset(task.path, task.config, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        told = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"The hub's files of {task.name!r} cannot be read ({told}); {_INSTEAD}.") from error


def _from_cache(task: Task) -> DatasetDict | None:
    """What `load_dataset` keeps of an earlier call, without a look at the network."""
    offline, verbosity = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True  # else it tries the network for some twenty seconds
    datasets.logging.set_verbosity_error()
    try:
        return load_dataset(task.path, task.config)
    except (OSError, ValueError):  # not there
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        datasets.logging.set_verbosity(verbosity)
