"""Kinds of error: each is told from the others, and what is right is what the metric says."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.squad.decoding import Answer, Span
from lora_tutorial.squad.errors import KINDS, count_kinds, error_kind

TEXT = (
    "The old tower stands in Paris. It was built by Mr. eiffel in 1889. "
    "Who likes it? (Many do.) Rome has none."
)


def answer_at(text, context=TEXT, doubt=0.0, identifier="q", start=None):
    """An answer that a model gave; its place is looked up."""
    start = context.index(text) if start is None else start
    return Answer(identifier, (Span(text, start, start + len(text), 1.0),), 1.0 + doubt)


def golds(*texts):
    return {"text": list(texts), "answer_start": [TEXT.index(text) for text in texts]}


@pytest.mark.parametrize(
    ("given", "wanted", "kind"),
    [
        ("The old tower", ["old tower"], "right"),  # by the metric's own normalisation
        ("tower", ["old tower"], "boundary"),
        ("in Paris", ["Paris"], "boundary"),
        ("old tower", ["tower stands"], "overlap"),
        ("Paris", ["old tower"], "same sentence"),
        ("1889", ["Mr. eiffel"], "same sentence"),  # a small letter begins no sentence
        ("Paris", ["1889"], "wrong sentence"),
        ("It", ["Paris"], "wrong sentence"),
        ("Many", ["likes it"], "wrong sentence"),  # a bracket may open one, and close one
        ("Rome", ["Many"], "wrong sentence"),
        ("tower", ["1889", "tower stands", "Paris"], "boundary"),  # the mildest of several
        ("1889", [], "answered"),
        ("The", [], "right"),  # nothing is left of it, and the metric takes it for a refusal
    ],
)
def test_each_kind_of_error_is_told_from_the_others(given, wanted, kind):
    assert error_kind(answer_at(given), TEXT, golds(*wanted)) == kind


def test_neighbours_that_only_touch_do_not_overlap():
    one, two = answer_at("old"), answer_at(" tower", start=TEXT.index(" tower"))
    assert error_kind(one, TEXT, golds(" tower")) == error_kind(two, TEXT, golds("old")) == "same sentence"


@pytest.mark.parametrize(("wanted", "kind"), [(["Paris"], "refused"), ([], "right")])
def test_a_doubt_above_the_threshold_is_a_refusal(wanted, kind):
    assert error_kind(answer_at("Paris", doubt=0.5), TEXT, golds(*wanted), threshold=0.4) == kind
    answered = error_kind(answer_at("Paris", doubt=0.5), TEXT, golds(*wanted), threshold=0.5)
    assert answered == ("right" if wanted else "answered")


WORDS = [TEXT[:3], "old", "tower stands", "Paris. It", "1889", "it", "do.) Rome"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(WORDS),
            st.lists(st.sampled_from([*WORDS, "old tower"]), max_size=3, unique=True),
            st.sampled_from([-1.0, 0.0, 1.0]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_counts_add_up_and_agree_with_the_metric(cases):
    answers = [answer_at(text, doubt=doubt, identifier=str(i)) for i, (text, _, doubt) in enumerate(cases)]
    rows = [{"id": str(i), "context": TEXT, "answers": golds(*case[1])} for i, case in enumerate(cases)]
    counts = count_kinds(Dataset.from_list(rows), answers, threshold=0.5)
    assert tuple(counts) == KINDS and sum(counts.values()) == len(cases)
    scores = load_metric("squad_v2").compute(
        predictions=[
            {"id": a.id, "prediction_text": a.text(), "no_answer_probability": a.doubt} for a in answers
        ],
        references=[{"id": row["id"], "answers": row["answers"]} for row in rows],
        no_answer_threshold=0.5,
    )
    assert 100 * counts["right"] / len(cases) == pytest.approx(scores["exact"])
    assert counts["refused"] == sum(bool(wanted) and doubt > 0.5 for _, wanted, doubt in cases)


def test_answers_of_other_questions_and_missing_offsets_are_refused():
    row = {"id": "q", "context": TEXT, "answers": golds("Paris")}
    rows = Dataset.from_list([row, row | {"id": "r"}])
    answers = [answer_at("Paris"), answer_at("Paris", identifier="r")]
    assert count_kinds(rows, answers)["right"] == 2
    for wrong in (answers[::-1], answers[:1], []):
        with pytest.raises(ValueError, match=f"The {len(wrong)} answers are not those to these 2 questions"):
            count_kinds(rows, wrong)
    with pytest.raises(ValueError, match="'q' has 1 gold answers and 0 offsets"):
        error_kind(answers[0], TEXT, {"text": ["Paris"], "answer_start": []})
