"""Figures from papers and the shape of the data, as plain values with their source. Nothing here is ours."""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_tutorial.data.tasks import DATA

__all__ = [
    "GLUE",
    "GLUE_LORA_SPREAD",
    "PUBLISHED_GLUE",
    "PUBLISHED_SQUAD",
    "WNLI_COUNTS",
    "GlueTask",
    "Published",
]


class GlueTask(NamedTuple):
    """What a GLUE task asks, how large it is, and whether MiniLM's makers trained on its text.

    Attributes
    ----------
    title
        The name that papers print.
    asks
        The question, in a few words.
    published_rows
        Training examples as the GLUE paper states them (Wang et al. 2019, Table 1).
    train_rows
        Training rows of ``nyu-mll/glue``, by its card or counted.
    validation_classes
        Validation rows of each class, in the order of the labels; one number for a regression. ``None``
        where they were not counted. For MNLI these are the matched rows.
    tokens
        Mean tokens of an example, special ones included, under MiniLM's tokenizer cut at 128; for MNLI and
        QNLI counted on validation rows. ``None`` where not counted.
    overlap
        ``DataOrigin.listed``: whether MiniLM's model card names the task's texts among its training data.
    why
        ``DataOrigin.texts``: which ones, in a few words.
    """

    title: str
    asks: str
    published_rows: int
    train_rows: int
    validation_classes: tuple[int, ...] | None
    tokens: float | None
    overlap: str
    why: str

    @property
    def validation_rows(self) -> int | None:
        """Rows of the validation split, or ``None``."""
        return None if self.validation_classes is None else sum(self.validation_classes)


# fmt: off
_FACTS: dict[str, tuple[Any, ...]] = {
    "cola": (
        "CoLA", "is the sentence English?", 8_500, 8_551, (322, 721), 11.5,
    ),
    "sst2": (
        "SST-2", "does the reviewer like the film?", 67_000, 67_349, (428, 444), 13.3,
    ),
    "mrpc": (
        "MRPC", "do both sentences say the same?", 3_700, 3_668, (129, 279), 53.2,
    ),
    "stsb": (
        "STS-B", "how alike are they, from 0 to 5?", 7_000, 5_749, (1_500,), 27.8,
    ),
    "qqp": (
        "QQP", "do both questions want the same answer?", 364_000, 363_846, None, None,
    ),
    "mnli": (
        "MNLI", "does the second sentence follow, contradict, or neither?", 393_000, 392_702,
        (3_479, 3_123, 3_213), 38.9,
    ),
    "qnli": (
        "QNLI", "does the sentence answer the question?", 105_000, 104_743, (2_702, 2_761), 51.0,
    ),
    "rte": (
        "RTE", "does the second sentence follow?", 2_500, 2_490, (146, 131), 66.6,
    ),
    "wnli": (
        "WNLI", "is the pronoun filled in rightly?", 634, 635, (40, 31), 37.1,
    ),
}
# fmt: on
GLUE: dict[str, GlueTask] = {
    name: GlueTask(*[*facts, DATA[name].listed, DATA[name].texts]) for name, facts in _FACTS.items()
}


#: Most of WNLI's validation rows have a first sentence that stands in the training set too, with another
#: filling of the pronoun and mostly the other label. Nearest is the training row with the largest share of
#: words in common (intersection over union of both sentences' words).
WNLI_COUNTS: dict[str, int] = {
    "validation rows": 71,
    "first sentence is in training too": 65,
    "nearest training row has the same label": 9,
}


class Published(NamedTuple):
    """One row of somebody's table, in percent as printed.

    ``scores`` maps task to score name to value; the first score of a task is the one that is compared.
    ``citation`` is a key of ``book/references.bib``.
    """

    model: str
    method: str
    trained: str
    citation: str
    how: str
    scores: dict[str, dict[str, float]]


def _scores(**tasks: float | dict[str, float]) -> dict[str, dict[str, float]]:
    first = {"cola": "matthews", "stsb": "pearson"}
    return {
        task: value if isinstance(value, dict) else {first.get(task, "accuracy"): value}
        for task, value in tasks.items()
    }


#: Development sets of GLUE. The paper's rows are its Table 2; a star there marks figures that it takes from
#: earlier work. Its MNLI is matched and mismatched together.
PUBLISHED_GLUE: dict[str, Published] = {
    "paper full*": Published(
        "roberta-base",
        "full",
        "125.0M",
        "hu2022lora",
        "taken by the paper from earlier work",
        _scores(mnli=87.6, sst2=94.8, mrpc=90.2, cola=63.6, qnli=92.8, qqp=91.9, rte=78.7, stsb=91.2),
    ),
    "paper BitFit*": Published(
        "roberta-base",
        "bitfit",
        "0.1M",
        "hu2022lora",
        "taken by the paper from earlier work",
        _scores(mnli=84.7, sst2=93.7, mrpc=92.7, cola=62.0, qnli=91.8, qqp=84.0, rte=81.5, stsb=90.8),
    ),
    "paper LoRA": Published(
        "roberta-base",
        "lora",
        "0.3M",
        "hu2022lora",
        "median of five seeds, best epoch; MRPC, RTE and STS-B start from the MNLI adapter",
        _scores(mnli=87.5, sst2=95.1, mrpc=89.7, cola=63.4, qnli=93.3, qqp=90.8, rte=86.6, stsb=91.5),
    ),
    "tutorial": Published(
        "roberta-base",
        "lora+bias+norm",
        "420,098",
        "montinger2023lora",
        "one run, last epoch",
        _scores(
            mnli={"accuracy": 85.44, "accuracy mismatched": 85.88},
            sst2=93.81,
            mrpc={"accuracy": 88.48, "f1": 91.68},
            cola=56.79,
            qnli=91.98,
            qqp={"accuracy": 88.88, "f1": 85.34},
            rte=74.01,
            stsb={"pearson": 80.83, "spearman": 81.67},
            wnli=43.66,
        ),
    ),
}

#: The ± that the paper's Table 2 prints beside its LoRA row, in points.
GLUE_LORA_SPREAD: dict[str, float] = {
    "mnli": 0.3,
    "sst2": 0.2,
    "mrpc": 0.7,
    "cola": 1.2,
    "qnli": 0.3,
    "qqp": 0.1,
    "rte": 0.7,
    "stsb": 0.2,
}

#: The original tutorial's SQuAD figures, in percent: v2 at its default threshold, and at the best threshold
#: chosen on the reported questions themselves.
PUBLISHED_SQUAD: dict[str, dict[str, float]] = {
    "squad": {"exact": 79.39, "f1": 86.86},
    "squad_v2": {
        "exact": 41.16,
        "f1": 45.42,
        "NoAns_exact": 4.83,
        "best_exact": 75.99,
        "best_f1": 79.28,
    },
}
