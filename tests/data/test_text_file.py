"""A task from a reader's own file: what is read, how it is split, what is refused and in which words."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from lora_tutorial.cli.main import app, main
from lora_tutorial.data.own_file import SHARES, Row, example_file, is_text_file, read_rows, task_from_file
from lora_tutorial.data.reviews import text_key
from lora_tutorial.data.sources import check_split
from lora_tutorial.experiments.run import Experiment, describe
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import load_record

WORDS = ["ash", "birch", "cedar", "elder", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "willow"]
ROWS = [
    (f"{word} in {place}", label) for word in WORDS for place, label in (("spring", "s"), ("autumn", "a"))
]


def as_csv(rows, header=("text", "label"), delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(content, name="trees.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_task_has_three_sides_and_every_row_once(write):
    task, data = task_from_file(write(as_csv(ROWS)))
    assert (task.name, task.labels, task.metric, task.num_labels) == ("trees", ("a", "s"), "accuracy", 2)
    assert {side: len(rows) for side, rows in data.items()} == {"train": 14, "validation": 4, "test": 6}
    for side, rows in data.items():
        check_split(task, side, rows)
        assert rows["label"].count(0) == rows["label"].count(1) == len(rows) / 2
    together = [
        (text, task.labels[n])
        for rows in data.values()
        for text, n in zip(rows["text"], rows["label"], strict=True)
    ]
    assert sorted(together) == sorted(ROWS)


def test_the_split_depends_on_the_texts_and_the_seed_alone(write):
    first = task_from_file(write(as_csv(ROWS))).data
    turned = task_from_file(write(as_csv(ROWS[::-1]))).data
    other = task_from_file(write(as_csv(ROWS)), seed=1).data
    for side in SHARES:
        assert first[side]["text"][:] == turned[side]["text"][:]
    assert set(first["test"]["text"]) != set(other["test"]["text"])


def test_repeated_texts_are_kept_once(write):
    data = task_from_file(write(as_csv([*ROWS, (" ASH, in  spring!", "s"), ROWS[3]]))).data
    keys = [text_key(text) for rows in data.values() for text in rows["text"]]
    assert len(keys) == len(set(keys)) == len(ROWS)


def test_texts_in_any_script_are_told_apart(write):
    words = ["кот 1", "пёс 1", "कि 1", "का 1", "猫 1", "犬 1", "good 😀 1", "good 😡 1", "КОТ, 1!"]
    rows = [(f"{word} {n}", "odd" if n % 2 else "even") for n in range(10) for word in words]
    data = task_from_file(write(as_csv(rows))).data
    assert sum(map(len, data.values())) == 80, "the last word is the first one in capitals"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_spreadsheets_write_them(write, delimiter, mark, end):
    rows = [('one, two; "three"\nfour', "x"), ("naïve 東京", "y")]
    content = as_csv(rows, ("words", "kind"), delimiter).replace("\n", end)
    read = read_rows(write(mark + content.encode()), text="words", label="kind")
    assert [(" ".join(row.text.split()), row.label) for row in read] == [
        ('one, two; "three" four', "x"),
        ("naïve 東京", "y"),
    ]
    assert [row.line for row in read] == [3, 4]


def test_json_lines(write):
    content = (
        "\n".join(json.dumps({"label": n, "text": f"t\u2028{n}", "more": None}) for n in (3, 10)) + "\n\n"
    )
    assert read_rows(write(content, "a.jsonl")) == [Row("t\u2028" + "3", 3, 1), Row("t\u2028" + "10", 10, 2)]


def test_whole_numbers_are_sorted_by_value(write):
    rows = [(text, {"s": 10, "a": 9}[label]) for text, label in ROWS]
    assert task_from_file(write(as_csv(rows))).task.labels == ("9", "10")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "trees.csv has no column 'text' and no column 'label'; it has none"),
        (as_csv(ROWS, ("words", "label")), "has no column 'text'; it has 'words', 'label'"),
        (as_csv([*ROWS, (" ", "s")]), "trees.csv, line 26: the text is ' '"),
        (as_csv([*ROWS, ("new", "")]), "line 26: the label is ''"),
        (as_csv(ROWS) + "one, two,s\n", "line 26: 3 fields, and the first line names 2"),
        (as_csv(ROWS) + 'one "two" three,"s" s\n', "check the double quotes"),
        (as_csv(ROWS) + '"never closed,s\n', "check the double quotes"),
        (as_csv(ROWS).encode("utf-16"), "is not UTF-8"),
        (as_csv([*ROWS, ("Ash in Spring", "a")]), "Lines 2 and 26 of trees.csv have one text"),
        (as_csv([(text, "s") for text, _ in ROWS]), "the classes ['s']; two classes are needed"),
        (as_csv([]), "0 different texts and the classes []"),
        (as_csv(ROWS[:18]), "2 of 2 have fewer ('a' 9, 's' 9)"),
        (as_csv([*ROWS, ("new", "S")]), "labels 's' and 'S'"),
        (as_csv([(text, f"0.{n}") for n, (text, _) in enumerate(ROWS)]), "ratings are no classes"),
    ],
)
def test_what_cannot_be_meant_is_refused(write, content, words):
    with pytest.raises(ValueError) as refused:
        task_from_file(write(content))
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1, is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"text": "a"}', "line 1, has no column 'label'"),
        ('{"text": 3, "label": "a"}', "the text is 3"),
        ('{"text": "a", "label": 0.5}', "the label is 0.5"),
        ('{"text": "a", "label": true}', "the label is True"),
        ('{"text": "a", "label": null}', "the label is None"),
    ],
)
def test_lines_that_are_no_row_are_refused(write, line, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        read_rows(write(line, "a.jsonl"))


def test_files_that_are_not_read(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"table\.xlsx is no \.csv, \.tsv, \.jsonl file"):
        read_rows(write(b"", "table.xlsx"))
    for name in ("reviews.csv", "squad_mine.csv"):
        with pytest.raises(ValueError, match="rename the file"):
            task_from_file(write(as_csv(ROWS), name))
    with pytest.raises(ValueError, match="name two columns"):
        read_rows(write(as_csv(ROWS)), text="text", label="text")


def test_a_record_names_the_file_and_no_folder(write):
    path = write(as_csv(ROWS))
    assert is_text_file(path) and not is_text_file("reviews") and not is_text_file("squad_v2-articles")
    experiment = Experiment(load_recipe("cpu"), str(path))
    assert describe(experiment, "", "")["task"] == "trees"


def test_our_own_questions_are_a_good_example():
    rows = read_rows(example_file())
    task, data = task_from_file(example_file())
    assert task.labels == ("mathematics", "tools", "training")
    assert sum(map(len, data.values())) == len(rows) == 240  # no text twice
    assert {row.text.strip() == row.text and row.text.isascii() for row in rows} == {True}


def test_the_command_line_refuses_in_one_sentence(write, tmp_path, monkeypatch, capsys):
    path = write(as_csv(ROWS, ("words", "label")))
    monkeypatch.chdir(tmp_path)
    for name, words in (("none.csv", "There is no file none.csv"), (path.name, "has no column 'text'")):
        monkeypatch.setattr("sys.argv", ["lora-tutorial", "train", "--task", name])
        with pytest.raises(SystemExit):
            main()
        assert words in " ".join(capsys.readouterr().err.split())
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_the_command_line_trains_on_a_file_and_predicts(write, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out, path = tmp_path / "run", write(as_csv(ROWS))
    output = run(
        "train", "--task", path, "--out", out, "--epochs", 1, "--method", "lora", "--head", "roberta"
    )
    assert "trees, test split" in output and "majority class" in output
    record = load_record(out / "record.json")
    assert (record.config["task"], record.extra["scored_on"]) == ("trees", "test")
    assert record.extra["scores"]["majority class"]["accuracy"] == 0.5
    assert str(tmp_path) not in (out / "adapter" / "adapter.json").read_text()
    assert run("predict", out / "adapter", "ash in autumn").split()[0] in ("a", "s")
