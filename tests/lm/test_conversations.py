"""Text to learn from: the docstring task, and a reader's own file, whose bad lines are named."""

import json

import pytest

from lora_tutorial.data import docstrings
from lora_tutorial.data.docstrings import (
    CODE,
    MOST,
    SENTENCE,
    SIDES,
    documented_functions,
    first_sentence,
    load_docstrings,
    package_functions,
)
from lora_tutorial.data.sources import load_task
from lora_tutorial.lm.instructions import is_conversation_file, read_conversations, task_from_conversations

SOURCE = '''
class Thing:
    @property
    def size(self, unit="mm"):
        """
        Give the size of the thing
        in some unit. It is never negative.

        Parameters
        ----------
        """
        factor = {"mm": 1, "cm": 10}[unit]
        return self.length / factor

    def _hidden(self):
        """Give what nobody outside may look at, really."""
        return self.secret_value_of_the_thing + 1 + 2 + 3

def only_documented():
    """Say something, and have nothing to do at all."""

def short(x):
    """Return twice the number that was given to it."""
    return 2 * x
'''


def test_code_and_first_sentence_are_cut_as_they_stand():
    (found,) = documented_functions(SOURCE)
    assert found.name == "size"
    assert found.sentence == "Give the size of the thing in some unit."
    assert found.code == (
        'def size(self, unit="mm"):\n    factor = {"mm": 1, "cm": 10}[unit]\n    return self.length / factor'
    )


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One thing. Another.", "One thing."),
        ("Over\n   two lines.\n\nMore. Text.", "Over two lines."),
        ("Version 1.5 of it. Next.", "Version 1.5 of it."),
        ("No stop at all", ""),
        ("", ""),
    ],
)
def test_the_first_sentence_ends_at_its_stop(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.fixture(scope="module")
def loaded():
    return load_docstrings()


def test_no_package_and_no_sentence_is_on_two_sides(loaded):
    packages = [package for side in SIDES.values() for package in side]
    assert len(packages) == len(set(packages))
    for side, rows in loaded.items():
        assert {source.split()[0] for source in rows["source"]} == set(SIDES[side])
        sentences = [messages[-1]["content"] for messages in rows["messages"]]
        assert len(sentences) == len(set(sentences))
        assert len(rows) == MOST.get(side, len(rows))
        assert all(SENTENCE[0] <= len(sentence) <= SENTENCE[1] for sentence in sentences)


def test_no_answer_stands_in_its_own_request(loaded):
    for messages in loaded["test"]["messages"]:
        user, assistant = messages
        assert assistant["content"] not in user["content"]
        code = user["content"].split("```python\n")[1].removesuffix("\n```")
        assert CODE[0] <= len(code) <= CODE[1]


def test_the_task_is_loaded_like_any_other(loaded):
    task, data = load_task("docstrings")
    assert task.generative and data.num_rows == loaded.num_rows
    assert list(data["test"]["messages"]) == list(loaded["test"]["messages"])


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstrings, "is_source", lambda parts: parts[-1] == "convert_matrix.py")
    fresh = package_functions("networkx")
    assert len(fresh) == 2
    (kept,) = (tmp_path / "cache" / "docstrings").iterdir()
    assert package_functions("networkx") == fresh
    kept.write_text("[[1,")
    assert package_functions("networkx") == fresh
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(kept))  # a file
    assert package_functions("networkx") == fresh


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ValueError, match="pip install no-such-package"):
        package_functions("no-such-package")


# ---- a reader's own file -----------------------------------------------------------------------------------


def write(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def instruction(number, **more):
    return {"instruction": f"Say {number}.", "output": f"It is {number}.", **more}


def chat(*spoken):
    return {"messages": [{"role": role, "content": text} for role, text in spoken]}


def test_instructions_inputs_and_chats_become_messages(tmp_path):
    long = chat(("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    path = write(tmp_path / "own.jsonl", [instruction(1, input="of these", note=3), "", long])
    first, second = read_conversations(path)
    assert first == [
        {"role": "user", "content": "Say 1.\n\nof these"},
        {"role": "assistant", "content": "It is 1."},
    ]
    assert second == long["messages"]
    assert is_conversation_file(path)


BAD = {
    "no JSON": ("{", "line 2, is no JSON"),
    "a list": ("[1]", "line 2, is no JSON object"),
    "nothing known": (
        {"text": "a", "label": "b"},
        "line 2, has no instruction and no output; it has text, label",
    ),
    "no output": ({"instruction": "a"}, "line 2, has no output"),
    "empty output": ({"instruction": "a", "output": " "}, 'line 2: the output is " "'),
    "a number": ({"instruction": 3, "output": "b"}, "line 2: the instruction is 3"),
    "half a character": ('{"instruction": "a\\ud800", "output": "b"}', "line 2: the instruction holds half"),
    "messages a text": ({"messages": "hello"}, 'line 2: messages is "hello"'),
    "no messages": ({"messages": []}, "line 2: messages is"),
    "no content": ({"messages": [{"role": "user"}]}, "line 2: message 1 is"),
    "a role": (chat(("human", "a"), ("assistant", "b")), "message 1 has the role 'human'"),
    "no answer": (chat(("user", "a")), "the roles are user; after a system message"),
    "two users": (
        chat(("user", "a"), ("user", "b"), ("assistant", "c")),
        "the roles are user, user, assistant",
    ),
    "system alone": (chat(("system", "a")), "the roles are system;"),
    "system late": (
        chat(("user", "a"), ("assistant", "b"), ("system", "c"), ("assistant", "d")),
        "the roles",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_with_what_is_accepted(tmp_path, kind):
    line, message = BAD[kind]
    path = write(tmp_path / "own.jsonl", [instruction(1), line])
    with pytest.raises(ValueError, match=r"own\.jsonl, line 2") as caught:
        read_conversations(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("own.jsonl, line 2")


def test_a_file_that_is_not_utf8_or_not_there_is_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps(instruction(1)).encode() + b"\n\xff")
    with pytest.raises(ValueError, match="line 2, is not UTF-8"):
        read_conversations(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_conversations(tmp_path / "absent.jsonl")


def test_sides_follow_the_prompt_not_the_order(tmp_path):
    lines = [instruction(number) for number in range(40)]
    lines += [instruction(1), {"instruction": "Say 2.", "output": "Two."}]  # a double, and a second answer
    task, data = task_from_conversations(write(tmp_path / "own.jsonl", lines))
    again = task_from_conversations(write(tmp_path / "turned.jsonl", lines[::-1])).data
    sides = {side: {str(messages) for messages in rows["messages"]} for side, rows in data.items()}
    assert sides == {side: {str(messages) for messages in rows["messages"]} for side, rows in again.items()}
    assert sum(map(len, sides.values())) == 41
    prompts = {side: {str(messages[:-1]) for messages in rows["messages"]} for side, rows in data.items()}
    assert not prompts["train"] & prompts["test"] and not prompts["validation"] & prompts["test"]
    assert (len(prompts["validation"]), len(prompts["test"])) == (4, 4)
    assert task.generative and task.name == "own"


def test_too_few_prompts_and_a_tasks_own_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="9 different prompts; at least 10"):
        task_from_conversations(write(tmp_path / "own.jsonl", [instruction(n) for n in range(9)]))
    with pytest.raises(ValueError, match="name of a task"):
        task_from_conversations(write(tmp_path / "docstrings.jsonl", [instruction(n) for n in range(12)]))


@pytest.mark.parametrize("line", [{"text": "a", "label": "b"}, "not JSON", ""])
def test_other_files_are_no_conversations(tmp_path, line):
    assert not is_conversation_file(write(tmp_path / "own.jsonl", [line]))
    assert not is_conversation_file(write(tmp_path / "own.csv", [instruction(1)]))
    assert not is_conversation_file(tmp_path / "absent.jsonl")
