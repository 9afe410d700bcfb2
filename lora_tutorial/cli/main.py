"""The command ``lora-tutorial``: train an adapter, use it, run a benchmark, count parameters, look around."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from lora_tutorial.cli.bench import bench
from lora_tutorial.cli.peft import export_peft, import_peft
from lora_tutorial.cli.predict import params, predict
from lora_tutorial.cli.train import train

app = typer.Typer(
    help="LoRA from scratch: train small adapters on a frozen encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, bench, predict, params, export_peft, import_peft):
    app.command()(command)


@app.command()
def doctor() -> None:
    """Say what is here, what is missing, and what to do about it."""
    from lora_tutorial.cli.doctor import report

    report()


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
