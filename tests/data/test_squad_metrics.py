"""SQuAD's scores are torchmetrics' (v1.1) and the TensorFlow model garden's evaluator's (v2.0)."""

import importlib.util
import os

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_references import (
    ANSWERS,
    garden_arguments,
    garden_scores,
    guess,
    question,
    rows_of,
    torchmetrics_scores,
)

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.span_metrics import score_answer
from lora_tutorial.squad.threshold import find_threshold
from lora_tutorial.storage import downloads

# The evaluator alone is taken from the wheel; it needs no TensorFlow.
EVALUATOR = downloads.Asset(
    distribution="tf-models-official",
    version="2.20.0",
    sha256="0bf173f9ea83e1a83f983b35fe515e9d9bfd294b27538f6e8806afeb5a069150",
    source=False,
    members={
        "official/nlp/tools/squad_evaluate_v2_0.py": (
            "95b578c20330e8fe4633f65eb4bc3701643cb21ddef18287cfac74e013ed035d"
        )
    },
)


@pytest.fixture(scope="session")
def evaluator():
    """The reference evaluator of SQuAD v2.0, fetched as a pinned file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(downloads.ASSETS, "squad-evaluator", EVALUATOR)
        try:
            folder = downloads.fetch("squad-evaluator")
        except downloads.AssetError as error:
            if os.environ.get("LORA_TUTORIAL_REQUIRE_DATA"):
                raise
            pytest.skip(f"tf-models-official 2.20.0 cannot be fetched: {error}")
    spec = importlib.util.spec_from_file_location("squad_evaluator", folder / "squad_evaluate_v2_0.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- version 1.1 -------------------------------------------------------------------------------------------


def test_v1_is_torchmetrics_on_a_whole_development_set(data_folder):
    references, texts, _ = rows_of(data_folder, "squad")
    # every third answer is right, and every fifth begins with an article, so that all kinds of score occur
    golds = [reference["answers"]["text"] for reference in references]
    texts = [
        gold[-1] if i % 3 == 0 else text for i, (gold, text) in enumerate(zip(golds, texts, strict=True))
    ]
    texts = [f"The {text}." if i % 5 == 0 else text for i, text in enumerate(texts)]
    predictions = [guess(reference["id"], text) for reference, text in zip(references, texts, strict=True)]
    scores = load_metric("squad").compute(predictions=predictions, references=references)
    assert len(references) == 10570
    assert scores == torchmetrics_scores(predictions, references)
    assert 30 < scores["exact_match"] < scores["f1"] < 60


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_v1_is_torchmetrics_on_odd_texts(cases):
    predictions = [guess(str(i), text) for i, (text, _) in enumerate(cases)]
    references = [question(str(i), *golds) for i, (_, golds) in enumerate(cases)]
    ours = load_metric("squad").compute(predictions=predictions, references=references)
    assert ours == torchmetrics_scores(predictions, references)


def test_v1_by_hand():
    predictions = [guess("a", "The old tower!"), guess("b", "Paris, France")]
    references = [question("b", "Rome", "Paris"), question("a", "old TOWER")]
    metric = load_metric("squad")
    for prediction, reference in zip(predictions, references[::-1], strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert metric.compute() == {"exact_match": 50.0, "f1": 100 * (1 + 2 / 3) / 2}
    assert isinstance(metric, evaluate.Metric)


# ---- version 2.0 -------------------------------------------------------------------------------------------


def test_v2_is_the_evaluators_on_a_whole_development_set(data_folder, evaluator):
    references, texts, questions = rows_of(data_folder, "squad_v2")
    golds = [reference["answers"]["text"] for reference in references]
    texts = [
        (gold[-1] if gold else "") if i % 4 == 0 else text
        for i, (gold, text) in enumerate(zip(golds, texts, strict=True))
    ]
    # longer questions count as more doubtful; the fraction makes all values differ, as those of a model do
    doubts = [len(asked) / 55 + i / 1e7 for i, asked in enumerate(questions)]
    predictions = [guess(r["id"], t, d) for r, t, d in zip(references, texts, doubts, strict=True)]
    scores = load_metric("squad_v2").compute(predictions=predictions, references=references)
    theirs = evaluator.evaluate(*garden_arguments(predictions, references))
    assert scores == {name: theirs[name] for name in scores}
    assert set(theirs) - set(scores) == {
        *("final_exact", "final_exact_thresh", "final_f1", "final_f1_thresh"),
        *("pr_exact_ap", "pr_f1_ap", "pr_oracle_ap"),
    }
    assert (scores["total"], scores["NoAns_total"]) == (11873, 5945)
    assert 10 < scores["HasAns_exact"] < scores["HasAns_f1"] and 20 < scores["NoAns_exact"] < 80
    # The evaluator looks for the best threshold on the scored set itself; ours finds the same one.
    when_answered = [score_answer(text, gold)[1] for text, gold in zip(texts, golds, strict=True)]
    found = find_threshold(doubts, when_answered, [float(not gold) for gold in golds])
    assert 100 * found.score == pytest.approx(theirs["final_f1"], abs=1e-9)
    at = theirs["final_f1_thresh"]
    assert [doubt > found.value for doubt in doubts] == [doubt > at for doubt in doubts]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(ANSWERS, st.lists(ANSWERS, max_size=3), st.sampled_from([0.0, 0.5, 1.0, 1.5])),
        min_size=1,
        max_size=12,
    )
)
def test_v2_is_the_evaluators_on_odd_texts(evaluator, cases):
    predictions = [guess(str(i), text, doubt) for i, (text, _, doubt) in enumerate(cases)]
    references = [question(str(i), *golds) for i, (_, golds, _) in enumerate(cases)]
    ours = load_metric("squad_v2").compute(predictions=predictions, references=references)
    assert ours == garden_scores(evaluator, predictions, references)


@pytest.mark.parametrize(
    ("text", "golds", "expected"),
    [
        ("", [], (100, 100)),
        ("", ["Paris"], (0, 0)),
        ("Paris", [], (0, 0)),
        ("...", [], (100, 100)),  # nothing is left of punctuation
        ("the", [], (100, 100)),  # nor of an article
        ("", ["?"], (100, 100)),  # a gold of punctuation is no gold
        ("?", ["?", "Paris"], (0, 0)),  # and does not count beside another
        ("THE naïve Paris", ["naïve  paris."], (100, 100)),
        ("naive", ["naïve"], (0, 0)),  # accents are letters
        ("a Paris Paris", ["Paris", "Rome"], (0, 200 / 3)),
        ("“Paris”", ["Paris"], (0, 0)),  # only ASCII punctuation goes
    ],
)
def test_v2_by_hand(evaluator, text, golds, expected):
    predictions, references = [guess("q", text, 0.0)], [question("q", *golds)]
    scores = load_metric("squad_v2").compute(predictions=predictions, references=references)
    assert (scores["exact"], scores["f1"]) == pytest.approx(expected)
    assert scores == garden_scores(evaluator, predictions, references)


def test_a_threshold_refuses_what_lies_above_it_and_nothing_at_it():
    predictions = [guess("a", "Paris", 3.0), guess("b", "Rome", 3.5)]
    references = [question("a", "Paris"), question("b")]
    metric = load_metric("squad_v2")
    given = {"predictions": predictions, "references": references}
    assert metric.compute(**given, no_answer_threshold=3.0)["exact"] == 100
    assert metric.compute(**given, no_answer_threshold=2.9)["HasAns_exact"] == 0
    assert metric.compute(**given, no_answer_threshold=4.0)["NoAns_exact"] == 0


# ---- what cannot be scored ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_ids_that_do_not_pair_up_are_named(name):
    doubt = 0.0 if name == "squad_v2" else None
    golds = [question(i, "Paris") for i in "abcdefgh"]
    guesses = [guess(i, "Paris", doubt) for i in "abcdefgh"]
    compute = load_metric(name).compute
    with pytest.raises(ValueError, match="no prediction for 'b', 'c', 'd', 'e', 'f' and 2 more"):
        compute(predictions=guesses[:1], references=golds)
    with pytest.raises(ValueError, match="'g' and 1 more"):
        compute(predictions=guesses[:2], references=golds)
    with pytest.raises(ValueError, match="'e', 'f', 'g'; give"):
        compute(predictions=[guesses[i] for i in (0, 1, 7)], references=golds)
    with pytest.raises(ValueError, match="no prediction for 'h'"):
        compute(predictions=[*guesses[:7], guess("other", "", doubt)], references=golds)
    with pytest.raises(ValueError, match="a prediction, but no reference, for 'h'"):
        compute(predictions=guesses, references=golds[:7])
    with pytest.raises(ValueError, match="more than one prediction for 'a'"):
        compute(predictions=[*guesses, guesses[0]], references=golds)
    with pytest.raises(ValueError, match="more than one reference for 'a'"):
        compute(predictions=guesses, references=[*golds, golds[0]])
    with pytest.raises(ValueError, match="Nothing to score"):
        load_metric(name).compute(predictions=[], references=[])
    by_batch = load_metric(name)
    by_batch.add_batch(predictions=guesses[:2], references=golds[1:3])
    with pytest.raises(ValueError, match="no prediction for 'c'"):
        by_batch.compute()


def test_v1_refuses_a_question_without_gold_and_v2_a_doubt_that_is_no_number():
    with pytest.raises(ValueError, match="'q' has no gold answer"):
        load_metric("squad").compute(predictions=[guess("q", "")], references=[question("q")])
    predictions = [guess("q", "", float("nan"))]
    with pytest.raises(ValueError, match="probability of 'q' is nan"):
        load_metric("squad_v2").compute(predictions=predictions, references=[question("q")])
