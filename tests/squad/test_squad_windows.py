"""SQuAD's windows: what they hold, positions in them and the way back to the text."""

import copy
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_rows import TOWER, logits_at, row, windows_of

from lora_tutorial.data.sources import load_task
from lora_tutorial.data.span_metrics import score_answer
from lora_tutorial.squad.decoding import decode
from lora_tutorial.squad.windows import NOWHERE, locate, make_windows, source_text

WORDS = [
    "tower",
    "naïve",
    "cafe\u0301",
    "東京",
    "タワー",
    "🙂",
    "❤\ufe0f",
    "👨\u200d👩\u200d👧",
    "1,000",
    "(x)",
]
WORDS += ["Ångström's", "e\u0301", "हिन्दी", "¿", "a"]
GAPS = [" ", "  ", "   ", "\n", "\t ", "\u00a0", "\u3000"]


# ---- windows -----------------------------------------------------------------------------------------------


def test_windows_hold_the_whole_question_and_overlap_by_what_was_asked(tokenizer):
    context = f"{TOWER} {TOWER}"
    windows = windows_of([row(context), row("Short.", identifier="r")], tokenizer, max_length=24, overlap=6)
    assert windows.rows[-1] == 1 and windows.rows.count(0) > 3 and windows.rows.count(1) == 1
    whole = tokenizer("Who?", context)["input_ids"]
    question = tokenizer("Who?")["input_ids"]
    special = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add()
    begins = len(question) + special - 1
    contexts = []
    for ids in windows.inputs["input_ids"][:-1]:
        assert len(ids) <= 24 and ids[: len(question)] == question
        contexts.append(ids[begins:-1])
    rebuilt = list(contexts[0])
    for before, after in pairwise(contexts):
        assert before[-6:] == after[:6]
        rebuilt += after[6:]
    assert rebuilt == whole[begins:-1]
    assert all(len(ids) == 24 for ids in windows.inputs["input_ids"][:-2])
    padded = windows_of([row(context, question="  Who? \n")], tokenizer, max_length=24, overlap=6)
    assert padded.inputs["input_ids"] == windows.inputs["input_ids"][:-1], "spaces around a question go"


def test_windows_of_training_have_positions_and_others_their_number(tokenizer):
    rows = [row(answer="Eiffel"), row(identifier="none")]
    trained = windows_of(rows, tokenizer, training=True)
    assert {"start_positions", "end_positions"} <= set(trained.inputs.column_names)
    assert "window" not in trained.inputs.column_names
    assert windows_of(rows, tokenizer).inputs["window"] == list(range(len(trained.rows)))
    places = zip(trained.inputs["start_positions"], trained.inputs["end_positions"], strict=True)
    for owner, offsets, (start, end) in zip(trained.rows, trained.offsets, places, strict=True):
        whole = owner == 0 and locate(offsets, 0, 10**6) is not None and "Eiffel" in text_of(offsets, TOWER)
        if whole:
            assert TOWER[offsets[start, 0] : offsets[end, 1]] == "Eiffel"
        else:
            assert start == end == NOWHERE
    assert sum(start != NOWHERE for start in trained.inputs["start_positions"]) >= 1


def text_of(offsets, context):
    """The part of the context that a window shows."""
    own = offsets[offsets[:, 0] >= 0]
    return context[own[0, 0] : own[-1, 1]]


def test_an_answer_cut_by_a_window_counts_only_where_it_is_whole(wordpiece):
    context = " ".join(f"w{i}" for i in range(30))
    answer = "w9 w10 w11"
    windows = windows_of([row(context, answer)], wordpiece, max_length=26, overlap=10, training=True)
    shown = [text_of(offsets, context) for offsets in windows.offsets]
    assert any("w9" in text.split() and answer not in text for text in shown), "one window must cut it"
    starts, ends = windows.inputs["start_positions"], windows.inputs["end_positions"]
    for text, offsets, start, end in zip(shown, windows.offsets, starts, ends, strict=True):
        if answer in text:
            assert context[offsets[start, 0] : offsets[end, 1]] == answer
        else:
            assert (start, end) == (NOWHERE, NOWHERE)


# ---- characters to tokens and back -------------------------------------------------------------------------


@st.composite
def contexts_with_answers(draw):
    words = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=12))
    gaps = draw(st.lists(st.sampled_from(GAPS), min_size=len(words), max_size=len(words)))
    first = draw(st.integers(0, len(words) - 1))
    last = draw(st.integers(first, min(first + 2, len(words) - 1)))
    pieces = [gap + word for gap, word in zip(gaps, words, strict=True)]
    start = sum(map(len, pieces[:first])) + len(gaps[first])
    end = sum(map(len, pieces[: last + 1]))
    context = "".join(pieces)
    return context, start, context[start:end]


@settings(max_examples=35, deadline=None)
@given(case=contexts_with_answers())
def test_an_answer_comes_back_as_the_exact_source_text(tokenizer, case):
    context, start, answer = case
    windows = windows_of([row(context, answer, start=start)], tokenizer, 62, 50, training=True)
    places = list(zip(windows.inputs["start_positions"], windows.inputs["end_positions"], strict=True))
    assert any(place[0] != NOWHERE for place in places)
    spans = [place if place[0] != NOWHERE else None for place in places]
    found = decode(windows, *logits_at(windows, spans), max_answer_length=60)[0].spans[0]
    assert (found.text, found.start, found.end) == (answer, start, start + len(answer))


@settings(max_examples=35, deadline=None)
@given(text=st.text(max_size=30), data=st.data())
def test_any_text_and_any_place_give_the_tokens_there_and_text_of_the_context(tokenizer, text, data):
    context = "x " + text
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    try:
        windows = windows_of([row(context, context[start:end], start=start)], tokenizer, 62, 0, training=True)
    except ValueError as error:
        assert "has no token" in str(error)
        windows = windows_of([row(context)], tokenizer, 62, 0)
        assert all(locate(offsets, start, end) is None for offsets in windows.offsets)
        return
    for offsets in windows.offsets:
        found = locate(offsets, start, end)
        held = [
            i for i, (a, b) in enumerate(offsets) if a >= 0 and any(start <= c < end for c in range(a, b))
        ]
        assert found == ((held[0], held[-1]) if held else None)
        if held:
            got, stop = source_text(context, offsets[held[0], 0], offsets[held[-1], 1])
            assert got == context[offsets[held[0], 0] : stop]


def test_bare_spaces_and_the_question_hold_no_answer(tokenizer):
    windows = windows_of([row("A   tower", question="Which tower ?")], tokenizer)
    (offsets,) = windows.offsets
    assert {tuple(pair) for pair in offsets if pair[0] >= 0} >= {(0, 1)}
    texts = ["A   tower"[a:b] for a, b in offsets if a >= 0]
    assert all(texts) and "".join(texts) == "Atower", "RoBERTa has tokens for the spaces alone"
    assert (offsets[: len(tokenizer("Which tower ?")["input_ids"])] == -1).all()
    assert (offsets[-1] == -1).all()


def test_real_answers_come_back_but_for_a_few_that_end_inside_a_token(data_folder, wordpiece):
    rows = load_task("squad", data_folder).data["validation"].select(range(0, 10570, 25))
    windows = make_windows(rows, wordpiece, 128, 64, training=True)
    places = zip(windows.inputs["start_positions"], windows.inputs["end_positions"], strict=True)
    answers = decode(
        windows, *logits_at(windows, [p if p[0] else None for p in places]), max_answer_length=64
    )
    golds = [answers["text"][:1] for answers in rows["answers"]]
    right = [score_answer(a.text(), gold)[0] for a, gold in zip(answers, golds, strict=True)]
    assert len(windows.rows) > 1.3 * len(rows) and np.mean(right) > 0.985


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings_", "said"),
    [
        ({"answer": "Rome", "start": 4}, {}, "the answer 'Rome' of q is not at offset 4 .* 'towe' stands"),
        ({"answer": "\n", "context": "a\nb"}, {}, r"answer '\\n' of question 'q' has no token"),
        ({"question": "  "}, {}, "The question of question 'q' is empty"),
        ({"context": ""}, {}, "The context of question 'q' is empty"),
        ({"context": "\u200b"}, {}, "The context of question 'q' has no token"),
        ({}, {"max_length": 11}, "max_length=11 is too short for question 'q': its 2 tokens, 3 .* make 12"),
        ({"question": "who " * 20}, {}, "too short for question 'q': its 20 tokens"),
        ({}, {"max_length": 513}, "more than the 512 tokens"),
        ({}, {"max_length": 0}, "max_length=0 is not a whole number of at least 1"),
        ({}, {"overlap": -1}, "overlap=-1 is not a whole number of at least 0"),
        ({}, {"overlap": True}, "overlap=True is not"),
    ],
)
def test_rows_and_settings_that_cannot_work_are_refused(wordpiece, change, settings_, said):
    with pytest.raises(ValueError, match=said):
        windows_of([row(**change)], wordpiece, training=True, **settings_)


def test_a_tokenizer_that_pads_on_the_left_is_refused(wordpiece):
    left = copy.deepcopy(wordpiece)
    left.padding_side = "left"
    with pytest.raises(ValueError, match="pads on the left"):
        windows_of([row()], left)


def test_what_follows_a_character_and_belongs_to_it_is_taken_along():
    for tail in ("\u0301", "\ufe0f", "\u200d", "\U000e0020\U000e007f"):
        assert source_text("a" + tail + "b", 0, 1) == ("a" + tail, 1 + len(tail))
    for tail in ("b", " ", "\U000e001f"):
        assert source_text("a" + tail, 0, 1) == ("a", 1)


def test_what_is_missing_is_named(wordpiece):
    rows = Dataset.from_list([row()])
    with pytest.raises(ValueError, match="no column 'answers'"):
        make_windows(rows.remove_columns("answers"), wordpiece, training=True)
    with pytest.raises(ValueError, match="no column question"):
        make_windows(rows.remove_columns("question"), wordpiece)
    with pytest.raises(ValueError, match="0 rows"):
        make_windows(rows.select([]), wordpiece)
    with pytest.raises(TypeError, match="tokenizer is None"):
        make_windows(rows, None)
