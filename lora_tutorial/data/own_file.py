"""A task from a reader's own file: CSV or JSON lines, one text and one label a row, checked and split."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lora_tutorial.data.tasks import TASKS, LoadedTask, Task
from lora_tutorial.storage.files import bundled_folder

#: Endings of the files that are read.
ENDINGS = (".csv", ".tsv", ".jsonl")
#: Per cent of each class on each side.
SHARES = {"train": 60, "validation": 15, "test": 25}
#: With fewer, a class could not stand on all three sides.
FEWEST = 10


class Row(NamedTuple):
    """A text, its label as it stands in the file, and the line on which the row ends."""

    text: str
    label: str | int
    line: int


def example_file() -> Path:
    """The file that comes with the book: 240 questions about it, in three classes."""
    return bundled_folder("texts") / "questions.csv"


def is_text_file(name: str) -> bool:
    """Whether a task's name is the path of a file that `task_from_file` reads."""
    return Path(name).suffix.lower() in ENDINGS


def read_rows(path: str | os.PathLike[str], text: str = "text", label: str = "label") -> list[Row]:
    """Every row of a file, in its order.

    Parameters
    ----------
    path
        CSV (commas, semicolons or tabs) with a first line of column names, or JSON lines. UTF-8.
    text, label
        The two columns to read; others may be there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file's kind is not known, it is not UTF-8, a column is missing, a row is cut short, a text or
        label is empty, or a label is neither text nor a whole number. The message says which line.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name} is no {', '.join(ENDINGS)} file; save the table as one of them.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a CSV or JSON lines file.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    records = _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    rows = []
    for line, record in records(path.name, content, text, label):
        where = f"{path.name}, line {line}"
        if not isinstance(record[text], str) or not record[text].strip():
            raise ValueError(f"{where}: the text is {record[text]!r}; fill it in or remove the row.")
        rows.append(Row(record[text], _label(where, record[label]), line))
    return rows


def _csv_rows(name: str, content: str, text: str, label: str) -> list[tuple[int, Mapping[str, Any]]]:
    first = content.partition("\n")[0].strip("\r")
    headers = [(delimiter, next(csv.reader([first], delimiter=delimiter), [])) for delimiter in ",;\t"]
    delimiter, header = max(headers, key=lambda pair: (len({text, label} & set(pair[1])), len(pair[1])))
    _check_columns(name, header, text, label)
    rows, reader = [], csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if fields and len(fields) != len(header):
                raise ValueError(
                    f"{name}, line {reader.line_num}: {len(fields)} fields, and the first line names "
                    f"{len(header)}; put a text that holds {delimiter!r} in double quotes."
                )
            rows += [(reader.line_num, dict(zip(header, fields, strict=True)))] if fields else []
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}; check the double quotes.") from error
    return rows[1:]


def _json_rows(name: str, content: str, text: str, label: str) -> list[tuple[int, Mapping[str, Any]]]:
    rows = []
    for line, written in enumerate(content.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            record = json.loads(written)
        except ValueError as error:
            raise ValueError(
                f"{name}, line {line}, is no JSON ({error}); write one object a line."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{name}, line {line}, is no JSON object; write one object a line.")
        _check_columns(f"{name}, line {line},", list(record), text, label)
        rows.append((line, record))
    return rows


def _check_columns(where: str, found: list[str], text: str, label: str) -> None:
    if text == label:
        raise ValueError(f"text and label are both {text!r}; name two columns.")
    if absent := [column for column in (text, label) if column not in found]:
        raise ValueError(
            f"{where} has no column {' and no column '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, found)) or 'none'}. Name yours with text= and label=, or rename them."
        )


def _label(where: str, label: object) -> str | int:
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    raise ValueError(f"{where}: the label is {label!r}; give the class as a word or a whole number.")


def task_from_file(
    path: str | os.PathLike[str], text: str = "text", label: str = "label", seed: int = 0
) -> LoadedTask:
    """Make a task of a file of labelled texts.

    A text that stands in the file several times, whatever its case, spaces and punctuation, is kept once.
    Each class is then cut by ``SHARES``. The order in which it is cut is that of a hash of the texts, so the
    order of the rows plays no part and the sides are the same on every machine.

    Parameters
    ----------
    path, text, label
        As for `read_rows`.
    seed
        Another seed gives another split.

    Returns
    -------
    LoadedTask
        Named after the file. Splits ``train``, ``validation`` and ``test`` have columns ``text`` and
        ``label``; the classes are sorted by name (by value, if all are whole numbers). The score is accuracy.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_rows`; and if the file's name is that of a task, one text has two labels, two labels differ
        in case alone, there is one class, a class has fewer than ``FEWEST`` texts, or the labels are numbers
        with a fraction.
    """
    rows, name = read_rows(path, text, label), Path(path).stem
    if name in TASKS or name.startswith("squad"):
        raise ValueError(f"{name!r} is the name of a task; rename the file.")
    texts: dict[str, Row] = {}
    for row in rows:
        known = texts.setdefault(_key(row.text), row)
        if str(known.label) != str(row.label):
            raise ValueError(
                f"Lines {known.line} and {row.line} of {Path(path).name} have one text and the labels "
                f"{known.label!r} and {row.label!r}; decide on one."
            )
    sides = _sides(_classes(Path(path).name, list(texts.values())), seed)
    labels = tuple(sides)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(labels))})
    data = DatasetDict()
    for side in SHARES:
        chosen = [(row.text, number) for number, own in enumerate(sides.values()) for row in own[side]]
        chosen.sort(key=lambda pair: _digest(pair[0], seed))
        columns = {"text": [words for words, _ in chosen], "label": [number for _, number in chosen]}
        data[side] = Dataset.from_dict(columns, features=features)
    return LoadedTask(Task(name, ("text",), "accuracy", labels), data)


def _classes(name: str, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each class, classes in order, or what is wrong with them."""
    classes: dict[str, list[Row]] = {}
    for row in rows:
        classes.setdefault(str(row.label), []).append(row)
    if len(classes) < 2:
        raise ValueError(
            f"{name} has {len(rows)} different texts and the classes {list(classes)}; two classes are needed."
        )
    folded: dict[str, str] = {}
    for label in classes:
        if (other := folded.setdefault(label.casefold(), label)) != label:
            raise ValueError(f"{name} has the labels {other!r} and {label!r}; write both the same way.")
    whole = all(_is(int, label) for label in classes)
    if not whole and all(_is(float, label) for label in classes):
        raise ValueError(
            f"{name} has numbers with a fraction as labels, such as {min(classes)}: ratings are no classes. "
            "Make classes of them first, such as low and high."
        )
    small = {label: len(own) for label, own in classes.items() if len(own) < FEWEST}
    if small:
        counts = ", ".join(f"{label!r} {count}" for label, count in sorted(small.items())[:5])
        raise ValueError(
            f"{name}: each class needs {FEWEST} different texts, and {len(small)} of {len(classes)} have "
            f"fewer ({counts}); collect more, or join classes."
        )
    return {label: classes[label] for label in sorted(classes, key=int if whole else str)}


def _sides(classes: dict[str, list[Row]], seed: int) -> dict[str, dict[str, list[Row]]]:
    sides = {}
    for label, rows in classes.items():
        rows = sorted(rows, key=lambda row: _digest(row.text, seed))
        test, validation = (round(len(rows) * SHARES[side] / 100) for side in ("test", "validation"))
        kept = rows[test + validation :]
        sides[label] = {"train": kept, "validation": rows[test : test + validation], "test": rows[:test]}
    return sides


def _key(text: str) -> str:
    """What two texts share if they differ only in case, spaces or punctuation, in any script."""
    folded = text.casefold()
    # letters, marks and numbers; So has emoji, and two texts may differ in nothing else
    bare = "".join(c for c in folded if unicodedata.category(c).startswith(("L", "M", "N", "So")))
    return bare or "".join(folded.split())


def _digest(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {_key(text)}".encode()).hexdigest()


def _is(kind: type, label: str) -> bool:
    try:
        kind(label)
    except ValueError:
        return False
    return True
