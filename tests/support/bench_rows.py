"""Sentences of our own for the grid runner, in the schema of GLUE."""

from datasets import Dataset

GOOD = ["a bright day", "a warm and lovely walk", "we laughed all evening", "what a fine meal it was"]
BAD = ["a grey day", "a cold and dull walk", "we waited all evening", "what a poor meal it was"]
BRIEF = {"epochs": 2, "batch_size": 8}


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
