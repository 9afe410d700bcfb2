"""Four corpora of English sentences with mean human ratings, embedded in a source distribution.

Hutto, C. J. and Gilbert, E. (2014), VADER: A parsimonious rule-based model for sentiment analysis of social
media text, ICWSM. At least 15 people (20 for most sentences) rated each one from -4 to 4; the files give the
mean.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import tarfile
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lora_tutorial.data.tasks import LABELS
from lora_tutorial.storage import downloads

#: Corpus to the stem of its file.
CORPORA = {
    "reviews": "movieReviewSnippets",  # film reviews, from rottentomatoes.com
    "products": "amazonReviewSnippets",  # customers on five products
    "editorials": "nytEditorialSnippets",  # opinion pages of a newspaper
    "tweets": "tweets",
}
#: Sentences rated nearer to zero than this have no class. Below 0.5 the raters do not settle the sign: for
#: 93 % of the film snippets (products 67, editorials 63, tweets 55) the 95 % interval of the mean contains
#: zero; from 0.5 up it does so for less than 2 % in each corpus.
NEUTRAL_BELOW = 0.5
#: Share of each side, in per cent.
SIDES = {"train": 70, "validation": 15, "test": 15}


class Snippet(NamedTuple):
    """A sentence and the mean of its ratings, -4 to 4."""

    text: str
    rating: float


def text_key(text: str) -> str:
    """What two texts share if they differ only in case, spaces or punctuation.

    Lower-cased ASCII letters and digits; for a text that has none (an emoticon), the text without spaces.
    """
    folded = text.casefold()
    return re.sub(r"[^a-z0-9]+", "", folded) or "".join(folded.split())


def side_of(text: str) -> str:
    """The side a text stands on: ``"train"``, ``"validation"`` or ``"test"``.

    It depends on ``text_key(text)`` alone, through SHA-256. So it is the same on every machine and with
    every library, and equal texts stand on one side, across corpora too.
    """
    bucket = int(_digest(text)[:8], 16) % 100
    for side, share in SIDES.items():
        if bucket < share:
            return side
        bucket -= share
    raise AssertionError("the shares in SIDES add up to 100")


def read_corpus(name: str) -> list[Snippet]:
    """All sentences of one corpus in the order of its file, HTML entities undone and spaces collapsed.

    Raises
    ------
    ValueError
        If there is no such corpus.
    AssetError
        If the corpus is not in the cache and cannot be fetched.
    """
    if name not in CORPORA:
        raise ValueError(f"There is no corpus {name!r}; the corpora are {', '.join(CORPORA)}.")
    with tarfile.open(downloads.fetch("hutto") / "hutto_ICWSM_2014.tar.gz") as archive:
        member = archive.extractfile(f"hutto_ICWSM_2014/{CORPORA[name]}_GroundTruth.txt")
        assert member is not None  # the archive's digest was checked
        lines = io.TextIOWrapper(member, encoding="utf-8", newline="\r\n").read().split("\r\n")
    fields = [line.split("\t") for line in lines if line]  # identifier, mean rating, text
    return [Snippet(_clean(text), float(rating)) for _, rating, text in fields]


def load_corpus(name: str, regression: bool = False) -> DatasetDict:
    """One corpus as train, validation and test, with columns ``text``, ``label`` and ``rating``.

    Parameters
    ----------
    name
        A key of ``CORPORA``.
    regression
        ``False``: ``label`` is 0 (negative) or 1 (positive), and sentences rated within ``NEUTRAL_BELOW`` of
        zero are left out. ``True``: ``label`` is the rating and nothing is left out.

    Returns
    -------
    DatasetDict
        Each side is ordered by the digest of its texts, so that any first n rows are a fair sample (the
        files begin with the favourable reviews).

    Raises
    ------
    ValueError, AssetError
        As ``read_corpus``.
    """
    label = Value("float64") if regression else ClassLabel(names=list(LABELS))
    features = Features({"text": Value("string"), "label": label, "rating": Value("float64")})
    sides: dict[str, list[Snippet]] = {side: [] for side in SIDES}
    for snippet in sorted(read_corpus(name), key=lambda snippet: _digest(snippet.text)):
        if regression or abs(snippet.rating) >= NEUTRAL_BELOW:
            sides[side_of(snippet.text)].append(snippet)
    return DatasetDict({side: _dataset(snippets, regression, features) for side, snippets in sides.items()})


def _clean(text: str) -> str:
    while (plain := html.unescape(text)) != text:  # some texts hold "&amp;amp;"
        text = plain
    return " ".join(text.split())


def _dataset(snippets: list[Snippet], regression: bool, features: Features) -> Dataset:
    ratings = [snippet.rating for snippet in snippets]
    labels = ratings if regression else [int(rating > 0) for rating in ratings]
    texts = [snippet.text for snippet in snippets]
    return Dataset.from_dict({"text": texts, "label": labels, "rating": ratings}, features=features)


def _digest(text: str) -> str:
    return hashlib.sha256(text_key(text).encode("utf-8")).hexdigest()
