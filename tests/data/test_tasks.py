"""The embedded corpora: fixed texts on fixed sides, in an order that every machine repeats."""

import hashlib
import itertools
import json

import pytest

from lora_tutorial.data import reviews
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import TASKS

#: Task: rows on each side, and positive ones among them.
CLASSES = {
    "reviews": ((7058, 1497, 1517), (3479, 742, 775)),
    "products": ((2062, 463, 460), (1212, 278, 260)),
    "editorials": ((2098, 448, 424), (828, 190, 169)),
    "tweets": ((2366, 527, 539), (1610, 378, 357)),
}
RATINGS = {
    "reviews": (7430, 1570, 1605),
    "products": (2571, 588, 549),
    "editorials": (3682, 762, 746),
    "tweets": (2884, 655, 661),
}
#: SHA-256 of every text, label and rating in order, begun. Another one changes all stored scores.
FINGERPRINTS = {
    "reviews": "ea7b0ec415f90e0c",
    "reviews-rating": "29d551ed13efb104",
    "products": "bddadc7c3fb77e3f",
    "products-rating": "9e410ecfbeafb647",
    "editorials": "89f829c68cb80aff",
    "editorials-rating": "817d7eb671a468c2",
    "tweets": "6e59cf164382da2b",
    "tweets-rating": "ce0f762eb6d198f2",
}


@pytest.fixture(scope="module")
def loaded():
    names = [name for name, task in TASKS.items() if task.embedded and not task.generative]
    return {name: load_task(name).data for name in names}


def plainly(text):
    """The comparison the split promises: without case and spaces."""
    return "".join(text.lower().split())


@pytest.mark.parametrize("name", CLASSES)
def test_every_corpus_has_its_fixed_counts(loaded, name):
    sides = loaded[name].values()
    assert tuple(len(rows) for rows in sides) == CLASSES[name][0]
    assert tuple(sum(rows["label"]) for rows in sides) == CLASSES[name][1]
    assert tuple(len(rows) for rows in loaded[f"{name}-rating"].values()) == RATINGS[name]
    assert sum(RATINGS[name]) == len(reviews.read_corpus(name))


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if task.embedded and not task.generative]
)
def test_the_split_is_the_same_everywhere(loaded, name):
    rows = [
        [side, row["text"], row["label"], round(row["rating"], 6)]
        for side, data in loaded[name].items()
        for row in data
    ]
    text = json.dumps(rows, ensure_ascii=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FINGERPRINTS[name]


def test_no_text_stands_on_two_sides_of_any_corpus(loaded):
    side_of = {}
    repeated = 0
    for name, data in loaded.items():
        for side, rows in data.items():
            for text in rows["text"]:
                repeated += plainly(text) in side_of
                assert side_of.setdefault(plainly(text), side) == side, (name, text)
    assert repeated > sum(sum(counts) for counts, _ in CLASSES.values()), "some texts stand twice in a corpus"
    sides = [set(map(reviews.text_key, rows["text"])) for rows in loaded["tweets-rating"].values()]
    assert all(not first & second for first, second in itertools.combinations(sides, 2))


def test_texts_that_differ_in_case_spaces_or_punctuation_have_one_key():
    assert reviews.text_key("It 's  GREAT .") == reviews.text_key("it's great!") == "itsgreat"
    assert reviews.text_key(":-*") == reviews.text_key(" : -*") == ":-*"
    assert reviews.text_key(":-)") != reviews.text_key(":-(")
    assert reviews.side_of("It 's GREAT .") == reviews.side_of("it's great")


def test_the_sides_have_their_shares():
    sides = [reviews.side_of(f"text {number}") for number in range(20000)]
    for side, share in reviews.SIDES.items():
        assert sides.count(side) / 20000 == pytest.approx(share / 100, abs=0.01)


def test_labels_are_the_sign_of_ratings_that_people_agree_on(loaded):
    for name in CLASSES:
        for rows in loaded[name].values():
            assert all(abs(rating) >= reviews.NEUTRAL_BELOW for rating in rows["rating"])
            assert [int(rating > 0) for rating in rows["rating"]] == list(rows["label"])
            assert rows.features["label"].names == ["negative", "positive"]
        for rows in loaded[f"{name}-rating"].values():
            assert list(rows["label"]) == list(rows["rating"])
            assert all(-4 <= rating <= 4 for rating in rows["rating"])


def test_texts_are_clean(loaded):
    for data in loaded.values():
        for rows in data.values():
            for text in rows["text"]:
                assert text and text == " ".join(text.split())
                assert "&amp;" not in text and "&lt;" not in text


def test_the_first_rows_of_a_side_are_a_fair_sample(loaded):
    for name in CLASSES:
        labels = loaded[name]["train"]["label"]
        assert sum(labels[:1000]) / 1000 == pytest.approx(sum(labels) / len(labels), abs=0.05)


def test_an_unknown_corpus_is_named():
    with pytest.raises(ValueError, match="no corpus 'films'; the corpora are reviews"):
        reviews.read_corpus("films")
