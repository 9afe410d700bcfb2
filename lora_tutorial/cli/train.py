"""``lora-tutorial train``: one run, what it is compared with, the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lora_tutorial.cli import checks
from lora_tutorial.cli.screen import console, say
from lora_tutorial.data import own_file

if TYPE_CHECKING:
    from lora_tutorial.data.tasks import LoadedTask
    from lora_tutorial.experiments.inputs import Prepared
    from lora_tutorial.experiments.run import Result
    from lora_tutorial.training.recipes import Recipe


# Options whose default depends on what is trained: an encoder, or a language model.
ENCODER = typer.Option(
    help="minilm, roberta-base, or a checkpoint's folder; to write texts smollm2 or the like.",
    show_default="minilm, or smollm2",
)
METHOD = typer.Option(
    help="head, bitfit, lora, lora+bias+norm or full; to write texts lora or full.",
    show_default="lora+bias+norm, or lora",
)
RECIPE = typer.Option(help="quick, chat, tutorial, cpu or paper.", show_default="quick, or chat")
ALPHA = typer.Option(help="Scale is lora_alpha / r.", show_default="r, or 2 r to write texts")
HEAD = typer.Option(help="tutorial, or roberta, which PEFT has a place for.", show_default="tutorial")
# ... and those whose words take a line of their own.
START = typer.Option(help="Folder of another task's adapter to begin with.")
BASELINES = typer.Option("--baselines/--no-baselines", help="Score what the run is compared with, too.")
SHARD = typer.Option("--shard", help="Share the weights out over the processes that torchrun starts (FSDP2).")
TRACKER = typer.Option(help="A tracker of accelerate, such as tensorboard.")


class Stopped(Exception):  # noqa: N818 - Ctrl-C is no error
    """Ctrl-C, with the sentence that says how to go on."""


def train(
    task: Annotated[
        str | None,
        typer.Argument(help="reviews, a GLUE task, squad, docstrings, or your file.", show_default="reviews"),
    ] = None,
    task_option: Annotated[str | None, typer.Option("--task", help="The same, as an option.")] = None,
    encoder: Annotated[str | None, ENCODER] = None,
    method: Annotated[str | None, METHOD] = None,
    recipe: Annotated[str | None, RECIPE] = None,
    source: Annotated[str, typer.Option(help="auto, embedded, hub, or a folder of parquet files.")] = "auto",
    rank: Annotated[int, typer.Option(help="The rank r of the update.")] = 8,
    lora_alpha: Annotated[float | None, ALPHA] = None,
    head: Annotated[str | None, HEAD] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    max_examples: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Decides adapters, head, order and dropout.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for record, checkpoints, adapter.")] = None,
    start: Annotated[Path | None, START] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    baselines: Annotated[bool, BASELINES] = True,
    shard: Annotated[bool, SHARD] = False,
    log_with: Annotated[list[str] | None, TRACKER] = None,
) -> None:
    """Fine-tune an encoder or a language model, compare it with what it was, and save the adapter.

    A file of your own (CSV, TSV or JSON lines) has the columns text and label.

    Pairs are text_a and text_b; numbers to predict are a score instead of a label.

    To teach a language model, JSON lines have instruction and output (and input), or messages.

    Several processes share a run: torchrun --nproc-per-node 2 -m lora_tutorial train ...
    """
    from lora_tutorial.training.recipes import load_recipe

    if task is not None and task_option not in (None, task):
        raise ValueError(f"The task is named twice, {task!r} and {task_option!r}; name it once.")
    name = task or task_option or "reviews"
    writes = checks.is_generative(name)
    usual = checks.LM_DEFAULTS if writes else checks.DEFAULTS
    encoder = usual["encoder"] if encoder is None else encoder
    method, recipe = method or usual["method"], recipe or usual["recipe"]
    if writes:
        checks.check_lm_options(name, method, start, head)
    checks.check_method(method, start, head or "tutorial")
    checks.check_number("--seed", seed, 0, 2**32 - 1)
    checks.check_number("--checkpoint-every", checkpoint_every, 1, 10**9)
    changes = {"learning_rate": learning_rate, "epochs": epochs, "max_examples": max_examples}
    changes = {key: value for key, value in changes.items() if value is not None}
    first = None
    if start is not None:
        first = checks.read_settings(start)["metadata"].get("task", start.name)
    chosen = load_recipe(recipe, name, start_from=first, **changes)
    (checks.check_lm if writes else checks.check_encoder)(encoder)
    # of a language model's held-out rows each process scores all
    batches = (chosen.batch_size,) if writes else (chosen.batch_size, checks.EVALUATION_BATCH)
    checks.check_processes(shard, encoder, batches)
    lora = checks.check_rank(rank, lora_alpha, encoder, writes)
    checks.check_trackers(log_with or ())
    folder = out or Path("runs") / f"{Path(name).stem}-{Path(encoder).name}-{method}-{recipe}-seed{seed}"
    checks.check_run_folder(folder, resume)
    checks.check_recipe(chosen, checks.check_task(name, source))

    options = {"resume": resume, "checkpoint_every": checkpoint_every, "log_with": log_with or ()}
    options |= {"shard": shard, "baselines": baselines}
    settings = {"source": source, "seed": seed, "lora": lora, "head": head or "tutorial", "start": start}
    _run(folder, options, recipe=chosen, task=name, encoder=encoder, method=method, **settings)


def _run(folder: Path, options: dict[str, Any], **experiment: Any) -> None:
    """The run itself, after everything was found good; importing what it takes is part of the wait."""
    what = "{encoder} on {task} by {method}: {recipe.epochs} epoch(s), r = {lora.r}, seed {seed}"
    try:
        say(f"Fine-tuning {what.format(**experiment)}.")
        from torch import distributed

        from lora_tutorial.experiments.experiment import Experiment
        from lora_tutorial.experiments.run import prepare, run_experiment, save_run_adapter
        from lora_tutorial.models.encoders import load_tokenizer, quiet

        planned = Experiment(**experiment)
        if options["resume"]:
            say(_where_it_goes_on(folder))
        with quiet():
            prepared = prepare(planned)
            if prepared.loaded.task.generative:
                say(_conversations_read(prepared, planned.recipe))
            elif own_file.is_text_file(planned.task):
                for line in _what_is_read(prepared.loaded, load_tokenizer(planned.encoder), planned.recipe):
                    say(line)
            finished = run_experiment(planned, folder, prepared=prepared, **options)
        _show_scores(finished)
        if experiment["method"].startswith("lora"):
            size = save_run_adapter(finished, folder / "adapter")
            _show_use(folder / "adapter", size, finished.loaded.task.columns)
        if distributed.is_initialized():
            distributed.destroy_process_group()
    except KeyboardInterrupt:
        began = (folder / "record.json").exists()
        raise Stopped(
            f"Stopped. The same command with --resume goes on from the last checkpoint in {folder}."
            if began
            else "Stopped before the first step; nothing was kept."
        ) from None


def _where_it_goes_on(folder: Path) -> str:
    """From which step a run in this folder is resumed."""
    from lora_tutorial.training.checkpoints import resume_point

    step = resume_point(folder)
    if step is None:
        return f"{folder} has no whole checkpoint yet, so the run begins again with its first step."
    return f"Going on after step {step:,}, the last whole checkpoint in {folder}."


def _what_is_read(loaded: LoadedTask, tokenizer: Any, recipe: Recipe) -> Iterator[str]:
    """What is left out of a reader's file: the ends of long rows, and rows that need not be scored."""
    from lora_tutorial.data.batches import count_cut

    rows = loaded.data.num_rows
    total = sum(rows.values())
    what = "texts" if len(loaded.task.columns) == 1 else "pairs"
    if cut := sum(count_cut(loaded, tokenizer, recipe.max_length).values()):
        yield (
            f"{cut:,} of {total:,} {what} {'is' if cut == 1 else 'are'} longer than {recipe.max_length} "
            f"tokens and will be cut there."
        )
    if total * own_file.SHARES["test"] > 100 * own_file.MOST:
        yield (
            f"At most {own_file.MOST:,} {what} are scored, however long the file: {rows['test']:,} of "
            f"{total:,} are for the test, {rows['validation']:,} for validation, the rest for training."
        )


def _conversations_read(prepared: Prepared, recipe: Recipe) -> str:
    """How many conversations of each side are used: the long ones would lose their answers' ends."""
    used = (
        f"{len(prepared.tokenized[side]):,} of {len(prepared.loaded.data[side]):,} {what}"
        for side, what in (("train", "to train on"), ("validation", "to validate"), ("test", "to test on"))
    )
    return f"Conversations: {', '.join(used)}; those of more than {recipe.max_length} tokens are left out."


def _show_scores(finished: Result) -> None:
    record = finished.record
    table = Table(title=f"{record.config['task']}, {record.extra['scored_on']} split", title_justify="left")
    names = list(finished.scores["trained"])
    for column in ("", *names):
        table.add_column(column, justify="left" if not column else "right")
    for who, scores in finished.scores.items():
        who = record.config["method"] if who == "trained" else who
        table.add_row(who, *(f"{scores[name]:.3f}" for name in names))
    console.print(table)
    if wrote := record.extra.get("written"):
        console.print(
            f"Asked to answer {wrote['rows']} test prompts by itself it scores chrF {wrote['chrf']:.1f}, and "
            f"{wrote['stopped']:.0%} of its answers end before they are cut."
        )
    share = 100 * record.trainable_parameters / record.total_parameters
    console.print(
        f"{record.trainable_parameters:,} of {record.total_parameters:,} parameters trained ({share:.2f} %),"
    )
    console.print(f"in {record.wall_seconds:.0f} s of training and evaluation.")


def _show_use(adapter: Path, size: int, columns: tuple[str, ...]) -> None:
    """The command that uses the adapter, with as many texts as its task has."""
    say(f"Adapter: {adapter} ({size / 1e6:.2f} MB). Try it:")
    if columns == ("messages",):
        say(f'  lora-tutorial generate {adapter} "a request"')
        say(f"  lora-tutorial chat {adapter}")
        return
    texts = {1: '"some text"', 2: '"some text" "another text"'}[len(columns)]
    if "context" in columns:
        texts = '"some text" "a question about it"'
    say(f"  lora-tutorial predict {adapter} {texts}")
