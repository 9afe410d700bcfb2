"""Our metrics are scikit-learn's and SciPy's scores, and are defined where those are not."""

import socket

import evaluate
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora_tutorial.data.metrics import METRICS, load_metric

NUMBERS = [name for name in METRICS if not name.startswith("squad")]  # texts are in test_squad_metrics.py


def filled(name, guessed, gold, batch=7):
    metric = load_metric(name)
    for start in range(0, len(gold), batch):
        rows = slice(start, start + batch)
        metric.add_batch(predictions=guessed[rows], references=gold[rows])
    return metric.compute()


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_scores_are_scikit_learns(classes):
    draw = np.random.default_rng(classes)
    gold = draw.integers(classes, size=100)
    guessed = np.where(draw.random(100) < 0.6, gold, draw.integers(classes, size=100))
    assert filled("accuracy", guessed, gold) == {"accuracy": accuracy_score(gold, guessed)}
    assert filled("matthews", guessed, gold) == {"matthews": matthews_corrcoef(gold, guessed)}


def test_f1_is_that_of_class_one_and_not_of_class_zero():
    draw = np.random.default_rng(0)
    gold = (draw.random(90) < 0.3).astype(int)
    guessed = np.where(draw.random(90) < 0.7, gold, 1 - gold)
    assert f1_score(gold, guessed) != f1_score(gold, guessed, pos_label=0)
    assert filled("accuracy_f1", guessed, gold) == {
        "accuracy": accuracy_score(gold, guessed),
        "f1": f1_score(gold, guessed),
    }


def test_correlations_are_scipys_to_the_last_digit():
    draw = np.random.default_rng(3)
    gold = draw.normal(size=80)
    guessed = gold + draw.normal(size=80)
    assert filled("pearson_spearman", guessed, gold) == {
        "pearson": pearsonr(guessed, gold).statistic,
        "spearman": spearmanr(guessed, gold).statistic,
    }
    near = np.float32(gold) * 0.1  # single precision in, nothing lost on the way
    assert filled("pearson_spearman", near, gold)["pearson"] == pearsonr(near.astype(float), gold).statistic


@pytest.mark.parametrize(
    ("name", "guessed", "gold", "expected"),
    [
        ("matthews", [1, 1, 1, 1], [1, 0, 1, 0], {"matthews": 0.0}),
        ("matthews", [1, 1], [1, 1], {"matthews": 0.0}),
        ("accuracy_f1", [0, 0, 0], [0, 0, 1], {"accuracy": 2 / 3, "f1": 0.0}),
        ("accuracy_f1", [0, 0], [0, 0], {"accuracy": 1.0, "f1": 0.0}),
        ("pearson_spearman", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], {"pearson": 0.0, "spearman": 0.0}),
        ("pearson_spearman", [1.0, 2.0], [3.0, 3.0], {"pearson": 0.0, "spearman": 0.0}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_constant_answers_have_a_score_and_raise_no_warning(name, guessed, gold, expected):
    assert filled(name, guessed, gold) == pytest.approx(expected, abs=0)


@pytest.mark.filterwarnings("error")
def test_nearly_constant_answers_raise_no_warning():
    gold = np.arange(5.0)
    scores = filled("pearson_spearman", 1e6 + 1e-9 * gold, gold)
    assert set(scores) == {"pearson", "spearman"} and all(np.isfinite(list(scores.values())))


def test_every_metric_names_a_main_score_it_returns_and_is_a_metric_of_evaluate():
    for name in NUMBERS:
        metric = load_metric(name)
        assert isinstance(metric, evaluate.Metric)
        assert metric.main_score in metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])


def test_compute_empties_the_metric():
    metric = load_metric("accuracy")
    assert metric.compute(predictions=[0, 0], references=[1, 1]) == {"accuracy": 0.0}
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="Nothing to score with accuracy"):
        metric.compute()


@pytest.mark.parametrize(
    ("name", "guessed", "gold", "said"),
    [
        ("accuracy", [], [], "Nothing to score"),
        ("accuracy", [1, 0], [1], "Mismatch"),
        ("pearson_spearman", [1.0, float("nan")], [1.0, 2.0], "not finite"),
        ("pearson_spearman", [1.0], [1.0], "at least two examples, given 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(name, guessed, gold, said):
    with pytest.raises(ValueError, match=said):
        load_metric(name).compute(predictions=guessed, references=gold)


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Unknown metric 'f2': choose from accuracy, accuracy_f1, matthews"):
        load_metric("f2")


def test_metrics_open_no_connection_and_leave_no_file_behind(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    for name in NUMBERS:
        filled(name, np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
