"""Where models and data come from, under which licence, and what an encoder has read before."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """The public name of something and the licence that its makers gave it."""

    name: str
    licence: str


class DataOrigin(NamedTuple):
    """A task's data.

    Attributes
    ----------
    name, licence
        As in `Origin`. A licence is what the makers state, not our reading of it.
    read_by_minilm
        What the list of training data on the model card of all-MiniLM-L6-v2 says of these texts. That a set
        is not on the list does not mean that no sentence of it was met on the web.
    overlap
        What of the scored rows can also be trained on; empty where nothing was found.
    """

    name: str
    licence: str
    read_by_minilm: str
    overlap: str = ""


ENCODERS: dict[str, Origin] = {
    "minilm": Origin("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}

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
    ),
    "sst2": DataOrigin(
        "SST-2, the Stanford Sentiment Treebank",
        "not stated; snippets of film reviews from Rotten Tomatoes",
        _UNLISTED,
    ),
    "mrpc": DataOrigin(
        "MRPC, the Microsoft Research Paraphrase Corpus",
        "Microsoft Research shared source licence MSR-SSLA: not for commercial use",
        f"{_UNLISTED}, which has other pairs of like meaning (Altlex, Simple Wikipedia)",
    ),
    "stsb": DataOrigin(
        "STS-B, the Semantic Textual Similarity Benchmark",
        "scores CC BY-SA 4.0; texts mixed, by source",
        f"{_UNLISTED}; a part of its sentences are image captions, and Flickr 30k's are on it",
        "6 of the 1,500 validation pairs stand in the training set too, case aside.",
    ),
    "qqp": DataOrigin(
        "QQP, Quora Question Pairs",
        "Quora's terms: not for commercial use",
        "Quora's duplicate questions are on the list",
    ),
    "mnli": DataOrigin(
        "MNLI, the Multi-Genre NLI Corpus",
        "OANC's licence and Creative Commons, by genre",
        "MultiNLI is on the list",
    ),
    "mnli-premises": DataOrigin(
        "MNLI's matched development set, parted by premise",
        "OANC's licence and Creative Commons, by genre",
        "MultiNLI is on the list",
        "Trained on about four fifths of the official development set and scored on the rest; its score does "
        "not compare with those on the whole set.",
    ),
    "qnli": DataOrigin("QNLI, made from SQuAD 1.1", "CC BY-SA 4.0", _SQUAD),
    "rte": DataOrigin(
        "RTE, from the PASCAL challenges 1, 2, 3 and 5",
        "not stated; for research",
        f"{_UNLISTED}, which has other entailment pairs (SNLI, MultiNLI)",
    ),
    "wnli": DataOrigin(
        "WNLI, from the Winograd Schema Challenge",
        "CC BY 4.0, as SuperGLUE states for its Winograd schemas",
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
