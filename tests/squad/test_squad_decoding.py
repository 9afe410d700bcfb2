"""From SQuAD's logits to answers: joint decoding, and windows that compete."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_rows import logits_at, row, windows_of

from lora_tutorial.squad.decoding import Span, best_spans, decode
from lora_tutorial.squad.windows import NOWHERE, locate


def all_spans(start, end, longest):
    pairs = ((i, j) for i in range(len(start)) for j in range(i, min(i + longest, len(start))))
    spans = [(i, j, float(start[i] + end[j])) for i, j in pairs if np.isfinite(start[i] + end[j])]
    return sorted(spans, key=lambda span: (-span[2], span[0], span[1]))


logit_lists = st.lists(
    st.tuples(*[st.one_of(st.integers(-3, 3).map(float), st.just(-math.inf))] * 2), min_size=1, max_size=9
)


@settings(max_examples=100, deadline=None)
@given(logits=logit_lists, n_best=st.integers(1, 12), longest=st.integers(1, 12))
def test_the_best_spans_are_those_of_trying_every_pair(logits, n_best, longest):
    start, end = np.array(logits).T
    assert best_spans(start, end, n_best, longest) == all_spans(start, end, longest)[:n_best]


def test_start_and_end_are_chosen_together(wordpiece):
    windows = windows_of([row("one two three four five six")], wordpiece)
    (offsets,) = windows.offsets
    first = int(np.flatnonzero(offsets[:, 0] >= 0)[0])
    start, end = np.zeros(len(offsets)), np.zeros(len(offsets))
    start[first + 4], start[first + 1] = 5.0, 4.0  # the best start lies behind the best end
    end[first + 2] = 6.0
    answer = decode(windows, [start], [end], n_best=3)[0]
    assert answer.spans[0] == Span("two three", 4, 13, 10.0)
    assert start.argmax() > end.argmax(), "independent maxima give no span"
    # the length limit counts tokens: two three is two of them
    assert decode(windows, [start], [end], max_answer_length=2)[0].text() == "two three"
    assert decode(windows, [start], [end], max_answer_length=1)[0].text() == "three"
    assert [span.score for span in answer.spans] == [10.0, 6.0, 6.0]


def test_only_the_context_can_answer(tokenizer):
    windows = windows_of([row("one two", question="Which one?")], tokenizer, 40)
    (offsets,) = windows.offsets
    outside = offsets[:, 0] < 0
    start, end = (np.concatenate([np.where(outside, 50.0, 0.0), np.full(5, 99.0)]) for _ in range(2))
    inside = np.flatnonzero(~outside)
    start[inside[0]], end[inside[-1]] = 1.0, 1.0
    assert decode(windows, [start], [end])[0].text() == "one two"  # 99 is the padding


def test_windows_of_a_question_compete_and_must_all_refuse(wordpiece):
    context = " ".join(f"w{i}" for i in range(12))
    windows = windows_of([row(context), row("only one", identifier="r")], wordpiece, 24, 8)
    assert windows.rows.count(0) >= 2
    shared = [locate(offsets, context.index("w6"), context.index("w6") + 2) for offsets in windows.offsets]
    assert sum(place is not None for place in shared[:-1]) == 2, "w6 must be seen twice"
    start, end = logits_at(windows, [*shared[:-1], None], height=1.0)
    last = windows.rows.count(0) - 1
    tail = np.flatnonzero(windows.offsets[last][:, 0] >= 0)[-1]
    start[last][tail - 1 : tail + 1] += [2.0, 0.0]  # "w11" is two tokens
    end[last][tail] += 2.0
    seen = next(window for window, place in enumerate(shared) if place is not None)
    start[seen][shared[seen][0]] += 0.5  # the first to see w6 likes it best
    for window, height in enumerate([0.5] + [3.0] * last):
        start[window][NOWHERE], end[window][NOWHERE] = height, height
    answer, other = decode(windows, start, end, n_best=99)
    assert answer.spans[0] == Span("w11", context.index("w11"), len(context), 4.0)
    assert [span.score for span in answer.spans if span.text == "w6"] == [2.5]
    assert answer.no_answer_score == 1.0 and answer.doubt == -3.0
    assert (answer.text(), answer.text(-3.0), answer.text(-3.5)) == ("w11", "w11", "")
    assert other.id == "r" and other.no_answer_score == 0.0


def test_logits_that_do_not_fit_are_refused(wordpiece):
    windows = windows_of([row("one two")], wordpiece)
    (offsets,) = windows.offsets
    good = np.zeros(len(offsets))
    for start, said in (
        ([good, good], "1 windows need"),
        ([good[1:]], "tokens and logits"),
        ([good * np.nan], "finite"),
    ):
        with pytest.raises(ValueError, match=said):
            decode(windows, start, [good])
    for setting in ({"n_best": 0}, {"max_answer_length": 0}, {"n_best": True}):
        with pytest.raises(ValueError, match="not a positive whole number"):
            decode(windows, [good], [good], **setting)
