"""A task for a language model, made of the installed libraries: code in, a sentence about it out.

Nothing is downloaded: the functions are read from the packages that the book runs on, as text, with ``ast``;
none is imported. Sides are whole packages, so that no function has a twin on another side.
"""

from __future__ import annotations

import ast
import hashlib
import json
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict

from lora_tutorial.storage.downloads import cache_folder
from lora_tutorial.storage.files import atomic_write_bytes

#: Which distributions' functions are on which side; BSD licences all, but matplotlib's own of that kind.
SIDES = {
    "train": ("matplotlib", "numpy", "pandas", "scipy"),
    "validation": ("networkx",),
    "test": ("scikit-learn",),
}
REQUEST = "Summarise this Python function in one sentence."
#: Characters of a function's code without its docstring, and of the sentence: least and most.
CODE, SENTENCE = (60, 900), (20, 160)
#: Rows to validate and to test on; a hash of the sentence draws them.
MOST = {"validation": 128, "test": 256}
#: Raise it when other functions are chosen: what an older version kept in the cache is then not used.
VERSION = 1


class Documented(NamedTuple):
    """A function: its name, its code without the docstring, and the docstring's first sentence."""

    name: str
    code: str
    sentence: str


def load_docstrings() -> DatasetDict:
    """Every side's conversations: a request with a function's code, and the sentence as the answer.

    Read from the installed packages once, and from the cache afterwards. The rows depend on these packages'
    versions only.

    Returns
    -------
    DatasetDict
        ``train``, ``validation`` and ``test`` with columns ``messages`` (a list of ``role`` and ``content``)
        and ``source`` (package and version).

    Raises
    ------
    ValueError
        If a package is not installed or comes without its sources.
    """
    return DatasetDict({side: Dataset.from_list(_rows(side)) for side in SIDES})


def _rows(side: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    for package in SIDES[side]:
        functions = package_functions(package)
        source = f"{package} {metadata.version(package)}"
        for function in functions:
            if function.sentence not in known:  # a sentence that several functions share is kept once
                known.add(function.sentence)
                rows.append({"messages": conversation(function), "source": source})
    if side in MOST:
        rows.sort(key=lambda row: hashlib.sha256(row["messages"][-1]["content"].encode()).hexdigest())
    return rows[: MOST.get(side)]


def conversation(function: Documented) -> list[dict[str, str]]:
    """The request and the answer, as the messages of a chat."""
    request = f"{REQUEST}\n\n```python\n{function.code}\n```"
    return [{"role": "user", "content": request}, {"role": "assistant", "content": function.sentence}]


def package_functions(package: str) -> list[Documented]:
    """The documented functions of one installed package, from the cache or else from its sources.

    Raises
    ------
    ValueError
        If it is not installed or comes without its sources.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"The docstrings of {package} are needed; pip install {package}.") from None
    kept = cache_folder() / "docstrings" / f"{package}-{found.version}-v{VERSION}.json"
    try:
        return [Documented(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # not there, or not whole
        files = sorted(str(found.locate_file(file)) for file in found.files or () if is_source(file.parts))
    if not files:
        raise ValueError(f"{package} comes without its sources here, so it has no docstrings to read.")
    texts = (Path(file).read_text(encoding="utf-8") for file in files)
    functions = [function for text in texts for function in documented_functions(text)]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(kept, json.dumps([list(function) for function in functions]).encode())
    except OSError:
        pass  # a cache that cannot be written saves no time, and that is all
    return functions


def is_source(parts: tuple[str, ...]) -> bool:
    """Whether a file of a distribution is one of its modules, and none of its tests."""
    own = parts[-1].endswith(".py") and not parts[0].endswith((".dist-info", ".data"))
    return own and not any(part in ("tests", "testing", "conftest.py", "_testing") for part in parts)


def documented_functions(source: str) -> Iterator[Documented]:
    """A module's public functions and methods that have a short body and a whole first sentence."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        sentence = first_sentence(ast.get_docstring(node) or "")
        if not SENTENCE[0] <= len(sentence) <= SENTENCE[1]:
            continue
        string = node.body[0]  # the docstring's own statement
        head, rest = lines[node.lineno - 1 : string.lineno - 1], lines[string.end_lineno : node.end_lineno]
        code = textwrap.dedent("\n".join(line.rstrip() for line in [*head, *rest] if line.strip()))
        if CODE[0] <= len(code) <= CODE[1] and len(node.body) > 1:
            yield Documented(node.name, code, sentence)


def first_sentence(docstring: str) -> str:
    """The docstring's first paragraph up to its first full stop, on one line; ``""`` where it has none."""
    paragraph = " ".join(docstring.strip().partition("\n\n")[0].split())
    sentence, stop, _ = f"{paragraph} ".partition(". ")
    return f"{sentence}." if stop else ""
