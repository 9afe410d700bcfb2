"""``lora-tutorial bench``: many runs on equal terms, a record each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import say
from lora_tutorial.experiments.grid import Arm, Grid, Search, parse_list, read_engine, read_grid

#: Options of which a grid file says the same.
OF_THE_FILE = ("methods", "seeds", "encoder", "source", "recipe", "epochs", "max_examples",
               "learning_rate", "start_from", "sweep")  # fmt: skip
ENGINE = (
    "Let submitit carry the runs out: local:N (N at a time, here) or slurm, with its settings as in "
    "slurm:partition=gpu,timeout_min=600."
)


def bench(
    ctx: typer.Context,
    grid: Annotated[Path | None, typer.Option(help="A TOML file such as benchmarks/grids/glue.toml.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Without a file: names with commas between, such as cola,mrpc.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of head, bitfit, lora, lora+bias+norm, full.")
    ] = "head,bitfit,lora,lora+bias+norm,full",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0,1,2",
    encoder: Annotated[str, typer.Option(help="As for train.")] = "minilm",
    source: Annotated[str, typer.Option(help="As for train.")] = "auto",
    recipe: Annotated[str, typer.Option(help="quick, tutorial, cpu or paper.")] = "cpu",
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="For all, instead of the recipe's.")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Task whose run each run begins with, or none.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Choose each method's rate on held-out training rows.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    work: Annotated[Path | None, typer.Option(help="For checkpoints and trained weights.")] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 200,
    log_with: Annotated[list[str] | None, typer.Option(help="A tracker of accelerate.")] = None,
) -> None:
    """Run every arm on every task, one record a run; the same command goes on where it was stopped.

    Several processes may run one grid together.
    """
    if (grid is None) == (tasks is None):
        raise ValueError("Give a grid file (--grid FILE.toml) or tasks (--tasks cola,mrpc), one of the two.")
    if grid is not None:
        _check_alone(grid, ctx)
        chosen, name = read_grid(grid), grid.stem
    else:
        own = {"epochs": epochs, "max_examples": max_examples, "learning_rate": learning_rate}
        changes: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
        if start_from is not None:
            changes["start_from"] = None if start_from == "none" else start_from
        arms = tuple(Arm(method, method) for method in parse_list("methods", methods, str))
        names, numbers = parse_list("tasks", tasks or "", str), parse_list("seeds", seeds, int)
        search = Search() if sweep else None
        chosen, name = Grid(names, arms, numbers, encoder, source, recipe, changes, search), "bench"
    _check(chosen, engine, log_with or ())

    from lora_tutorial.experiments.bench import diverged, run_grid
    from lora_tutorial.models.encoders import quiet

    records = out or Path("benchmarks/results") / name
    options = {"checkpoint_every": checkpoint_every, "log_with": log_with or ()}
    with quiet():
        done = run_grid(chosen, records, work or Path("runs") / name, say, engine, **options)
    # a search learns from a rate that diverges
    failed = sum(r.status == "failed" and not (chosen.search and diverged(r)) for r in done)
    say(f"{len(done) - failed} finished, {failed} failed. Records: {records}")
    if failed:
        raise typer.Exit(1)


def _check(chosen: Grid, engine: str | None, trackers: Sequence[str]) -> None:
    """Refuse what can be seen to be wrong before torch is loaded."""
    if engine is not None:
        read_engine(engine)
    checks.check_trackers(trackers)
    checks.check_encoder(chosen.encoder)
    for task in chosen.tasks:
        checks.check_task(task, chosen.source)


def _check_alone(grid: Path, ctx: typer.Context) -> None:
    """Refuse an option that the grid file decides."""
    for name in OF_THE_FILE:
        given = ctx.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect beside --grid: {grid} says what is run. Change "
                "the file, or a copy of it."
            )
