"""Questions on a short context of our own, their windows, and logits that point where a test wants."""

import numpy as np
from datasets import Dataset

from lora_tutorial.squad.windows import make_windows

TOWER = "The tower is old. It was built in Paris by a man called Eiffel, and many people like to see it."


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
