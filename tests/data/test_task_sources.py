"""GLUE and SQuAD from a folder or the hub, and one sentence for every row that cannot be right."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from lora_tutorial.data import sources as tasks
from lora_tutorial.data.metrics import METRICS
from lora_tutorial.data.sources import check_no_overlap, count_shared_rows, load_task
from lora_tutorial.data.tasks import DATA, TASKS, get_task
from lora_tutorial.storage import hub
from lora_tutorial.storage.hub import HubUnreachableError

#: Rows of the published splits. Where no train is named here, the folder may hold a part of it or none.
REAL_COUNTS = {
    "cola": {"train": 8551, "validation": 1043},
    "sst2": {"train": 67349, "validation": 872},
    "mrpc": {"train": 3668, "validation": 408, "test": 1725},
    "stsb": {"train": 5749, "validation": 1500},
    "mnli": {"validation": 9815},
    "mnli-premises": {"train": 7848, "validation": 1967},
    "qnli": {"validation": 5463},
    "rte": {"train": 2490, "validation": 277},
    "wnli": {"train": 635, "validation": 71},
    "squad": {"validation": 10570},
    "squad_v2": {"validation": 11873},
}


def write(folder, name, **columns):
    """Write ``<folder>/<name>.parquet`` and return the folder."""
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return folder


def answers(text, start):
    return [{"text": [text], "answer_start": [start]}]


def squad_row(**changes):
    row = {"id": ["q1"], "title": ["t"], "question": ["Who?"], "context": ["It was Ada."]}
    return row | {"answers": answers("Ada", 7)} | changes


def test_rows_of_the_table_are_consistent():
    assert {"reviews", "products-rating", "cola", "wnli", "squad_v2", "docstrings"} <= set(TASKS) and len(
        TASKS
    ) == 22
    for name, task in TASKS.items():
        assert task.name == name and 1 <= len(task.columns) <= 2
        assert task.num_labels == (1 if task.regression else 2 if task.extractive else len(task.labels))
        assert task.metric in METRICS or task.extractive or task.generative
        assert task.shares_text_with <= set(TASKS)
        assert all(name in TASKS[other].shares_text_with for other in task.shares_text_with)
    assert get_task("mnli").num_labels == 3 and get_task("stsb").regression and get_task("squad").extractive


def test_a_folder_is_read_in_the_hubs_schema(tmp_path, monkeypatch):
    write(
        tmp_path,
        "mnli/validation_matched",
        premise=["a", "b"],
        hypothesis=["c", "d"],
        label=[0, 2],
        idx=[0, 1],
    )
    write(tmp_path, "mnli/test_matched", premise=["a"], hypothesis=["c"], label=[-1], idx=[0])
    write(tmp_path, "mnli/something_else", x=[1])
    for source in (tmp_path, str(tmp_path)):
        task, data = load_task("mnli", source)
        assert task is TASKS["mnli"] and list(data) == ["validation"], (
            "a test split without labels is left out"
        )
        assert data["validation"][1] == {"premise": "b", "hypothesis": "d", "label": 2, "idx": 1}
    monkeypatch.setenv("LORA_TUTORIAL_DATA", str(tmp_path))
    assert len(load_task("mnli").data["validation"]) == 2


def test_mnlis_development_set_is_parted_by_premise(tmp_path):
    premises = [f"Premise {i // 3}." for i in range(600)]
    rows = {"premise": premises, "hypothesis": [f"h{i}" for i in range(600)], "label": [0, 1, 2] * 200}
    write(tmp_path, "mnli/validation_matched", **rows)
    data = load_task("mnli-premises", tmp_path).data
    train, validation = (set(data[split]["premise"]) for split in ("train", "validation"))
    assert list(data) == ["train", "validation"] and not train & validation
    assert (
        len(data["train"]) + len(data["validation"]) == 600 and 140 < len(train) < 180
    )  # four fifths of 200
    alone = {key: values[:3] for key, values in rows.items()}
    write(tmp_path, "mnli/validation_matched", **{k: alone[k] + rows[k][300:] for k in rows})
    again = load_task("mnli-premises", tmp_path).data
    assert ("Premise 0." in again["train"]["premise"]) == ("Premise 0." in train), "whatever else is there"
    with pytest.raises(ValueError, match="share texts"):
        check_no_overlap("mnli", "mnli-premises")
    write(tmp_path / "empty", "mnli/train", **alone)
    with pytest.raises(ValueError, match="no labelled split"):
        load_task("mnli-premises", tmp_path / "empty")


def test_squads_development_set_is_parted_by_article(tmp_path):
    ours = sorted(TASKS["squad_v2-articles"].train_articles)
    titles = [*ours, "Oxygen", "Another", "A third"]
    columns = {"id": [f"q{n}" for n in range(len(titles))], "title": titles}
    columns |= {
        name: [text] * len(titles) for name, text in (("question", "Who?"), ("context", "It was Ada."))
    }
    write(tmp_path, "squad_v2/validation", **columns, answers=answers("Ada", 7) * len(titles))
    data = load_task("squad_v2-articles", tmp_path).data
    assert data["train"]["title"][:] == [*ours, "Oxygen"]
    assert data["validation"]["title"][:] == ["Another", "A third"]
    for names in (titles[1:], ["x"] * len(titles)):
        rows = {name: values[-len(names) :] for name, values in columns.items()} | {"title": names}
        write(tmp_path, "squad_v2/validation", **rows, answers=answers("Ada", 7) * len(names))
        with pytest.raises(
            ValueError, match="needs the whole development set, with column 'title'; .* such as 'Ama"
        ):
            load_task("squad_v2-articles", tmp_path)


def test_what_minilm_has_read_is_told_in_one_of_three_words():
    listed = {name: origin.listed for name, origin in DATA.items()}
    assert {name for name, word in listed.items() if word == "partly"} == {"stsb"}
    assert {name for name, word in listed.items() if word == "seen"} == {
        name for name, origin in DATA.items() if "not on the list" not in origin.read_by_minilm
    }
    assert {name for name, origin in DATA.items() if origin.texts} == {
        task.name for task in TASKS.values() if task.path == "nyu-mll/glue" and task.name != "mnli-premises"
    }


def test_tasks_can_be_keys():
    assert len({*TASKS.values()}) == len(TASKS)


def test_a_labelled_test_split_is_kept(tmp_path):
    write(tmp_path, "mrpc/test", sentence1=["a", "b"], sentence2=["c", "d"], label=[0, 1])
    assert list(load_task("mrpc", tmp_path).data) == ["test"]


def test_the_hub_is_asked_for_its_own_names(monkeypatch):
    asked = []
    monkeypatch.delenv("LORA_TUTORIAL_DATA", raising=False)
    monkeypatch.setattr(hub, "download", lambda *arguments: Path("the-revision"))
    rows = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1], "idx": [0, 1]})
    rows = rows.cast_column("label", ClassLabel(names=["negative", "positive"]))
    hidden = Dataset.from_dict({"sentence": ["a"], "label": [-1], "idx": [0]})

    def load_dataset(*arguments, revision):
        asked.append((*arguments, revision))
        return DatasetDict(train=rows, validation=rows, test=hidden)

    monkeypatch.setattr(tasks, "load_dataset", load_dataset)
    assert list(load_task("sst2").data) == ["train", "validation"]
    assert asked == [("nyu-mll/glue", "sst2", "the-revision")]
    assert (TASKS["squad_v2"].path, TASKS["squad_v2"].config) == ("rajpurkar/squad_v2", None)


def test_without_hub_or_folder_the_sentence_says_what_to_do(monkeypatch):
    monkeypatch.delenv("LORA_TUTORIAL_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def unreachable(*arguments, **options):
        raise OSError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(HubUnreachableError, match=r"dataset 'nyu-mll/glue'.*LORA_TUTORIAL_DATA.*'reviews'"):
        load_task("cola")


@pytest.mark.parametrize(
    ("name", "source", "error", "message"),
    [
        ("rewiews", "auto", ValueError, "no task 'rewiews'; the tasks are reviews, .*squad_v2"),
        ("cola", "embedded", ValueError, "'cola' is not in source 'embedded', which has reviews"),
        ("reviews", "hub", ValueError, "'reviews' is not in source 'hub', which has cola"),
        ("cola", "./absent", FileNotFoundError, "has no parquet file"),
    ],
)
def test_what_is_not_there_is_named(name, source, error, message):
    with pytest.raises(error, match=message):
        load_task(name, source)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("cola", {"text": ["a"], "label": [0]}, "has no column 'sentence'; it has text, label"),
        ("cola", {"sentence": ["a"]}, "has no column 'label'"),
        ("cola", {"sentence": ["a", "b"], "label": [0, 2]}, "label of row 1 is 2; whole numbers from 0 to 1"),
        ("cola", {"sentence": ["a"], "label": [-1]}, "label of row 0 is -1"),
        ("cola", {"sentence": ["a"], "label": [0.5]}, r"label of row 0 is 0\.5"),
        ("cola", {"sentence": ["a", None], "label": [0, 1]}, "'sentence' of row 1 is None, not a text"),
        (
            "stsb",
            {"sentence1": ["a"], "sentence2": ["b"], "label": [5.5]},
            r"5\.5; numbers from 0\.0 to 5\.0",
        ),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": [float("nan")]}, "row 0 is nan"),
        (
            "squad",
            squad_row(answers=answers("Ada", 6)),
            "answer 'Ada' of q1 is not at offset 6 .* ' Ad' stands",
        ),
        ("squad", squad_row(answers=answers("Ada", -4)), "not at offset -4"),
        (
            "squad",
            squad_row(answers=[{"text": [], "answer_start": []}]),
            "q1 has no answer, which only 'squad_v2'",
        ),
        ("squad", squad_row(answers=[{"text": ["Ada"], "answer_start": []}]), "1 answers and 0 offsets"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path, name, columns, message):
    write(tmp_path, f"{name}/validation", **columns)
    with pytest.raises(ValueError, match=f"'validation' of task '{name}'.*{message}"):
        load_task(name, tmp_path)


def test_an_empty_split_or_a_broken_file_is_refused(tmp_path):
    text, number = pyarrow.array([], "string"), pyarrow.array([], "int64")
    write(tmp_path, "cola/validation", sentence=text, label=number)
    with pytest.raises(ValueError, match="'validation' of task 'cola' is empty"):
        load_task("cola", tmp_path)
    (tmp_path / "cola" / "validation.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="not readable parquet"):
        load_task("cola", tmp_path)
    (tmp_path / "cola" / "validation.parquet").rename(tmp_path / "cola" / "other.parquet")
    with pytest.raises(ValueError, match="no labelled split"):
        load_task("cola", tmp_path)


def test_squad_rows_that_are_right_pass(tmp_path):
    write(tmp_path, "squad/train_slice", **squad_row())
    write(tmp_path, "squad_v2/validation", **squad_row(answers=[{"text": [], "answer_start": []}]))
    assert load_task("squad", tmp_path).data["train"][0]["answers"] == {"text": ["Ada"], "answer_start": [7]}
    assert load_task("squad_v2", tmp_path).data["validation"][0]["answers"]["text"] == []


@pytest.mark.parametrize(
    ("first", "second"), [("reviews", "sst2"), ("sst2", "reviews-rating"), ("mrpc", "stsb")]
)
def test_training_on_one_and_reporting_the_other_is_refused_where_they_share_texts(first, second):
    for one, other in ((first, second), (second, first)):
        with pytest.raises(ValueError, match=f"'{one}' and '{other}' share texts"):
            check_no_overlap(one, TASKS[other])
    check_no_overlap(first, first)
    check_no_overlap("reviews", "products")


def test_732_of_872_validation_sentences_of_sst2_stand_in_the_reviews(data_folder):
    sst2, reviews = load_task("sst2", data_folder), load_task("reviews-rating")
    assert len(sst2.data["validation"]) == 872
    assert count_shared_rows(reviews, sst2) == 732
    assert count_shared_rows(load_task("editorials-rating"), sst2) == 0
    with pytest.raises(ValueError, match="share texts"):
        check_no_overlap(reviews.task, sst2.task)
    with pytest.raises(ValueError, match="has no split 'dev'"):
        count_shared_rows(reviews, sst2, "dev")


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_the_real_files_load_whole_and_pass_every_check(data_folder, name):
    data = load_task(name, data_folder).data
    assert {split: len(data[split]) for split in REAL_COUNTS[name]} == REAL_COUNTS[name]


def test_mrpc_and_stsb_share_pairs(data_folder):
    mrpc, stsb = load_task("mrpc", data_folder), load_task("stsb", data_folder)
    assert count_shared_rows(mrpc, stsb) == 250 and count_shared_rows(stsb, mrpc) == 59
