"""The command ``lora-tutorial``: train an adapter, use it, run a benchmark, count parameters, look around."""

from __future__ import annotations

import logging
import os

# Threads of GNU OpenMP spin while they wait: on a busy machine a run takes ten times as long. Read once, when
# torch is imported, which no module of this folder does before its arguments were found good.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import errno
import importlib.metadata
import sys
import traceback
import warnings
from opcode import opmap
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lora_tutorial.cli.bench import bench
from lora_tutorial.cli.peft import diagnose, export_merged, export_peft, import_peft
from lora_tutorial.cli.predict import chat, generate, params, predict
from lora_tutorial.cli.screen import console, process, remark, say, show_error
from lora_tutorial.cli.train import Stopped, train

#: Exit statuses: something the user can mend; a fault of ours (EX_SOFTWARE); Ctrl-C (128 + SIGINT).
USAGE, FAULT, INTERRUPTED = 2, 70, 130
#: Errors that this package raises in words for the user.
SAID = (ValueError, TypeError, OSError, RuntimeError, ImportError)
ISSUES = "https://github.com/lora-from-scratch/lora-from-scratch/issues"
DEBUG = "LORA_TUTORIAL_DEBUG"
# Typer brings click's classes along or takes click's own, by release; its public error leads to them.
UsageProblem: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    help="LoRA from scratch: train small adapters on a frozen encoder or language model.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"lora-tutorial {importlib.metadata.version('lora-tutorial')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (
    *(train, bench, predict, generate, chat, params),
    *(diagnose, export_peft, import_peft, export_merged),
):
    app.command()(command)


@app.command()
def doctor() -> None:
    """Say what is here, what is missing, and what to do about it."""
    from lora_tutorial.cli.doctor import report

    report()


def main() -> NoReturn:
    """Run the command and exit.

    Whatever goes wrong ends in one sentence in a box on standard error. What a user can mend (arguments,
    files, the disk, the network) exits with ``USAGE``; what nobody foresaw with ``FAULT``, and says how the
    traceback is seen; Ctrl-C with ``INTERRUPTED``.
    """
    console.quiet = process()[0] > 0
    if not os.environ.get(DEBUG):
        warnings.showwarning = _show_warning
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel that we do not use
    try:
        _check_encoding(sys.argv[1:])
        # standalone mode would keep errors and Ctrl-C to itself
        status = typer.main.get_command(app).main(prog_name="lora-tutorial", standalone_mode=False)
        if status == INTERRUPTED:  # what Typer makes of KeyboardInterrupt
            raise KeyboardInterrupt
    except Stopped as stopped:
        status = _interrupted(str(stopped))
    except (KeyboardInterrupt, typer.Abort):
        goes_on = " The same command goes on where it was." if sys.argv[1:2] == ["bench"] else ""
        status = _interrupted(f"Stopped.{goes_on}")
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        sentence, status = explain(error)
        show_error(sentence)
    sys.exit(status or 0)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Our own warnings as a remark; what libraries tell programmers is left out."""
    if _is_ours(filename):
        remark(f"Note: {message}")


def _is_ours(filename: str) -> bool:
    return Path(filename).is_relative_to(Path(__file__).parents[1])


def _interrupted(sentence: str) -> int:
    remark(f"\n{sentence}")
    return INTERRUPTED


def _check_encoding(arguments: list[str]) -> None:
    for place, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="surrogateescape").decode("utf-8", "replace")
            raise ValueError(
                f"Argument {place} ({shown!r}) is not UTF-8; write it in UTF-8, or rename the file."
            ) from None


def explain(error: Exception) -> tuple[str, int]:
    """An error as a sentence, and the exit status."""
    if isinstance(error, UsageProblem):
        where = getattr(error, "ctx", None)
        path = where.command_path if where is not None else "lora-tutorial"
        return f"{error.format_message().rstrip('.')}. See {path} --help.", USAGE
    told = " ".join(str(error).split())
    if _was_said_by_us(error) and isinstance(error, SAID):
        return told, USAGE
    if (sentence := _of_the_surroundings(error, told)) is not None:
        return sentence, USAGE
    return (
        f"This is a bug of ours: {type(error).__name__}{f' ({told})' if told else ''}. Please report it at "
        f"{ISSUES} with the command and what it prints when {DEBUG}=1 is set.",
        FAULT,
    )


def _was_said_by_us(error: Exception) -> bool:
    """Whether a ``raise`` of this package raised the error: its words are then meant for the reader."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    return _is_ours(code.co_filename) and code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]


def _of_the_surroundings(error: Exception, told: str) -> str | None:
    """What disk, memory, network and damaged files make other libraries raise; ``None`` for the rest."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    origin = type(error).__module__.partition(".")[0]
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in told:
        return (
            f"The disk is full ({told}); make room and give the same command again. What had been written "
            "before is whole."
        )
    if kinds & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in told:
        return f"There is not enough memory ({told}); take a smaller encoder, or fewer or shorter texts."
    if origin in ("huggingface_hub", "httpx", "requests", "urllib3") or isinstance(error, ConnectionError):
        return (
            f"The hub did not deliver what was asked of it ({told}); check the network, or take minilm and "
            "reviews, which need no hub."
        )
    if "SafetensorError" in kinds:
        return f"A safetensors file cannot be read or written ({told}); copy it again, or train it anew."
    if isinstance(error, UnicodeError):
        return f"A text is not UTF-8 ({told}); save it as UTF-8."
    if isinstance(error, OSError):
        return f"A file cannot be read or written: {told}."
    if isinstance(error, ImportError) and not told.startswith("cannot import name"):
        return f"A package is missing ({told}); `lora-tutorial doctor` says what to install."
    return None
