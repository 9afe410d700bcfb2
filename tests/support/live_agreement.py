"""How often the page's 8-bit model answers as the model in full precision does, on rows that are labelled."""

import numpy as np
import torch
from live_model import page_model, shipped

from lora_tutorial.data.sources import load_task
from lora_tutorial.data.span_metrics import token_f1
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.squad.evaluator import Reader


def first_rows(task, source, most):
    """Up to `most` validation rows, spread evenly over all of them."""
    rows = load_task(task, source).data["validation"]
    return rows.select(np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)))


@torch.no_grad()
def logits_of(model, columns, batch_size=16):
    """The model's logits of rows given as columns of text, (rows, outputs); texts of like length together."""
    tokenizer, found = load_tokenizer("minilm"), {}
    order = np.argsort([sum(map(len, texts)) for texts in zip(*columns, strict=True)])
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [[column[row] for row in chosen] for column in columns]
        batch = tokenizer(*texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        found |= dict(zip(chosen, model(**batch).logits, strict=True))
    return torch.stack([found[row] for row in range(len(order))])


def agreement(task, rows, columns, base="full"):
    """The share of rows on which both models give the same answer; of a regression, to within a tenth.

    Of SQuAD the mean of the two answers' token F1: two spans that are nearly as likely often share words.
    """
    models = shipped(task), page_model(task, base=base)
    if task == "squad":
        reader = Reader(rows, load_tokenizer("minilm"))
        answers = [[answer.text() for answer in reader(model)] for model in models]
        return float(np.mean([token_f1(a, b) for a, b in zip(*answers, strict=True)]))
    exact, page = (logits_of(model, [list(rows[name]) for name in columns]) for model in models)
    if exact.shape[1] == 1:
        return ((exact - page).abs() < 0.1).float().mean().item()
    return (exact.argmax(1) == page.argmax(1)).float().mean().item()
