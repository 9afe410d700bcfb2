"""SQuAD's scores of a model: where the threshold comes from, and what a scorer refuses."""

import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from squad_rows import TOWER, row
from torch import nn

from lora_tutorial.data.batches import make_loader
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.squad.evaluator import Reader, SquadScorer
from lora_tutorial.squad.threshold import choose_threshold
from lora_tutorial.squad.windows import NOWHERE, make_windows
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.trainer import seed_everything, train


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


def test_the_answers_given_are_those_that_the_threshold_lets_through(wordpiece):
    model = Clairvoyant(wordpiece, "paris", {"where": 1.0, "who": 2.0, "when": 3.0})
    held = v2_rows("h", "Held", [("where", True), ("when", False)])
    reported = v2_rows("r", "Reported", [("where", True), ("who", True), ("when", True)])
    refusing = SquadScorer("squad_v2", reported, wordpiece, held, max_length=24, overlap=6)
    refusing(model)
    assert refusing.threshold.value == 2.0
    assert refusing.given() == ["Paris", "Paris", ""]
    never = SquadScorer("squad", reported, wordpiece, max_length=24, overlap=6)
    never(model)
    assert never.given() == ["Paris"] * 3


def test_a_reader_is_prepared_once_for_an_accelerator_and_pads_little(wordpiece):
    class Accelerator:
        prepared = 0

        def prepare(self, loader):
            self.prepared += 1
            return loader

        def pad_across_processes(self, tensor, dim):
            return tensor

        def gather_for_metrics(self, tensors):
            return tensors

    shapes, model = [], Clairvoyant(wordpiece, "paris", {})
    model.register_forward_pre_hook(
        lambda module, args, batch: shapes.append(tuple(batch["input_ids"].shape)), with_kwargs=True
    )
    texts = ["In Paris." if n % 2 else "In Paris" + " and again" * 9 for n in range(8)]
    rows = Dataset.from_list([row(text, "Paris", f"q{n}") for n, text in enumerate(texts)])
    reader = Reader(rows, wordpiece, max_length=48, overlap=6, batch_size=4)
    first, second = Accelerator(), Accelerator()
    alone = reader(model)
    assert [answer.text() for answer in alone] == ["Paris"] * 8
    assert [answer.id for answer in alone] == rows["id"][:]
    for accelerator in (first, first, second):
        assert reader(model, accelerator) == alone
    assert (first.prepared, second.prepared) == (1, 1)
    widths = {width for _, width in shapes}
    assert len(widths) == 2 and min(widths) < max(widths) / 2, "short windows are read together"


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
