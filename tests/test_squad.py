"""SQuAD: windows, positions and the way back to the text, joint decoding, thresholds, scores of a model."""

import math
import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_tutorial.batches import make_loader
from lora_tutorial.encoders import load_tokenizer
from lora_tutorial.recipes import Recipe
from lora_tutorial.squad import NOWHERE, locate, make_windows, source_text
from lora_tutorial.squad_decoding import Answer, Span, best_spans, decode
from lora_tutorial.squad_metrics import score_answer
from lora_tutorial.squad_scoring import Reader, SquadScorer
from lora_tutorial.squad_threshold import choose_threshold, find_threshold, split_by_article
from lora_tutorial.tasks import load_task
from lora_tutorial.training import seed_everything, train
from lora_tutorial.wrapper import LoraWrapperRoberta

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
TOWER = "The tower is old. It was built in Paris by a man called Eiffel, and many people like to see it."


@pytest.fixture(scope="module", params=["wordpiece", "byte-level"])
def tokenizer(request, byte_level):
    return load_tokenizer("minilm" if request.param == "wordpiece" else byte_level)


@pytest.fixture(scope="module")
def wordpiece():
    return load_tokenizer("minilm")


def row(context=TOWER, answer=None, identifier="q", question="Who?", start=None, title="Towers"):
    """One question; an answer's place is looked up."""
    found = [] if answer is None else [context.index(answer) if start is None else start]
    answers = {"text": [] if answer is None else [answer], "answer_start": found}
    return {"id": identifier, "title": title, "context": context, "question": question, "answers": answers}


def windows_of(rows, tokenizer, max_length=24, overlap=6, training=False):
    return make_windows(Dataset.from_list(rows), tokenizer, max_length, overlap, training)


def logits_at(windows, places, height=9.0):
    """Start and end logits that are zero but at one pair of tokens in each window (or in none)."""
    start, end = ([np.zeros(len(offsets)) for offsets in windows.offsets] for _ in range(2))
    for window, place in enumerate(places):
        if place is not None:
            start[window][place[0]] += height
            end[window][place[1]] += height
    return start, end


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


# ---- decoding ----------------------------------------------------------------------------------------------


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


# ---- the threshold -----------------------------------------------------------------------------------------


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


def test_a_split_needs_a_share_and_titles():
    rows = Dataset.from_dict({"id": ["a"]})
    with pytest.raises(ValueError, match="share=1"):
        split_by_article(rows, 1)
    with pytest.raises(ValueError, match="got 0 in column 'title'"):
        split_by_article(rows)


# ---- scores of a model -------------------------------------------------------------------------------------


class Clairvoyant(nn.Module):
    """Points at a word wherever it sees it, with a no-answer score of its own for each question."""

    def __init__(self, tokenizer, word, doubts):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        (self.word,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        self.doubts = {
            tokenizer(key, add_special_tokens=False)["input_ids"][0]: v for key, v in doubts.items()
        }
        self.gradients = []

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        self.gradients.append(torch.is_grad_enabled() or self.training)
        scores = (input_ids == self.word).float() * 5  # (batch, tokens)
        for window, first in enumerate(input_ids[:, 1].tolist()):
            scores[window, NOWHERE] = 5 + self.doubts.get(first, 0.0) / 2
        return SimpleNamespace(start_logits=scores, end_logits=scores)


def v2_rows(prefix, title, questions):
    """Questions with an answer or without on one long context each."""
    return Dataset.from_list(
        [
            row(
                f"{prefix}{i}. {TOWER}",
                "Paris" if has else None,
                f"{prefix}{i}",
                f"{word} is it?",
                title=title,
            )
            for i, (word, has) in enumerate(questions)
        ]
    )


def test_the_threshold_comes_from_held_out_questions_and_never_from_the_reported(wordpiece):
    # doubt: where 1, who 2, when 3, why 4
    model = Clairvoyant(wordpiece, "paris", {"where": 1.0, "who": 2.0, "when": 3.0, "why": 4.0})
    held = v2_rows("h", "Held", [("where", True), ("who", True), ("when", False), ("why", False)])
    reported = v2_rows("r", "Reported", [("where", True), ("who", False), ("when", True), ("why", False)] * 3)
    scorer = SquadScorer("squad_v2", reported, wordpiece, held, max_length=24, overlap=6)
    scores = scorer(model)
    # 2.5 is perfect on the held-out questions; 1.5, 3.5 would do better or as well on the reported ones
    assert scorer.threshold == (2.5, 1.0) and scores["threshold"] == 2.5
    assert (scores["exact"], scores["HasAns_exact"], scores["NoAns_exact"]) == (50.0, 50.0, 50.0)
    golds = [answers["text"] for answers in reported["answers"]]
    assert choose_threshold(scorer.answers, golds).value != 2.5
    assert [answer.id for answer in scorer.answers] == reported["id"]
    assert {answer.text() for answer in scorer.answers} == {"Paris"}
    assert not any(model.gradients), "scoring runs without gradients and in eval mode"


def test_v1_ignores_no_answer_scores(wordpiece):
    model = Clairvoyant(wordpiece, "paris", {"where": 9.0})
    rows = v2_rows("r", "Towers", [("where", True), ("who", True)])
    scorer = SquadScorer("squad", rows, wordpiece, max_length=24, overlap=6)
    assert scorer(model) == {"exact_match": 100.0, "f1": 100.0} and scorer.threshold is None


def test_the_reader_answers_questions_without_gold(wordpiece):
    rows = v2_rows("r", "Towers", [("where", True)]).remove_columns(["answers", "title"])
    (answer,) = Reader(rows, wordpiece, max_length=24, overlap=6, n_best=2)(
        Clairvoyant(wordpiece, "paris", {})
    )
    assert answer.text() == "Paris" and len(answer.spans) == 2


def film_rows(number, title):
    """Every other context has a film, at some place in it; the film is the answer."""
    draw, rows = random.Random(title), []
    for i in range(number):
        words = draw.choices(["long", "road", "naïve", "honestly", "second", "wonderful"], k=6)
        words.insert(draw.randrange(1, 6), "film" if i % 2 else "far")
        answer = "film" if i % 2 else None
        rows.append(row("  ".join(words), answer, f"{title}{i}", "What?", title=title))
    return Dataset.from_list(rows)


def test_a_tiny_roberta_learns_with_the_scorer_in_the_loop(byte_level):
    tokenizer = load_tokenizer(byte_level)
    held, reported = film_rows(16, "held"), film_rows(16, "reported")
    seed_everything(0)
    model = LoraWrapperRoberta("squad_v2", model_id=str(byte_level), dropout_rate=0.0)
    model.requires_grad_(True)
    model.freeze_pooler()
    windows = make_windows(film_rows(96, "train"), tokenizer, 62, 16, training=True)
    recipe = Recipe("test", epochs=6, batch_size=8, learning_rate=5e-3)
    loader = make_loader(windows.inputs, tokenizer, recipe.batch_size, shuffle=True)
    scorer = SquadScorer("squad_v2", reported, tokenizer, held, max_length=62, overlap=16)
    before = scorer(model)
    record = train(model, loader, None, None, recipe, progress=False, cpu=True, scorer=scorer)
    assert record.main_score == "f1" and len(record.epochs) == 6
    last = record.epochs[-1]["scores"]
    assert before["HasAns_f1"] < 50 and before["f1"] <= 60
    assert last["total"] == 16 and last["HasAns_f1"] > 90 and last["NoAns_f1"] > 90
    assert last == pytest.approx(scorer(model), rel=1e-5), "with and without the loop's accelerator"


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


def test_a_scorer_refuses_a_threshold_on_what_it_reports(wordpiece):
    rows = v2_rows("r", "Towers", [("where", True), ("who", False)])
    with pytest.raises(ValueError, match="squad_v2 needs held_out.*without them"):
        SquadScorer("squad_v2", rows, wordpiece)
    with pytest.raises(ValueError, match="squad takes none; got 'squad' with them"):
        SquadScorer("squad", rows, wordpiece, rows)
    with pytest.raises(ValueError, match="share 2 values of 'id', such as 'r0'"):
        SquadScorer("squad_v2", rows, wordpiece, rows)
    with pytest.raises(ValueError, match="share 1 values of 'title', such as 'Towers'"):
        SquadScorer("squad_v2", rows, wordpiece, v2_rows("h", "Towers", [("where", True)]))
    with pytest.raises(ValueError, match="task must be squad or squad_v2; got 'cola'"):
        SquadScorer("cola", rows, wordpiece)
