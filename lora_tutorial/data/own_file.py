"""A task from a reader's own file: a text or a pair of texts a row, and a class or a score, checked and split."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_tutorial.data.tasks import TASKS, LoadedTask, Task
from lora_tutorial.storage.files import bundled_folder

#: Endings of the files that are read.
ENDINGS = (".csv", ".tsv", ".jsonl")
#: Names of the text columns; the first of these that a file has is read.
TEXT_COLUMNS = (
    ("text",),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
#: Name of the column of classes, and of the one that holds numbers to predict. A file that has both is read
#: for its classes.
LABEL, SCORE = "label", "score"
#: Per cent of each class on each side.
SHARES = {"train": 60, "validation": 15, "test": 25}
#: Rows on the validation and on the test side at most, or one of each class: 5,000 place an accuracy within
#: 1.4 points (95 %), and more would be scored for nothing. The others are for training.
MOST = 5_000
#: With fewer, a class could not stand on all three sides.
FEWEST = 10
_ADVICE = (
    f"name them in its first line: text and {LABEL}; for pairs text_a, text_b and {LABEL}; with numbers to "
    f"predict {SCORE} instead of {LABEL}"
)


class Row(NamedTuple):
    """A text, its label as it stands in the file, the line on which the row ends, and a pair's other text."""

    text: str
    label: str | int | float
    line: int
    second: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The one text, or both of a pair."""
        return (self.text,) if self.second is None else (self.text, self.second)


def example_file() -> Path:
    """The file that comes with the book: 240 questions about it, in three classes."""
    return bundled_folder("texts") / "questions.csv"


def is_text_file(name: str) -> bool:
    """Whether a task's name means a reader's file, of a kind that is read or not, and no task of ours."""
    path = Path(name)
    return name not in TASKS and (bool(path.suffix) or len(path.parts) > 1 or path.is_file())


def read_rows(
    path: str | os.PathLike[str], text: str | Sequence[str] | None = None, label: str | None = None
) -> list[Row]:
    """Every row of a file, in its order.

    Parameters
    ----------
    path
        CSV (commas, semicolons or tabs) with a first line of column names, or JSON lines. UTF-8.
    text
        The column to read, or the two of a pair; others may be there. Left out, the first of
        ``TEXT_COLUMNS`` that the file has.
    label
        The column of labels. Left out, ``label`` or else ``score``. A column called ``score`` holds numbers
        to predict; any other holds classes, as words or whole numbers.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file's kind is not known, it is not UTF-8, a column is missing or there twice, a row is cut
        short, a cell is too long for the CSV reader, a text or label is empty (nothing to be seen in it), or
        a label is neither text nor a whole number, or no number where it is a score. The message says which
        line.
    """
    path = Path(path)
    content = _read(path)
    chosen = None if text is None else ((text,) if isinstance(text, str) else tuple(text))
    if chosen is not None and (len(chosen) > 2 or len({*chosen, label}) <= len(chosen)):
        raise ValueError(f"text={text!r}, label={label!r}: name one text column or two, and another for labels.")
    records = _json_records if path.suffix.lower() == ".jsonl" else _csv_records
    columns: tuple[str, ...] = ()
    rows = []
    for where, line, names, record in records(path.name, content, lambda found: _wanted(found, chosen, label)):
        if columns and names != columns:
            raise ValueError(f"{where}: the columns are {', '.join(names)}; line {rows[0].line} has {', '.join(columns)}.")
        *texts, column = columns = names
        for name in texts:
            if not isinstance(record[name], str) or not _visible(record[name]):
                raise ValueError(f"{where}: the {name} is {record[name]!r}; fill it in or remove the row.")
        rows.append(Row(record[texts[0]], _label(where, column, record[column]), line, *(record[n] for n in texts[1:])))
    return rows
