"""A reader's own conversations: JSON lines of instructions or of chats, checked line by line, then split."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_tutorial.data.tasks import TASKS, LoadedTask, Task

#: Per cent of the conversations on each side, and the most that are scored.
SHARES, MOST = {"train": 80, "validation": 10, "test": 10}, 500
FEWEST = 10
ROLES = ("system", "user", "assistant")
_ADVICE = (
    "Each line is an object with instruction, output and, where there is one, input; or with messages, a "
    "list of objects with role (system, user or assistant) and content."
)


def is_conversation_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file's first line looks like an instruction or a chat, whole or not."""
    path = Path(path)
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return bool(re.match(r'\s*\{.*"(messages|instruction)"\s*:', first))


def read_conversations(path: str | os.PathLike[str]) -> list[list[dict[str, str]]]:
    """Every conversation of a file, in its order, as messages.

    Parameters
    ----------
    path
        JSON lines, UTF-8: objects with ``instruction``, ``output`` and optionally ``input``, which follows
        the instruction after an empty line; or with ``messages``, a list of ``role`` and ``content``. A
        ``system`` message may come first; then user and assistant take turns, and the assistant has the last
        word. Other entries may be there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not UTF-8, or a line is no such object; the message says which line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a JSON lines file.")
    return [messages for _, messages in _numbered(path)]


def _numbered(path: Path) -> Iterator[tuple[int, list[dict[str, str]]]]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path.name}, line {bad}, is not UTF-8; save the file as UTF-8.") from error
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{path.name}, line {number}"
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}, is no JSON ({error}); write one object a line.") from error
            yield number, _messages(where, found)


def _messages(where: str, found: Any) -> list[dict[str, str]]:
    if not isinstance(found, dict):
        raise ValueError(f"{where}, is no JSON object. {_ADVICE}")
    if "messages" in found:
        return _chat(where, found["messages"])
    absent = [key for key in ("instruction", "output") if key not in found]
    if absent:
        known = ", ".join(found) or "nothing"
        raise ValueError(f"{where}, has no {' and no '.join(absent)}; it has {known}. {_ADVICE}")
    request = _text(where, "instruction", found["instruction"])
    if found.get("input") not in (None, ""):
        request = f"{request}\n\n{_text(where, 'input', found['input'])}"
    answer = _text(where, "output", found["output"])
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def _chat(where: str, found: Any) -> list[dict[str, str]]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where}: messages is {json.dumps(found)[:40]}. {_ADVICE}")
    messages = []
    for place, message in enumerate(found, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: message {place} is {json.dumps(message)[:40]}. {_ADVICE}")
        if message["role"] not in ROLES:
            raise ValueError(
                f"{where}: message {place} has the role {message['role']!r}, not one of {ROLES}."
            )
        content = _text(where, f"content of message {place}", message["content"])
        messages.append({"role": message["role"], "content": content})
    spoken = [message["role"] for message in messages]
    turns = spoken[1:] if spoken[0] == "system" else spoken
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"{where}: the roles are {', '.join(spoken)}; after a system message, if any, user and assistant "
            "take turns, and the assistant has the last word."
        )
    return messages


def _text(where: str, what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: the {what} is {json.dumps(value)[:40]}; write a text, or remove the line."
        )
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{where}: the {what} holds half a character (\\ud800 to \\udfff); remove it.")
    return value


def task_from_conversations(path: str | os.PathLike[str], seed: int = 0) -> LoadedTask:
    """Make a task of a file of conversations.

    A conversation that stands in the file several times is kept once, and conversations with the same prompt
    are on the same side. The sides follow a hash of the prompt, so the order of the lines plays no part.

    Parameters
    ----------
    path
        As for `read_conversations`.
    seed
        Another seed gives another split.

    Returns
    -------
    LoadedTask
        Named after the file, with splits ``train``, ``validation`` and ``test`` of a column ``messages``.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_conversations`; and if the file's name is that of a task, or there are fewer than ``FEWEST``
        different prompts.
    """
    path = Path(path)
    if path.stem in TASKS:
        raise ValueError(f"{path.stem!r} is the name of a task; rename the file.")
    by_prompt: dict[str, list[list[dict[str, str]]]] = {}
    for messages in read_conversations(path):
        same = by_prompt.setdefault(json.dumps(messages[:-1]), [])
        if messages not in same:
            same.append(messages)
    if len(by_prompt) < FEWEST:
        raise ValueError(f"{path.name} has {len(by_prompt)} different prompts; at least {FEWEST} are needed.")
    drawn = sorted(by_prompt, key=lambda prompt: hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest())
    from datasets import Dataset, DatasetDict

    sides, start = DatasetDict(), 0
    for side in ("test", "validation", "train"):
        size = min(max(1, len(drawn) * SHARES[side] // 100), MOST) if side != "train" else len(drawn)
        own = [{"messages": m} for prompt in drawn[start : start + size] for m in by_prompt[prompt]]
        sides[side], start = Dataset.from_list(own), start + size
    return LoadedTask(Task(path.stem, ("messages",), "response"), sides)
