"""A task from a reader's own file: what is read, how it is split, what is refused and in which words."""

import csv
import io
import json
import re

import pytest
from datasets import ClassLabel, Value

from lora_tutorial.data import own_file
from lora_tutorial.data.own_file import SHARES, Row, example_file, is_text_file, read_rows, task_from_file
from lora_tutorial.data.reviews import text_key
from lora_tutorial.data.sources import check_split
from lora_tutorial.data.tasks import TASKS

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


PAIRS = [
    (f"{a} beside {b}", f"{b} {'under' if n % 2 else 'over'} {a}", "yes" if n % 2 else "no")
    for n, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS[:3])
]


@pytest.mark.parametrize("columns", own_file.TEXT_COLUMNS[1:], ids="-".join)
def test_pairs_are_read_under_the_names_that_data_sets_use(write, columns):
    table = as_csv(PAIRS, (*columns, "label"))
    lines = "".join(json.dumps(dict(zip((*columns, "label"), row, strict=True))) + "\n" for row in PAIRS)
    first = task_from_file(write(table))
    for content, name in ((table.replace(",", "\t"), "trees.tsv"), (lines, "trees.jsonl")):
        assert read_rows(write(content, name))[0].texts == PAIRS[0][:2]
        again = task_from_file(write(content, name))
        assert again.task == first.task
        assert {side: rows.to_list() for side, rows in again.data.items()} == {
            side: rows.to_list() for side, rows in first.data.items()
        }
    assert (first.task.columns, first.task.labels) == (("text_a", "text_b"), ("no", "yes"))
    together = [
        (row["text_a"], row["text_b"], first.task.labels[row["label"]])
        for side, rows in first.data.items()
        for row in rows
        if check_split(first.task, side, rows) is None
    ]
    assert sorted(together) == sorted(PAIRS)


def test_the_columns_of_a_pair_may_be_named_and_their_order_counts(write):
    path = write(as_csv(PAIRS, ("question", "answer", "right")))
    rows = read_rows(path, ("answer", "question"), "right")
    assert (rows[0].texts, rows[0].label, rows[0].line) == ((PAIRS[0][1], PAIRS[0][0]), PAIRS[0][2], 2)
    assert task_from_file(path, ["question", "answer"], "right").data["test"].column_names == [
        "text_a",
        "text_b",
        "label",
    ]
    with pytest.raises(ValueError, match=r"no column 'reply'; .*'answer', 'right'. Name one of these"):
        read_rows(path, ("question", "reply"), "right")
    for names, label in ((("a", "b", "c"), None), (("a", "a"), None), (("a", "b"), "b"), ("a", "a")):
        with pytest.raises(ValueError, match="name two columns, or three where texts are pairs"):
            read_rows(path, names, label)


def test_a_pair_that_stands_twice_is_kept_once_and_turned_round_it_is_another(write):
    more = [(PAIRS[0][0].upper(), PAIRS[0][1] + "!", PAIRS[0][2]), (*PAIRS[0][1::-1], PAIRS[0][2])]
    data = task_from_file(write(as_csv(PAIRS + more, ("text_a", "text_b", "label")))).data
    assert sum(map(len, data.values())) == len(PAIRS) + 1
    # where the first text ends is a part of the pair
    split = [("ash b", "irch", "no"), ("ash", "birch", "yes")]
    data = task_from_file(write(as_csv(PAIRS + split, ("text_a", "text_b", "label")))).data
    assert sum(map(len, data.values())) == len(PAIRS) + 2


@pytest.mark.parametrize("name", ["trees.csv", "trees.jsonl"])
def test_a_column_called_score_makes_a_regression(write, name):
    scores = [(text, n / 4) for n, (text, _) in enumerate(ROWS)]
    lines = "".join(json.dumps({"text": text, "score": score}) + "\n" for text, score in scores)
    task, data = task_from_file(
        write(as_csv(scores, ("text", "score")) if name.endswith("csv") else lines, name)
    )
    assert (task.columns, task.metric, task.labels, task.label_range) == (
        ("text",),
        "pearson_spearman",
        (),
        (0.0, 5.75),
    )
    assert task.regression and task.num_labels == 1
    assert {side: len(rows) for side, rows in data.items()} == {"train": 14, "validation": 4, "test": 6}
    assert data["train"].features["label"] == Value("float64")
    for side, rows in data.items():
        check_split(task, side, rows)
    together = [(row["text"], row["label"]) for rows in data.values() for row in rows]
    assert sorted(together) == sorted(scores)


def test_pairs_have_scores_too_and_whole_numbers_are_scores_only_under_that_name(write):
    rows = [(a, b, n % 4) for n, (a, b, _) in enumerate(PAIRS)]
    task, data = task_from_file(write(as_csv(rows, ("sentence1", "sentence2", "score"))))
    assert task.label_range == (0.0, 3.0) and isinstance(data["test"]["label"][0], float)
    other = [(text, n % 2, n / 7) for n, (text, _) in enumerate(ROWS)]
    task, data = task_from_file(write(as_csv(other, ("text", "label", "score"))))
    assert task.labels == ("0", "1") and data["test"].features["label"] == ClassLabel(names=["0", "1"])
    assert task_from_file(write(as_csv(other, ("text", "label", "score"))), label="score").task.regression


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*ROWS[:4], ("new", "high")], "line 6: the score is 'high'; give a number, such as 3.5"),
        ([("new", "nan")], "line 2: the score is 'nan'"),
        ([("new", "inf")], "line 2: the score is 'inf'"),
        ([("new", "1" + "0" * 400)], "line 2: the score is"),
        ([("new", "")], "line 2: the score is ''"),
        (
            [(text, 3) for text, _ in ROWS],
            "24 different texts and 1 different scores; 20 texts and two scores",
        ),
        ([(text, n) for n, (text, _) in enumerate(ROWS[:19])], "19 different texts and 19 different scores"),
    ],
)
def test_scores_that_cannot_be_meant_are_refused(write, rows, words):
    rows = [(text, 1.5 if label in ("a", "s") else label) for text, label in rows]
    with pytest.raises(ValueError, match=re.escape(words)):
        task_from_file(write(as_csv(rows, ("text", "score"))))
    enough = [(text, n) for n, (text, _) in enumerate(ROWS[:20])]
    assert task_from_file(write(as_csv(enough, ("text", "score")))).task.label_range == (0, 19)


def test_the_rows_to_score_are_capped_and_the_others_train(write, monkeypatch):
    rows = [(f"{text} {n}", label) for n in range(10) for text, label in ROWS]  # 240
    rows += [(f"rare {n}", "r") for n in range(12)]

    def sizes(most):
        monkeypatch.setattr(own_file, "MOST", most)
        data = task_from_file(write(as_csv(rows))).data
        return {side: [rows["label"].count(n) for n in range(3)] for side, rows in data.items()}

    whole = {"train": [72, 7, 72], "validation": [18, 2, 18], "test": [30, 3, 30]}
    assert own_file.MOST == 5000 and sizes(63) == whole
    assert sizes(40) == whole | {"train": [83, 8, 83], "test": [19, 2, 19]}
    # of each class one, however rare
    assert sizes(10) == {"train": [110, 10, 110], "validation": [5, 1, 5], "test": [5, 1, 5]}


def test_whole_numbers_are_sorted_by_value(write):
    rows = [(text, {"s": 10, "a": 9}[label]) for text, label in ROWS]
    assert task_from_file(write(as_csv(rows))).task.labels == ("9", "10")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "trees.csv has no column 'text' and no column 'label'; it has none"),
        (as_csv(ROWS, ("words", "label")), "has no column 'text'; it has 'words', 'label'"),
        (as_csv([*ROWS, (" ", "s")]), "trees.csv, line 26: the text is ' '"),
        (as_csv([*ROWS, ("\u200b\ufeff \u200d", "s")]), r"line 26: the text is '\u200b\ufeff \u200d'"),
        (as_csv([*ROWS, ("\x01\x7f", "s")]), r"line 26: the text is '\x01\x7f'"),
        (as_csv([*ROWS, ("new", "\u200b")]), r"line 26: the label is '\u200b'"),
        (as_csv([*ROWS, ("new", "s\u200b")]), r"labels 's' and 's\u200b'"),
        (as_csv([(*row, "x") for row in ROWS], ("text", "label", "text")), "the column 'text' 2 times"),
        (as_csv([(*row, "x") for row in ROWS], ("label", "text", "label")), "the column 'label' 2 times"),
        (as_csv(ROWS, ("text_a", "label")), "has no column 'text'; it has 'text_a', 'label'. Rename yours"),
        (as_csv([*ROWS, ("x" * 200_000, "s")]), "line 26: a cell has more than 131,072 characters. Shorten"),
        ("x" * 200_000, "line 1: a cell has more than 131,072 characters"),
        (as_csv([*ROWS, ("new", "")]), "line 26: the label is ''"),
        (as_csv(ROWS) + "one, two,s\n", "line 26: 3 fields, and the first line names 2"),
        (as_csv(ROWS) + 'one "two" three,"s" s\n', "check the double quotes"),
        (
            as_csv(ROWS) + '"never closed,s\nmore,s\n',
            "line 26: unexpected end of data; check the double quotes",
        ),
        (as_csv(ROWS).encode("utf-16"), "trees.csv, line 1, is not UTF-8 (byte 0xff)"),
        (as_csv([*ROWS, ("café", "s")]).encode("latin-1"), "trees.csv, line 26, is not UTF-8 (byte 0xe9)"),
        (as_csv([*ROWS, ("new\0", "s")]), "line 26, has a zero byte"),
        (as_csv([*ROWS, ("Ash in Spring", "a")]), "Lines 2 and 26 of trees.csv have one text"),
        (as_csv([(text, "s") for text, _ in ROWS]), "the classes ['s']; two classes are needed"),
        (as_csv([]), "0 different texts and the classes []"),
        (as_csv(ROWS[:18]), "2 of 2 have fewer ('a' 9, 's' 9)"),
        (as_csv([*ROWS, ("new", "S")]), "labels 's' and 'S'"),
        (as_csv([(text, f"0.{n}") for n, (text, _) in enumerate(ROWS)]), "ratings are no classes"),
    ],
)
def test_what_cannot_be_meant_is_refused(write, content, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        task_from_file(write(content))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1, is no JSON"),
        ("[" * 100_000, "line 1, is no JSON"),
        ("[1]", "is no JSON object"),
        ('[["text", "a"], ["label", "b"]]', "line 1, is no JSON object"),
        ('\n{"text": "a", "text": "b", "label": "c"}', "line 2, has the column 'text' 2 times"),
        ('{"text": "a\\ud800", "label": "b"}', "half a character"),
        (
            '{"text": "a", "label": "b"}\n{"text_a": "a", "text_b": "c", "label": "b"}',
            "line 2 has the columns text_a, text_b, label, and line 1 has text, label",
        ),
        ('{"text": "a", "score": true}', "the score is True"),
        ('{"text": "a", "score": NaN}', "the score is nan"),
        ('{"text": "a"}', "line 1, has no column 'label'"),
        ('{"text": 3, "label": "a"}', "the text is 3"),
        ('{"text": "a", "label": 0.5}', "the label is 0.5"),
        ('{"text": "a", "label": true}', "the label is True"),
        ('{"text": "a", "label": null}', "the label is None"),
    ],
)
def test_lines_that_are_no_row_are_refused(write, line, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_rows(write(line, "a.jsonl"))


def test_files_that_are_not_read(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        read_rows(tmp_path / "none.csv")
    for name in ("table.xlsx", "table"):
        with pytest.raises(ValueError, match=rf"{name} is no \.csv, \.tsv, \.jsonl file: .* Save as, CSV"):
            read_rows(write(b"", name))
    for name in ("reviews.csv", "squad_mine.csv"):
        with pytest.raises(ValueError, match="rename the file"):
            task_from_file(write(as_csv(ROWS), name))


def test_a_record_names_the_file_and_no_folder(write):
    from lora_tutorial.experiments.run import Experiment, describe
    from lora_tutorial.training.recipes import load_recipe

    experiment = Experiment(load_recipe("cpu"), str(write(as_csv(ROWS))))
    assert describe(experiment, "", "")["task"] == "trees"


def test_what_names_a_file_is_told_from_what_names_a_task(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (write(as_csv(ROWS)), "none.csv", "table.xlsx", "folder/table", write("", "plain").name):
        assert is_text_file(file)
    write("", "reviews")
    for task in (*TASKS, "rewiews"):
        assert not is_text_file(task)


def test_our_own_questions_are_a_good_example():
    rows = read_rows(example_file())
    task, data = task_from_file(example_file())
    assert task.labels == ("mathematics", "tools", "training")
    assert sum(map(len, data.values())) == len(rows) == 240  # no text twice
    assert {row.text.strip() == row.text and row.text.isascii() for row in rows} == {True}


def test_the_command_line_refuses_in_one_sentence(write, tmp_path, monkeypatch, capsys):
    from lora_tutorial.cli.main import main

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
    from typer.testing import CliRunner

    from lora_tutorial.cli.main import app
    from lora_tutorial.training.records import load_record

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
