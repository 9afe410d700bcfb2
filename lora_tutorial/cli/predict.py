"""``lora-tutorial predict`` and ``params``: use an adapter, count parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lora_tutorial.cli.screen import console


def predict(
    adapter: Annotated[
        Path, typer.Argument(help="A folder that train has made, or mrpc and the like: one that comes along.")
    ],
    texts: Annotated[
        list[str], typer.Argument(help="One text each; for a task on pairs, two texts in turn.")
    ],
) -> None:
    """Load an adapter and label texts with it."""
    import torch

    from lora_tutorial.adapters.files import load_adapter, read_adapter
    from lora_tutorial.adapters.shipped import stored_adapter
    from lora_tutorial.models.encoders import load_tokenizer, quiet

    adapter = adapter if adapter.exists() else stored_adapter(str(adapter))
    settings, _ = read_adapter(adapter)
    about = settings["metadata"]
    if not {"task", "columns", "labels", "max_length"} <= about.keys():
        raise ValueError(
            f"{adapter} was not saved by `lora-tutorial train`; load it with load_adapter instead."
        )
    if "context" in about["columns"]:
        raise ValueError(f"{adapter} answers with spans of a text; see squad_scoring.Reader.")
    width = len(about["columns"])
    if len(texts) % width:
        raise ValueError(
            f"Task {about['task']} compares {' and '.join(about['columns'])}: give texts in pairs."
        )
    with quiet():
        model = load_adapter(adapter)
        tokenizer = load_tokenizer(settings["base"]["name"])
    columns = [texts[i::width] for i in range(width)]
    batch = tokenizer(
        *columns, truncation=True, max_length=about["max_length"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**batch).logits  # (texts, classes), or (texts, 1) for a regression
    for i, row in enumerate(logits):
        if about["labels"]:
            probability, best = row.softmax(-1).max(-1)
            answer = f"{about['labels'][best]:>12} {probability:.3f}"
        else:
            answer = f"{row.item():+.2f}"
        text = " | ".join(column[i] for column in columns)
        console.print(f"{answer}  {text}", markup=False, highlight=False, soft_wrap=True)


def params(
    encoder: Annotated[
        str, typer.Argument(help="Such as roberta-base; no weights are needed.")
    ] = "roberta-base",
    rank: Annotated[int, typer.Option(help="The rank r of the update.")] = 8,
    num_classes: Annotated[int, typer.Option(help="Outputs of the head.")] = 2,
) -> None:
    """Print where an encoder's parameters are, and which of them the tutorial trains."""
    from lora_tutorial.lora.parameters import parameter_table
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
