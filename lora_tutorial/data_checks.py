"""Rows that cannot be right are refused before any work, with one sentence that says which and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

    from lora_tutorial.task_registry import Task


def has_no_labels(task: Task, split: str, rows: Dataset) -> bool:
    """Whether this is a test split with its labels withheld: all are -1, as in GLUE on the hub."""
    if split != "test" or "label" not in rows.column_names or not len(rows):
        return False
    return bool((np.asarray(rows["label"]) == -1).all()) and not (
        task.regression and task.label_range[0] <= -1
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
