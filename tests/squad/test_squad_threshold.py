"""The threshold of SQuAD v2, and the split by article that it is chosen on."""

import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tutorial.squad.decoding import Answer, Span
from lora_tutorial.squad.threshold import choose_threshold, find_threshold, split_by_article


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-3, 3).map(float), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0])
        ),
        min_size=1,
        max_size=9,
    )
)
def test_the_threshold_is_the_best_there_is_and_reaches_the_score_it_promises(cases):
    doubts, answered, refused = zip(*cases, strict=True)

    def score(threshold):
        return np.mean([r if d > threshold else a for d, a, r in cases])

    found = find_threshold(doubts, answered, refused)
    assert found.score == score(found.value) == max(score(t) for t in (-9.0, *doubts))
    assert found.value not in doubts


def test_a_threshold_needs_numbers_of_each_kind_and_both_kinds_of_question():
    with pytest.raises(ValueError, match="equally many"):
        find_threshold([1.0], [1.0, 0.0], [0.0])
    with pytest.raises(ValueError, match="equally many"):
        find_threshold([], [], [])
    with pytest.raises(ValueError, match="not finite"):
        find_threshold([math.nan], [1.0], [0.0])
    answers = [Answer("a", (Span("Paris", 0, 5, 1.0),), 0.0)] * 2
    assert choose_threshold(answers, [["Paris"], []]).score == 0.5
    for golds in ([["Paris"], ["Rome"]], [[], []]):
        with pytest.raises(ValueError, match="with an answer and some without"):
            choose_threshold(answers, golds)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=30),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(0, 3),
)
def test_no_article_is_on_both_sides_of_a_split(titles, share, seed):
    rows = Dataset.from_dict({"title": titles, "id": [str(i) for i in range(len(titles))]})
    if len(set(titles)) < 2:
        with pytest.raises(ValueError, match="two articles"):
            split_by_article(rows, share, seed)
        return
    kept, held = split_by_article(rows, share, seed)
    assert set(kept["title"]).isdisjoint(held["title"]) and len(kept) and len(held)
    assert sorted([*kept["id"], *held["id"]]) == sorted(rows["id"])
    largest = max(map(titles.count, titles))
    assert len(held) < share * len(titles) + largest
    assert len(held) >= share * len(titles) or len(set(kept["title"])) == 1
    assert split_by_article(rows, share, seed)[1]["id"] == held["id"]


def test_which_articles_are_held_out_depends_on_their_names_and_the_seed_alone():
    names = [f"article {n}" for n in range(10)]
    for titles in (names, names[::-1]):
        rows = Dataset.from_dict({"title": titles})
        held = [sorted(split_by_article(rows, 0.2, seed)[1]["title"]) for seed in (0, 1)]
        assert held == [["article 7", "article 8"], ["article 6", "article 8"]]


def test_a_split_needs_a_share_and_titles():
    rows = Dataset.from_dict({"id": ["a"]})
    with pytest.raises(ValueError, match="share=1"):
        split_by_article(rows, 1)
    with pytest.raises(ValueError, match="got 0 in column 'title'"):
        split_by_article(rows)
