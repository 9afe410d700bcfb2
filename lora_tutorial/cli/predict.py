"""``lora-tutorial predict`` and ``params``: use an adapter, count parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import console, remark, say


def predict(
    adapter: Annotated[
        Path, typer.Argument(help="A folder that train has made, or mrpc and the like: one that comes along.")
    ],
    texts: Annotated[
        list[str],
        typer.Argument(help="One text each; for pairs, two in turn; for squad, a text and a question."),
    ],
) -> None:
    """Load an adapter and label texts with it, or answer questions about them."""
    folder = checks.find_adapter(adapter)
    settings = checks.read_trained_settings(folder)
    about = settings["metadata"]
    spans, width = "context" in about["columns"], len(about["columns"])
    if len(texts) % width:
        kind = "a text and a question about it" if spans else " and ".join(about["columns"])
        raise ValueError(f"Task {about['task']} takes {kind}: give two texts in turn; got {len(texts)}.")
    for place, text in enumerate(texts, start=1):
        if not text.strip():
            raise ValueError(f"Text {place} is empty; write one, or leave it out.")
    checks.check_base(settings)

    from lora_tutorial.adapters.files import base_of, load_adapter
    from lora_tutorial.models.encoders import load_tokenizer, quiet

    with quiet():
        model, tokenizer = load_adapter(folder), load_tokenizer(base_of(folder, settings))
        answer = _answer_questions if spans else _label
        lines = answer(model, tokenizer, about, [texts[place::width] for place in range(width)])
    for line in lines:
        say(line)


def _label(model: Any, tokenizer: Any, about: dict[str, Any], columns: list[list[str]]) -> list[str]:
    """A line for each row: the class and its probability, or the number, before the text."""
    import torch

    longest = about["max_length"]
    for row, ids in enumerate(tokenizer(*columns)["input_ids"], start=1):
        if len(ids) > longest:
            what = "Text" if len(columns) == 1 else "Pair"
            remark(f"{what} {row} has {len(ids):,} tokens and was cut: the first {longest} were read.")
    batch = tokenizer(*columns, truncation=True, max_length=longest, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits  # (texts, classes), or (texts, 1) for a regression
    lines = []
    for row, text in zip(logits, zip(*columns, strict=True), strict=True):
        if about["labels"]:
            probability, best = row.softmax(-1).max(-1)
            answer = f"{about['labels'][best]:>12} {probability:.3f}"
        else:
            answer = f"{row.item():+.2f}"
        lines.append(f"{answer}  {' | '.join(text)}")
    return lines


def _answer_questions(
    model: Any, tokenizer: Any, about: dict[str, Any], columns: list[list[str]]
) -> list[str]:
    """A line for each question: the answer and its place, or that the text has none."""
    from datasets import Dataset

    from lora_tutorial.squad.evaluator import Reader

    contexts, questions = columns
    ids = [str(row) for row in range(1, len(questions) + 1)]
    rows = Dataset.from_dict({"id": ids, "question": questions, "context": contexts})
    threshold = about.get("scores", {}).get("threshold", float("inf"))
    lines = []
    for answer in Reader(rows, tokenizer, about["max_length"])(model):
        span = answer.spans[0]
        if answer.text(threshold):
            lines.append(f"{span.text}  (characters {span.start} to {span.end} of the text)")
        else:
            lines.append(f"no answer in the text  (the best guess was {span.text!r})")
    return lines


def params(
    encoder: Annotated[
        str, typer.Argument(help="Such as roberta-base; no weights are needed.")
    ] = "roberta-base",
    rank: Annotated[int, typer.Option(help="The rank r of the update.")] = 8,
    num_classes: Annotated[int, typer.Option(help="Outputs of the head.")] = 2,
) -> None:
    """Print where an encoder's parameters are, and which of them the tutorial trains."""
    checks.check_number("--num-classes", num_classes, 1, 10**6)
    checks.check_rank(rank, None, encoder)
    checks.check_encoder(encoder, weights=False)

    from lora_tutorial.models.encoders import parameter_table
    from lora_tutorial.models.roberta import LoraWrapperRoberta

    model = LoraWrapperRoberta("glue", num_classes, model_id=encoder, lora_rank=rank, weights="meta")
    table = Table("part", title=f"{encoder}, LoRA r = {rank} on query and value", title_justify="left")
    for column in ("parameters", "trainable", "trainable MB (fp32)"):
        table.add_column(column, justify="right")
    rows = parameter_table(model)
    for part, count in rows.items():
        table.add_row(part, f"{count.total:,}", f"{count.trainable:,}", f"{4 * count.trainable / 1e6:.2f}")
    table.columns[0].footer = "all"
    console.print(table)
    console.print(f"{rows['all'].percent:.2f} % of all parameters train.")
