"""A task from a reader's own file: a text or two in each row, and a class or a number; checked and split."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_tutorial.data.tasks import TASKS, LoadedTask, Task
from lora_tutorial.storage.files import bundled_folder

#: Endings of the files that are read.
ENDINGS = (".csv", ".tsv", ".jsonl")
#: Names that the text columns may have: of a single text, or of the two of a pair.
TEXT_COLUMNS = (
    ("text",),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
#: Name of the column of classes, and of a column of numbers to predict. Of both, the classes are read.
LABEL_COLUMNS = ("label", "score")
#: Per cent of each class on each side.
SHARES = {"train": 60, "validation": 15, "test": 25}
#: Rows to validate or to test on, at most (but one of each class): 5,000 place an accuracy within 1.4 points
#: (95 %). The rows that this spares are for training.
MOST = 5_000
#: With fewer, a class could not stand on all three sides.
FEWEST = 10

_Texts = tuple[str, ...] | None
_Record = tuple[int, tuple[str, ...], dict[str, Any]]  # line; text columns, then the label's; cells by column


class Row(NamedTuple):
    """A text, its label as it stands in the file, the line on which the row ends, and a pair's other text."""

    text: str
    label: str | int | float
    line: int
    second: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The one text, or both."""
        return (self.text,) if self.second is None else (self.text, self.second)


def example_file() -> Path:
    """The file that comes with the book: 240 questions about it, in three classes."""
    return bundled_folder("texts") / "questions.csv"


def is_text_file(name: str | os.PathLike[str]) -> bool:
    """Whether a task's name means a file, which `task_from_file` may still refuse, and no task of ours."""
    path = Path(name)
    return str(name) not in TASKS and (bool(path.suffix) or len(path.parts) > 1 or path.is_file())


def read_rows(
    path: str | os.PathLike[str], text: str | tuple[str, str] | None = None, label: str | None = None
) -> list[Row]:
    """Every row of a file, in its order.

    Parameters
    ----------
    path
        CSV (commas, semicolons or tabs) with a first line of column names, or JSON lines. UTF-8.
    text
        The column of texts, or the two of a pair. By default the first of ``TEXT_COLUMNS`` in the file.
    label
        The column of labels, by default ``"label"`` or else ``"score"``. A column that is called ``score``
        holds numbers to predict, any other one classes: words or whole numbers. Other columns may be there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file's kind is not known, it is not UTF-8, a column is missing or there twice, a row is cut
        short, a cell is too long, a text or label is empty or invisible, a class is neither text nor a whole
        number, or a score is no number. The message says which line.
    """
    path = Path(path)
    texts = None if text is None else (text,) if isinstance(text, str) else tuple(text)
    if texts is not None and (len(texts) > 2 or len({*texts, label}) <= len(texts)):
        raise ValueError(f"text={text!r}, label={label!r}: name two columns, or three where texts are pairs.")
    records = _json_records if path.suffix.lower() == ".jsonl" else _csv_records
    rows: list[Row] = []
    first: tuple[str, ...] = ()
    for line, columns, cells in records(path.name, _content(path), texts, label):
        where, first = f"{path.name}, line {line}", first or columns
        if columns != first:
            raise ValueError(
                f"{where} has the columns {', '.join(columns)}, and line {rows[0].line} has "
                f"{', '.join(first)}; write all rows alike."
            )
        words = [_text(where, name, cells[name]) for name in columns[:-1]]
        read = _score if columns[-1] == "score" else _class
        rows.append(Row(words[0], read(where, cells[columns[-1]]), line, *words[1:]))
    return rows


def _content(path: Path) -> str:
    """The file's text, or what is wrong with the file as a whole."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"{path.name} is no {', '.join(ENDINGS)} file: save the table as one of them. A spreadsheet's "
            "program does so with Save as, CSV (UTF-8)."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a CSV or JSON lines file.")
    data = path.read_bytes()
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path.name}, line {line}, is not UTF-8 (byte {error.object[error.start]:#04x}): save the file "
            "as CSV UTF-8, or choose UTF-8 as the encoding."
        ) from error
    if "\0" in content:
        line = content[: content.index("\0")].count("\n") + 1
        raise ValueError(f"{path.name}, line {line}, has a zero byte, so it is not UTF-8; save it as UTF-8.")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def _csv_records(name: str, content: str, texts: _Texts, label: str | None) -> Iterator[_Record]:
    """The rows of a table; its delimiter is the one that brings most of the wanted names to light."""
    wanted = {*LABEL_COLUMNS, *itertools.chain(*TEXT_COLUMNS), *(texts or ()), label}
    line = end = 0
    try:
        first = content.partition("\n")[0]
        headers = [(delimiter, next(csv.reader([first], delimiter=delimiter), [])) for delimiter in ",;\t"]
        delimiter, header = max(headers, key=lambda pair: (len(wanted & set(pair[1])), len(pair[1])))
        columns = _columns(name, header, texts, label)
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            line, end = end + 1, reader.line_num
            if fields and len(fields) != len(header):
                raise ValueError(
                    f"{name}, line {end}: {len(fields)} fields, and the first line names {len(header)}; put "
                    f"a text that holds {delimiter!r} in double quotes."
                )
            if fields and line > 1:
                yield end, columns, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        if "field limit" in str(error):
            raise ValueError(
                f"{name}, line {end + 1}: a cell has more than {csv.field_size_limit():,} characters. "
                "Shorten the text (an encoder reads only its beginning), or write the rows as JSON lines."
            ) from error
        raise ValueError(f"{name}, line {end + 1}: {error}; check the double quotes.") from error


def _json_records(name: str, content: str, texts: _Texts, label: str | None) -> Iterator[_Record]:
    for line, written in enumerate(content.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            pairs = json.loads(written, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name}, line {line}, is no JSON ({error}); write one object a line."
            ) from error
        if not isinstance(pairs, _Pairs):
            raise ValueError(f"{name}, line {line}, is no JSON object; write one object a line.")
        columns = _columns(f"{name}, line {line},", [key for key, _ in pairs], texts, label)
        yield line, columns, dict(pairs)


class _Pairs(list):
    """A JSON object as its pairs: a dictionary would hide a name that stands in it twice."""


def _columns(where: str, found: Sequence[str], texts: _Texts, label: str | None) -> tuple[str, ...]:
    """The text columns and, last, the label's: those that are named, else the first known ones."""
    named = (texts,) if texts else TEXT_COLUMNS
    own = next((columns for columns in named if set(columns) <= set(found)), None)
    labels = next((column for column in ((label,) if label else LABEL_COLUMNS) if column in found), None)
    if own is None or labels is None:
        absent = [column for column in named[0] if column not in found] if own is None else []
        absent += [label or LABEL_COLUMNS[0]] if labels is None else []
        advice = (
            "Rename yours: 'text' and 'label'; 'text_a', 'text_b' and 'label' for pairs; 'score' instead of "
            "'label' for numbers."
        )
        raise ValueError(
            f"{where} has no column {' and no column '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, found)) or 'none'}. {'Name one of these.' if texts or label else advice}"
        )
    for column in (*own, labels):
        if found.count(column) > 1:
            raise ValueError(
                f"{where} has the column {column!r} {found.count(column)} times; keep one of them."
            )
    return (*own, labels)


def _text(where: str, column: str, cell: object) -> str:
    if not isinstance(cell, str) or not _visible(cell):
        raise ValueError(f"{where}: the {column} is {cell!r}; fill it in or remove the row.")
    if re.search("[\ud800-\udfff]", cell):
        raise ValueError(f"{where}: the {column} holds half a character (\\ud800 to \\udfff); remove it.")
    return cell


def _class(where: str, cell: object) -> str | int:
    if isinstance(cell, str) and _visible(cell):
        return cell.strip()
    if isinstance(cell, int) and not isinstance(cell, bool):
        return cell
    raise ValueError(f"{where}: the label is {cell!r}; give the class as a word or a whole number.")


def _score(where: str, cell: object) -> float:
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(cell, str | int | float) and not isinstance(cell, bool) and math.isfinite(float(cell)):
            return float(cell)
    raise ValueError(f"{where}: the score is {cell!r}; give a number, such as 3.5.")


def _visible(text: str) -> str:
    """The text without spaces around it and without what has no width, such as a zero-width space."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf")).strip()


def task_from_file(
    path: str | os.PathLike[str],
    text: str | tuple[str, str] | None = None,
    label: str | None = None,
    seed: int = 0,
) -> LoadedTask:
    """Make a task of a file of labelled texts, or pairs of texts.

    A text (or pair) that stands in the file several times, whatever its case, spaces and punctuation, is kept
    once. Each class is then cut by ``SHARES``, scores all together, with at most ``MOST`` rows to validate
    and to test on. The order in which they are cut is that of a hash of the texts, so the order of the rows
    plays no part and the sides are the same on every machine. Two pairs with one text in common are
    different, and may stand on two sides.

    Parameters
    ----------
    path, text, label
        As for `read_rows`.
    seed
        Another seed gives another split.

    Returns
    -------
    LoadedTask
        Named after the file. Splits ``train``, ``validation`` and ``test`` have columns ``text`` (of pairs
        ``text_a`` and ``text_b``) and ``label``. Classes are sorted by name (by value, if all are whole
        numbers), and the score is accuracy; scores are a regression, scored by correlation.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_rows`; and if the file's name is that of a task, one text has two labels, two labels differ
        in case alone, there is one class, a class has fewer than ``FEWEST`` texts, the classes are numbers
        with a fraction, or there are fewer than twice ``FEWEST`` scores or only one.
    """
    path = Path(path)
    rows, name = read_rows(path, text, label), path.stem
    if name in TASKS or name.startswith("squad"):
        raise ValueError(f"{name!r} is the name of a task; rename the file.")
    different: dict[str, Row] = {}
    for row in rows:
        known = different.setdefault("\t".join(map(_key, row.texts)), row)
        if str(known.label) != str(row.label):
            raise ValueError(
                f"Lines {known.line} and {row.line} of {path.name} have one text and the labels "
                f"{known.label!r} and {row.label!r}; decide on one."
            )
    drawn = [row for _, row in sorted(different.items(), key=lambda item: _digest(item[0], seed))]
    columns = ("text",) if not drawn or drawn[0].second is None else ("text_a", "text_b")
    if drawn and isinstance(drawn[0].label, float):
        task = Task(name, columns, "pearson_spearman", label_range=_range(path.name, drawn))
    else:
        task = Task(name, columns, "accuracy", _classes(path.name, drawn))
    # here, so that a bad file is refused before a second is spent on importing
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    kind = Value("float64") if task.regression else ClassLabel(names=list(task.labels))
    features = Features({column: Value("string") for column in columns} | {"label": kind})
    number = {label: place for place, label in enumerate(task.labels)}
    data = DatasetDict()
    for side, own in _sides(drawn, task.regression).items():
        table: dict[str, list[Any]] = {
            column: [row.texts[i] for row in own] for i, column in enumerate(columns)
        }
        table["label"] = [row.label if task.regression else number[str(row.label)] for row in own]
        data[side] = Dataset.from_dict(table, features=features)
    return LoadedTask(task, data)


def _classes(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """The classes in order, or what is wrong with them."""
    counts = Counter(str(row.label) for row in rows)
    if len(counts) < 2:
        raise ValueError(
            f"{name} has {len(rows)} different texts and the classes {list(counts)}; two classes are needed."
        )
    folded: dict[str, str] = {}
    for label in counts:
        if (other := folded.setdefault(_visible(label).casefold(), label)) != label:
            raise ValueError(f"{name} has the labels {other!r} and {label!r}; write both the same way.")
    whole = all(_is(int, label) for label in counts)
    if not whole and all(_is(float, label) for label in counts):
        raise ValueError(
            f"{name} has numbers with a fraction as labels, such as {min(counts)}: ratings are no classes. "
            "Call the column 'score' to predict the numbers, or make classes of them, such as low and high."
        )
    small = [(label, count) for label, count in sorted(counts.items()) if count < FEWEST]
    if small:
        shown = ", ".join(f"{label!r} {count}" for label, count in small[:5])
        raise ValueError(
            f"{name}: each class needs {FEWEST} different texts, and {len(small)} of {len(counts)} have "
            f"fewer ({shown}); collect more, or join classes."
        )
    return tuple(sorted(counts, key=int if whole else str))


def _range(name: str, rows: Sequence[Row]) -> tuple[float, float]:
    """Lowest and highest score, or what is wrong with them."""
    scores = [float(row.label) for row in rows]
    if len(rows) < 2 * FEWEST or min(scores) == max(scores):
        raise ValueError(
            f"{name} has {len(rows)} different texts and {len(set(scores))} different scores; "
            f"{2 * FEWEST} texts and two scores are needed."
        )
    return min(scores), max(scores)


def _sides(drawn: Sequence[Row], together: bool) -> dict[str, list[Row]]:
    """Cut the rows, class by class or all together; the first of each are for the test."""
    groups = ["" if together else str(row.label) for row in drawn]
    counts, seen = Counter(groups), Counter[str]()
    sides: dict[str, list[Row]] = {side: [] for side in SHARES}
    for group, row in zip(groups, drawn, strict=True):
        test, validation = (_size(counts[group], len(drawn), side) for side in ("test", "validation"))
        place = seen[group]
        seen[group] += 1
        side = "test" if place < test else "validation" if place < test + validation else "train"
        sides[side].append(row)
    return sides


def _size(count: int, total: int, side: str) -> int:
    """How many of a class's rows go to a side, of ``total`` rows in the file."""
    if total * SHARES[side] > 100 * MOST:
        return max(1, round(count * MOST / total))
    return round(count * SHARES[side] / 100)


def _key(text: str) -> str:
    """What two texts share if they differ only in case, spaces or punctuation, in any script."""
    folded = text.casefold()
    if folded.isascii():  # the same as below, faster
        bare = re.sub("[^a-z0-9]+", "", folded)
    else:  # letters, marks and numbers; So has emoji, and two texts may differ in nothing else
        bare = "".join(c for c in folded if unicodedata.category(c).startswith(("L", "M", "N", "So")))
    return bare or "".join(folded.split())


def _digest(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def _is(kind: type, label: str) -> bool:
    try:
        kind(label)
    except ValueError:
        return False
    return True
