"""``lora-tutorial bench``: many runs, a record each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_tutorial.cli.screen import console


def bench(
    tasks: Annotated[str, typer.Option(help="Names with commas between, such as cola,mrpc,rte.")],
    methods: Annotated[
        str, typer.Option(help="Of head, bitfit, lora, lora+bias+norm, full.")
    ] = "head,bitfit,lora,lora+bias+norm,full",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0,1,2",
    encoder: Annotated[str, typer.Option(help="As for train.")] = "minilm",
    source: Annotated[str, typer.Option(help="As for train.")] = "auto",
    recipe: Annotated[str, typer.Option(help="quick, tutorial, cpu or paper.")] = "cpu",
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="For all, instead of the sweeps'.")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Task whose LoRA adapter runs begin with, or none.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try learning rates on training rows.")] = False,
    rates: Annotated[str | None, typer.Option(help="For --sweep, instead of each method's own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("benchmarks/results"),
    work: Annotated[Path, typer.Option(help="For checkpoints and adapters.")] = Path("runs/bench"),
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 200,
    log_with: Annotated[list[str] | None, typer.Option(help="A tracker of accelerate.")] = None,
) -> None:
    """Run tasks x methods x seeds, one record each; the same command goes on where it was stopped."""
    from lora_tutorial.experiments.bench import run_grid
    from lora_tutorial.experiments.grid import Grid, parse_list
    from lora_tutorial.models.encoders import quiet

    given = {"epochs": epochs, "max_examples": max_examples, "learning_rate": learning_rate}
    changes = {key: value for key, value in given.items() if value is not None}
    if start_from is not None:
        changes["start_from"] = None if start_from == "none" else start_from
    names = parse_list("tasks", tasks, str), parse_list("methods", methods, str)
    grid = Grid(*names, parse_list("seeds", seeds, int), encoder, source, recipe, changes)
    options = {"checkpoint_every": checkpoint_every, "log_with": log_with or ()}

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with quiet():
        tried = parse_list("rates", rates, float) if rates else None
        records = run_grid(grid, out, work, sweep, tried, say, **options)
    failed = sum(record.status == "failed" for record in records)
    say(f"{len(records) - failed} finished, {failed} failed. Records: {out / 'sweeps' if sweep else out}")
    if failed:
        raise typer.Exit(1)
