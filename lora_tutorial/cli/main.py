"""The command ``lora-tutorial``: train an adapter, use it, run a benchmark, count parameters, look around."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def export_peft(
    adapter: Annotated[Path, typer.Argument(help="A folder that train (with --head roberta) has made.")],
    out: Annotated[Path, typer.Argument(help="Folder for PEFT's files, and the base where it is needed.")],
    licence: Annotated[str | None, typer.Option(help="The adapter's licence, for its card.")] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on, for its card.")] = None,
    data_licence: Annotated[str | None, typer.Option(help="The data's licence, for its card.")] = None,
    title: Annotated[str | None, typer.Option(help="The card's title.")] = None,
) -> None:
    """Write an adapter as PEFT writes it: same logits, bit for bit."""
    from lora_tutorial.adapters.files import load_adapter
    from lora_tutorial.adapters.peft import export_peft as export
    from lora_tutorial.models.encoders import quiet

    said = {"licence": licence, "data": data, "data_licence": data_licence, "title": title}
    with quiet():
        model = load_adapter(adapter)
        about: dict[str, Any] = model.adapter_metadata | {k: v for k, v in said.items() if v is not None}
        export(model, out, metadata=about)
    console.print(f"PEFT adapter: {out} ({', '.join(sorted(path.name for path in out.iterdir()))})")


def import_peft(
    peft: Annotated[Path, typer.Argument(help="A folder with adapter_config.json.")],
    out: Annotated[Path, typer.Argument(help="Folder for our adapter.")],
    base: Annotated[str | None, typer.Option(help="Encoder or folder, instead of the one it names.")] = None,
) -> None:
    """Read an adapter that PEFT wrote and save it as ours."""
    from lora_tutorial.adapters.files import save_adapter
    from lora_tutorial.adapters.peft import import_peft as read
    from lora_tutorial.models.encoders import quiet

    with quiet():
        save_adapter(read(peft, base), out, {"imported_from": "PEFT"})
    console.print(f"Adapter: {out}. Load it with lora_tutorial.load_adapter.")


def add_commands(app: typer.Typer) -> None:
    """Make both known to the command line."""
    app.command("export-peft")(export_peft)
    app.command("import-peft")(import_peft)


app = typer.Typer(
    help="LoRA from scratch: train small adapters on a frozen encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
add_commands(app)


def main() -> None:
    """Run the command; what a user can mend ends in one sentence on standard error and exit status 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        Console(stderr=True).print(f"lora-tutorial: {error}", style="bold red", highlight=False, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "\nStopped. The same command goes on from the last checkpoint (train needs --resume)."
        )
        sys.exit(130)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def doctor() -> None:
    """Say what is here, what is missing, and what to do about it."""
    from lora_tutorial.cli.doctor import diagnose

    table = Table("", "what", "found", "what to do", show_lines=False)
    for finding in diagnose():
        mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
        table.add_row(mark, finding.what, finding.found, "" if finding.ok else finding.advice)
    console.print(table)
