"""``lora-tutorial train``: one run, two baselines, the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lora_tutorial.cli.screen import console


def train(
    task: Annotated[
        str, typer.Option(help="reviews, a GLUE task, or a CSV file (columns text, label).")
    ] = "reviews",
    encoder: Annotated[
        str, typer.Option(help="minilm, roberta-base, or a RoBERTa checkpoint's folder.")
    ] = "minilm",
    method: Annotated[
        str, typer.Option(help="head, bitfit, lora, lora+bias+norm or full.")
    ] = "lora+bias+norm",
    recipe: Annotated[str, typer.Option(help="quick, tutorial, cpu or paper.")] = "quick",
    source: Annotated[str, typer.Option(help="auto, embedded, hub, or a folder of parquet files.")] = "auto",
    rank: Annotated[int, typer.Option(help="The rank r of the update.")] = 8,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale is lora_alpha / r; default r.")] = None,
    head: Annotated[str, typer.Option(help="tutorial, or roberta, which PEFT has a place for.")] = "tutorial",
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Decides adapters, head, order and dropout.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for record, checkpoints, adapter.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of another task's adapter to begin with.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = 50,
    log_with: Annotated[
        list[str] | None, typer.Option(help="A tracker of accelerate, such as tensorboard.")
    ] = None,
) -> None:
    """Fine-tune an encoder, compare it with two baselines and save the adapter."""
    from lora_tutorial.adapters.files import read_adapter
    from lora_tutorial.models.encoders import quiet
    from lora_tutorial.training.recipes import load_recipe

    changes = {"learning_rate": learning_rate, "epochs": epochs, "max_examples": max_examples}
    changes = {key: value for key, value in changes.items() if value is not None}
    first = None if start is None else read_adapter(start)[0]["metadata"].get("task", start.name)
    chosen = load_recipe(recipe, task, start_from=first, **changes)
    folder = out or Path("runs") / f"{Path(task).stem}-{Path(encoder).name}-{method}-{recipe}-seed{seed}"
    if (folder / "record.json").exists() and not resume:
        raise FileExistsError(
            f"{folder} holds a run; add --resume to go on, or name another folder with --out."
        )
    from lora_tutorial.experiments.run import Experiment, run_experiment, save_run_adapter

    experiment = Experiment(chosen, task, encoder, method, source, seed, rank, lora_alpha, head, start)
    console.print(
        f"Fine-tuning {encoder} on {task} by {method}: {chosen.epochs} epoch(s), r = {rank}, seed {seed}."
    )
    with quiet():
        options = {"resume": resume, "checkpoint_every": checkpoint_every, "log_with": log_with or ()}
        finished = run_experiment(experiment, folder, baselines=True, **options)
    _show_scores(finished)
    if method.startswith("lora"):
        size = save_run_adapter(finished, folder / "adapter")
        console.print(f"Adapter: {folder / 'adapter'} ({size / 1e6:.2f} MB). Try it:")
        console.print(
            f'  lora-tutorial predict {folder / "adapter"} "some text"', highlight=False, soft_wrap=True
        )


def _show_scores(finished) -> None:
    record = finished.record
    table = Table(title=f"{record.config['task']}, {record.extra['scored_on']} split", title_justify="left")
    names = list(finished.scores["trained"])
    for column in ("", *names):
        table.add_column(column, justify="left" if not column else "right")
    for who, scores in finished.scores.items():
        who = record.config["method"] if who == "trained" else who
        table.add_row(who, *(f"{scores[name]:.3f}" for name in names))
    console.print(table)
    share = 100 * record.trainable_parameters / record.total_parameters
    console.print(
        f"{record.trainable_parameters:,} of {record.total_parameters:,} parameters trained ({share:.2f} %),"
    )
    console.print(f"in {record.wall_seconds:.0f} s of training and evaluation.")
