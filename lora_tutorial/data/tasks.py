"""The tasks in one table: columns, labels, score, place of the data, licence, and what a base has read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import DatasetDict

#: The classes of the rated snippets, and the highest rating (minus the lowest).
LABELS = ("negative", "positive")
RATING_LIMIT = 4.0


class DataOrigin(NamedTuple):
    """A task's data.

    Attributes
    ----------
    name, licence
        Public name and licence. A licence is what the makers state, not our reading of it.
    read_by_minilm
        What the list of training data on the model card of all-MiniLM-L6-v2 says of these texts. That a set
        is not on the list does not mean that no sentence of it was met on the web.
    overlap
        What of the scored rows can also be trained on; empty where nothing was found.
    texts
        What the texts are and what the list has of their kind, in a few words (tasks of GLUE).
    """

    name: str
    licence: str
    read_by_minilm: str
    overlap: str = ""
    texts: str = ""

    @property
    def listed(self) -> str:
        """``"seen"``, ``"partly"`` or ``"not listed"``: whether the list names the task's texts."""
        if not self.read_by_minilm.startswith(_UNLISTED):
            return "seen"
        return "partly" if "a part of" in self.read_by_minilm else "not listed"


_UNLISTED = "this set is not on the list"
_VADER = "the ratings with vaderSentiment 3.3.2: MIT; the sentences are quotations"
_SQUAD = (
    "SQuAD2.0 is on the list, with 87,599 tuples: as many as SQuAD 1.1, whose text it shares, has "
    "training questions"
)


def _rated(what: str) -> DataOrigin:
    return DataOrigin(f"{what} rated for VADER (Hutto and Gilbert 2014)", _VADER, _UNLISTED)


DATA: dict[str, DataOrigin] = {
    "reviews": _rated("snippets of film reviews"),
    "products": _rated("snippets of product reviews"),
    "editorials": _rated("snippets of newspaper editorials"),
    "tweets": _rated("tweets"),
    "cola": DataOrigin(
        "CoLA, the Corpus of Linguistic Acceptability",
        "no open licence: excerpts, copyright with the authors, for research",
        _UNLISTED,
        "16 of the 1,043 validation sentences stand in the training set too, case aside.",
        "example sentences from books on linguistics",
    ),
    "sst2": DataOrigin(
        "SST-2, the Stanford Sentiment Treebank",
        "not stated; snippets of film reviews from Rotten Tomatoes",
        _UNLISTED,
        texts="excerpts of film reviews",
    ),
    "mrpc": DataOrigin(
        "MRPC, the Microsoft Research Paraphrase Corpus",
        "Microsoft Research shared source licence MSR-SSLA: not for commercial use",
        f"{_UNLISTED}, which has other pairs of like meaning (Altlex, Simple Wikipedia)",
        texts="news; other paraphrase pairs are on the card",
    ),
    "stsb": DataOrigin(
        "STS-B, the Semantic Textual Similarity Benchmark",
        "scores CC BY-SA 4.0; texts mixed, by source",
        f"{_UNLISTED}; a part of its sentences are image captions, and Flickr 30k's are on it",
        "6 of the 1,500 validation pairs stand in the training set too, case aside.",
        "a part are image captions, and Flickr 30k's are on the card",
    ),
    "qqp": DataOrigin(
        "QQP, Quora Question Pairs",
        "Quora's terms: not for commercial use",
        "Quora's duplicate questions are on the list",
        texts="Quora's duplicate questions are on the card",
    ),
    "mnli": DataOrigin(
        "MNLI, the Multi-Genre NLI Corpus",
        "OANC's licence and Creative Commons, by genre",
        "MultiNLI is on the list",
        texts="MultiNLI is on the card",
    ),
    "mnli-premises": DataOrigin(
        "MNLI's matched development set, parted by premise",
        "OANC's licence and Creative Commons, by genre",
        "MultiNLI is on the list",
        "Trained on about four fifths of the official development set and scored on the rest; its score does "
        "not compare with those on the whole set.",
    ),
    "qnli": DataOrigin(
        "QNLI, made from SQuAD 1.1",
        "CC BY-SA 4.0",
        _SQUAD,
        texts="made from SQuAD, which is on the card",
    ),
    "rte": DataOrigin(
        "RTE, from the PASCAL challenges 1, 2, 3 and 5",
        "not stated; for research",
        f"{_UNLISTED}, which has other entailment pairs (SNLI, MultiNLI)",
        texts="news and encyclopaedia; other inference pairs are on the card",
    ),
    "wnli": DataOrigin(
        "WNLI, from the Winograd Schema Challenge",
        "CC BY 4.0, as SuperGLUE states for its Winograd schemas",
        _UNLISTED,
        texts="Winograd's schemas, from stories",
    ),
    "docstrings": DataOrigin(
        "first sentences of docstrings in installed packages",
        "BSD licences; matplotlib's own, of that kind",
        _UNLISTED,
    ),
    "squad": DataOrigin("SQuAD 1.1", "CC BY-SA 4.0", _SQUAD),
    "squad_v2": DataOrigin("SQuAD 2.0", "CC BY-SA 4.0", _SQUAD),
    "squad_v2-articles": DataOrigin(
        "SQuAD 2.0's development set, parted by article",
        "CC BY-SA 4.0",
        _SQUAD,
        "Trained on 19 articles of the official development set and scored on the other 16; its scores do "
        "not compare with those on the whole set.",
    ),
}


@dataclass(frozen=True)
class Task:
    """One task: its columns, its labels, its score and where its data are.

    Attributes
    ----------
    name
        The name ``load_task`` takes.
    columns
        The text columns, one or two, in the order in which they go to the tokenizer.
    metric
        The name ``metrics.load_metric`` takes.
    labels
        Names of the classes, in the order of their numbers; empty where there are none.
    label_range
        Lowest and highest label of a regression; ``None`` for the other tasks.
    path, config
        Data set and configuration on the hub; ``path`` is empty where the data are embedded.
    splits
        Our split to the names it may have in the source; the first that exists is taken.
    shares_text_with
        Tasks that hold some of the same texts, so that training on one spoils a score on the other.
    train_articles, train_share
        Where a source's validation rows are the only data: which of them are for training. The articles
        (column ``title``), or the share of the texts in the first column, all rows of a text together; the
        others stay validation.
    folder
        Name of the task's folder in a source that is a folder.
    """

    name: str
    columns: tuple[str, ...]
    metric: str
    labels: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    path: str = ""
    config: str | None = None
    splits: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train",), "validation": ("validation",), "test": ("test",)},
        hash=False,
    )
    shares_text_with: frozenset[str] = frozenset()
    train_articles: frozenset[str] = frozenset()
    train_share: float = 0.0

    @property
    def folder(self) -> str:
        """Its name in a folder of data: as GLUE's or SQuAD's own files have it."""
        return self.path.rpartition("/")[2] if self.extractive else self.config or self.name

    @property
    def regression(self) -> bool:
        """Whether the label is a number to predict instead of a class."""
        return self.label_range is not None

    @property
    def extractive(self) -> bool:
        """Whether the answer is a span of the context (SQuAD)."""
        return self.metric.startswith("squad")

    @property
    def generative(self) -> bool:
        """Whether the answer is text that a language model writes; the rows are conversations."""
        return self.metric == "response"

    @property
    def embedded(self) -> bool:
        """Whether the data need no hub."""
        return not self.path

    @property
    def num_labels(self) -> int:
        """Outputs of the head: the classes, 1 for a regression, 2 (start and end) for SQuAD, 0 for none."""
        return 2 if self.extractive else (1 if self.regression else len(self.labels))

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns that the source must have."""
        beside = ("answers", "id") if self.extractive else () if self.generative else ("label",)
        return (*self.columns, *beside)


class LoadedTask(NamedTuple):
    """A task and its data: ``train``, ``validation`` and ``test``, as far as the source has them labelled."""

    task: Task
    data: DatasetDict


def _glue(name: str, columns: str, labels: str, metric: str = "accuracy", **more: Any) -> Task:
    return Task(
        name, tuple(columns.split()), metric, tuple(labels.split()), path="nyu-mll/glue", config=name, **more
    )


_SQUAD_TASKS = frozenset({"squad", "squad_v2", "squad_v2-articles"})


def _squad(name: str, **more: Any) -> Task:
    splits = {"train": ("train", "train_slice"), "validation": ("validation",)}
    shared = _SQUAD_TASKS - {name}  # v2's questions with an answer are v1's
    more = {"splits": splits, "shares_text_with": shared, **more}
    return Task(name, ("question", "context"), name, path=f"rajpurkar/{name}", **more)


# The 19 articles of SQuAD v2's development set that are not in the development half of Stanford's course
# CS224N (16 articles, 6,078 questions; github.com/chrischute/squad).
# fmt: off
_V2_TRAIN_ARTICLES = frozenset(
    (
        "Amazon_rainforest", "Black_Death", "Civil_disobedience", "Construction", "Ctenophora",
        "Economic_inequality", "Fresno,_California", "Geology",
        "Intergovernmental_Panel_on_Climate_Change", "Jacksonville,_Florida", "Oxygen", "Pharmacy",
        "Prime_number", "Private_school", "Rhine", "Sky_(United_Kingdom)", "Southern_California",
        "University_of_Chicago", "Victoria_(Australia)",
    )
)
# fmt: on


def _corpus(name: str, **more: Any) -> tuple[Task, Task]:
    limits = (-RATING_LIMIT, RATING_LIMIT)
    return (
        Task(name, ("text",), "accuracy", LABELS, **more),
        Task(f"{name}-rating", ("text",), "pearson_spearman", label_range=limits, **more),
    )


_MNLI_SPLITS = {
    "train": ("train",),
    "validation": ("validation_matched",),
    "validation_mismatched": ("validation_mismatched",),
    "test": ("test_matched",),
}
_MNLI = _glue(
    "mnli",
    "premise hypothesis",
    "entailment neutral contradiction",
    splits=_MNLI_SPLITS,
    shares_text_with=frozenset({"mnli-premises"}),
)
# The columns and label orders are those of nyu-mll/glue, rajpurkar/squad and rajpurkar/squad_v2.
_PAIR = "sentence1 sentence2"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *_corpus("reviews", shares_text_with=frozenset({"sst2"})),  # 732 of SST-2's 872 validation sentences
        *_corpus("products"),
        *_corpus("editorials"),
        *_corpus("tweets"),
        Task("docstrings", ("messages",), "response"),
        _glue("cola", "sentence", "unacceptable acceptable", "matthews"),
        _glue(
            "sst2",
            "sentence",
            "negative positive",
            shares_text_with=frozenset({"reviews", "reviews-rating"}),
        ),
        # 111 of STS-B's 1,500 validation pairs are training pairs of MRPC, word for word.
        _glue(
            "mrpc", _PAIR, "not_equivalent equivalent", "accuracy_f1", shares_text_with=frozenset({"stsb"})
        ),
        _glue(
            "stsb",
            _PAIR,
            "",
            "pearson_spearman",
            label_range=(0.0, 5.0),
            shares_text_with=frozenset({"mrpc"}),
        ),
        _glue("qqp", "question1 question2", "not_duplicate duplicate", "accuracy_f1"),
        _MNLI,
        # MNLI's development set parted by premise, for who has no training set.
        replace(
            _MNLI,
            name="mnli-premises",
            splits={"validation": ("validation_matched",)},
            train_share=0.8,
            shares_text_with=frozenset({"mnli"}),
        ),
        _glue("qnli", "question sentence", "entailment not_entailment"),
        _glue("rte", _PAIR, "entailment not_entailment"),
        _glue("wnli", _PAIR, "not_entailment entailment"),
        _squad("squad"),
        _squad("squad_v2"),
        # SQuAD v2's development set parted by article, for who has no training questions without an answer.
        replace(
            _squad("squad_v2", splits={"validation": ("validation",)}),
            name="squad_v2-articles",
            train_articles=_V2_TRAIN_ARTICLES,
            shares_text_with=_SQUAD_TASKS - {"squad_v2-articles"},
        ),
    )
}


def get_task(name: str) -> Task:
    """The row of a task.

    Raises
    ------
    ValueError
        If there is no such task; the message lists those there are.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def find_source(name: str, source: str | os.PathLike[str] = "auto") -> str | Path:
    """Where a task's rows will come from, found without reading any.

    Parameters
    ----------
    name, source
        As for ``load_task``.

    Returns
    -------
    str or Path
        ``"embedded"``, ``"hub"``, or the task's folder of parquet files.

    Raises
    ------
    ValueError
        If there is no such task, or the source does not have it.
    FileNotFoundError
        If the folder is missing or has no file for the task.
    """
    task = get_task(name)
    if source == "auto":
        source = "embedded" if task.embedded else os.environ.get("LORA_TUTORIAL_DATA") or "hub"
    if (source == "embedded") != task.embedded:
        own = [other.name for other in TASKS.values() if other.embedded == (source == "embedded")]
        raise ValueError(f"Task {name!r} is not in source {str(source)!r}, which has {', '.join(own)}.")
    if source in ("embedded", "hub"):
        return str(source)
    folder = Path(source) / task.folder
    if not any(folder.glob("*.parquet")):
        raise FileNotFoundError(
            f"{folder} has no parquet file; give source='hub', or a folder that holds "
            f"{task.folder}/validation.parquet and the like (LORA_TUTORIAL_DATA names it for every command)."
        )
    return folder
