"""Answers and questions to score, and the scores of torchmetrics and of the model garden's evaluator."""

import re

import torch
from hypothesis import strategies as st
from torchmetrics.functional.text import squad as torchmetrics_squad

from lora_tutorial.data.sources import load_task

WORDS = [
    "the",
    "a",
    "An",
    "Théâtre",
    "naïve",
    "京都",
    "tower",
    "Tower,",
    "1,000",
    "…",
    "—",
    "!",
    "'s",
    "-",
    "🙂",
    "",
]
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)


def question(identifier, *texts):
    return {"id": identifier, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def guess(identifier, text, probability=None):
    extra = {} if probability is None else {"no_answer_probability": probability}
    return {"id": identifier, "prediction_text": text} | extra


def first_capitals(context):
    """The first run of capitalised words: cheap, the same everywhere, and right often enough to be a test."""
    found = re.search(r"[A-Z][\w'-]*(?: [A-Z][\w'-]*)*", context[1:])
    return found.group() if found else ""


def garden_arguments(predictions, references):
    """What the evaluator takes: questions in their nested form, texts and no-answer probabilities by id."""
    qas = [{"id": r["id"], "answers": [{"text": text} for text in r["answers"]["text"]]} for r in references]
    texts = {p["id"]: p["prediction_text"] for p in predictions}
    return [{"paragraphs": [{"qas": qas}]}], texts, {p["id"]: p["no_answer_probability"] for p in predictions}


def garden_scores(evaluator, predictions, references):
    scores = evaluator.evaluate(*garden_arguments(predictions, references))
    return {name: value for name, value in scores.items() if not name.startswith(("final_", "pr_"))}


def torchmetrics_scores(predictions, references):
    """torchmetrics' scores, added up in double precision as ours are."""
    torch.set_default_dtype(torch.float64)
    try:
        scores = torchmetrics_squad(predictions, references)
    finally:
        torch.set_default_dtype(torch.float32)
    return {name: score.item() for name, score in scores.items()}


def rows_of(data_folder, name):
    """References, one cheap answer to each, and the questions of a whole development set."""
    rows = load_task(name, data_folder).data["validation"]
    references = [{"id": i, "answers": a} for i, a in zip(rows["id"], rows["answers"], strict=True)]
    return references, [first_capitals(context) for context in rows["context"]], rows["question"]
