"""How fast and how small: full fine-tuning, its lower bounds, and LoRA in every form, side by side.

Run it from the repository, on a machine that does nothing else:

    python benchmarks/speed/speed.py --plan short            # about ten minutes on two cores
    python benchmarks/speed/speed.py --plan full --budget 60 # hours; may be stopped and started again
    python benchmarks/speed/speed.py --model minilm --tokens 16x64 32x128 --r 8 64 --targets query-value
    python benchmarks/speed/speed.py --plan gpu              # under eight minutes on a machine with a GPU

Each setting becomes one record in ``benchmarks/results/speed``, ``NAME.json`` for times and
``NAME-memory.json`` for memory; one that is there already, with as many rounds, is skipped. All variants of a
setting run in one process, in rounds of random order, at the same weights: their losses must agree, and the
gradients of LoRA's forms, or nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from speed_measure import CLOCKS, Deadline, OutOfTimeError, measure, prepare, summarise
from speed_memory import measure_memory, step_peaks
from speed_settings import GPU_VARIANTS, LORA, PRECISIONS, TARGETS, Setting, grid, plan
from speed_variants import make_bench

from lora_tutorial.analysis.speed import speed_table
from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.records import describe_hardware, package_versions

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"
#: How far apart the losses of two variants may be, relative to the first.
TOLERANCE = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2, "nf4": 2e-2}
#: The same for the norms of the gradients of LoRA's forms, relative to the first of them.
GRADIENT_TOLERANCE = {"fp32": 1e-3, "autocast": 5e-2, "bf16": 5e-2, "nf4": 5e-2}
#: Eight minutes with the imports before, and one form that is compiled when the time ends.
GPU_DEFAULTS = {
    "device": "cuda",
    "variants": list(GPU_VARIANTS),
    "rounds": 11,
    "shortest": 0.1,
    "total": 380.0,
}
DEFAULTS = {"device": "cpu", "rounds": 15, "shortest": 0.05}


def run_times(setting: Setting, arguments: argparse.Namespace, deadline: Deadline, to_come: int) -> str:
    """Time one setting and store the record; says in one line what came out."""
    path = arguments.out / f"{setting.name}.json"
    variants = chosen_variants(setting, arguments.variants)
    if is_done(path, "times", setting, variants, arguments.rounds):
        return f"{setting.name}: done before"
    deadline.check()
    load = os.getloadavg()[0]
    trainers, first = prepare(make_bench(setting), variants, arguments.clock, deadline)
    check_losses(setting, **first)
    budgets = [arguments.budget, deadline.share(to_come)]
    measured = first | measure(
        trainers,
        arguments.rounds,
        shortest=arguments.shortest,
        budget=min(budget for budget in budgets if budget is not None),
    )
    if arguments.plan == "gpu":
        measured["bytes"] = step_peaks(trainers)
    summary = summarise(measured["seconds"])
    about = {
        "variants": variants,
        "clock": "cuda events" if setting.device == "cuda" else arguments.clock,
        "rounds_wanted": arguments.rounds,
        "load_before_and_after": [load, os.getloadavg()[0]],
    }
    save(path, "times", setting, about | {"summary": summary} | measured)
    parts = []
    for variant, row in summary.items():
        own = row.get("own_to_peft")
        parts.append(
            f"{variant} {1000 * row['seconds']['total'][1]:.2f} ms"
            + (f" x{row['to_peft'][1]:.3f}" if "to_peft" in row else "")
            + (f" own {own[1]:.2f}" if own else "")
        )
    return f"{setting.name}: " + ", ".join(parts)


def run_memory(setting: Setting, arguments: argparse.Namespace, deadline: Deadline, to_come: int) -> str:
    """Measure the memory of every variant of one setting, each in its own process, and store the record."""
    path = arguments.out / f"{setting.name}-memory.json"
    variants = chosen_variants(setting, ["fast"] if arguments.quick else arguments.variants)
    if setting.phase == "infer" or (arguments.quick and not setting.layer_sizes):
        return f"{setting.name}: memory left out"
    if is_done(path, "memory", setting, variants, 0):
        return f"{setting.name}: memory done before"
    found = {}
    for variant in variants:
        deadline.check()
        found[variant] = measure_memory(setting, variant, torch.get_num_threads())
    save(path, "memory", setting, {"variants": variants, "bytes": found})
    peaks = ", ".join(f"{v} {row['peak'] / 2**20:.0f} MiB" for v, row in found.items())
    return f"{setting.name}: peak {peaks}"


def chosen_variants(setting: Setting, wanted: list[str] | None) -> list[str]:
    """The wanted variants that this setting has, in its own order; all of them by default."""
    return [v for v in setting.variants if not wanted or v in wanted]


def check_losses(setting: Setting, losses: dict[str, float], gradients: dict[str, float | None]) -> None:
    """Refuse variants that do not compute the same function, or LoRA's if they do not learn the same.

    Where the base is packed, the floor stands for it without the adapters, and its loss is another.

    Raises
    ------
    RuntimeError
        If a loss is not finite or is further from the first than `TOLERANCE`, or the norm of a gradient than
        `GRADIENT_TOLERANCE`.
    """
    without = {"floor", "base"} if setting.precision == "nf4" else set()
    compared = {variant: loss for variant, loss in losses.items() if variant not in without}
    first = next(iter(compared.values()), 0.0)
    for variant, loss in compared.items():
        if not abs(loss - first) <= TOLERANCE[setting.precision] * max(1.0, abs(first)):
            raise RuntimeError(f"{setting.name}: the loss of {variant} is {loss}, not {first}: {losses}.")
    norms = {variant: norm for variant, norm in gradients.items() if variant in LORA and norm is not None}
    first = next(iter(norms.values()), 0.0)
    for variant, norm in norms.items():
        if not abs(norm - first) <= GRADIENT_TOLERANCE[setting.precision] * first:
            raise RuntimeError(
                f"{setting.name}: the gradient of {variant} is {norm} long, not {first}: {norms}."
            )


def is_done(path: Path, kind: str, setting: Setting, variants: list[str], rounds: int) -> bool:
    """Whether a record of this very measurement is there."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    same = (found["kind"], found["setting"]) == (kind, setting.to_dict())
    return same and set(found["variants"]) >= set(variants) and found.get("rounds_wanted", 0) >= rounds


def save(path: Path, kind: str, setting: Setting, values: dict[str, Any]) -> None:
    """Write a record whole or not at all; one line for each field keeps differences readable."""
    accelerator = torch.cuda.get_device_name() if setting.device == "cuda" else None
    cuda = {"cuda": torch.version.cuda} if accelerator else {}
    record = {
        "format": FORMAT,
        "kind": kind,
        "setting": setting.to_dict(),
        **values,
        "versions": package_versions() | {"loralib": metadata.version("loralib")} | cuda,
        "hardware": describe_hardware(torch.get_num_threads(), accelerator),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in record.items()]
    atomic_write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """The settings of the plan, or of the grid that the options span."""
    if arguments.plan:
        return plan(arguments.plan, arguments.device)
    return grid(
        model=arguments.model,
        tokens=arguments.tokens,
        r=arguments.r,
        targets=arguments.targets,
        phase=arguments.phase,
        precision=arguments.precision,
        lora_dropout=arguments.lora_dropout,
        device=[arguments.device],
        checkpointing=[arguments.checkpointing],
        compiled=[arguments.compile],
    )


def batch_by_length(text: str) -> tuple[int, int]:
    """``16x128`` as (16, 128)."""
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTH, as in 16x128")
    return int(batch), int(length)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` is the smallest plan with two rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--plan", choices=["quick", "short", "full", "gpu"], help="settings instead of the options below")
    add("--quick", action="store_true", help="the quick plan, two rounds: does everything work?")
    add("--model", nargs="+", default=["roberta-base"], help="roberta-base, minilm, smollm2 or linear-IN-OUT")
    add("--tokens", nargs="+", type=batch_by_length, default=[(16, 128)], metavar="BATCHxLENGTH")
    add("--r", nargs="+", type=int, default=[8])
    add("--targets", nargs="+", choices=TARGETS, default=["query-value"])
    add("--phase", nargs="+", choices=["train", "infer"], default=["train"])
    add("--device", choices=["cpu", "cuda"], help="cuda for --plan gpu, else cpu")
    add("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    add("--lora-dropout", nargs="+", type=float, default=[0.0])
    add("--checkpointing", action="store_true")
    add("--compile", action="store_true")
    add("--what", nargs="+", choices=["times", "memory"], default=["times"])
    add("--variants", nargs="+", help="only these")
    add("--rounds", type=int, help="15; 11 for --plan gpu")
    add("--budget", type=float, help="seconds for the rounds of one setting; at least 3 rounds are done")
    add("--total", type=float, help="seconds for everything; what is not done then is left for the next call")
    add("--shortest", type=float, help="seconds that one sample lasts at least: 0.05; 0.1 for --plan gpu")
    add("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: processor time, for a busy machine")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.plan, arguments.what, arguments.rounds = "quick", ["times", "memory"], 2
        arguments.shortest = 0.0
    for name, value in (GPU_DEFAULTS if arguments.plan == "gpu" else DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "a GPU is asked for (--device cuda, or --plan gpu), and torch sees none here: run this on a "
            "machine with an NVIDIA GPU and a torch built for CUDA, or choose another plan and --device cpu"
        )
    if arguments.rounds < 2:
        parser.error(f"--rounds must be 2 or more for quartiles; got {arguments.rounds}")
    try:
        arguments.settings = settings_of(arguments)
    except ValueError as error:
        parser.error(str(error))
    known = {name for setting in arguments.settings for name in setting.variants}
    if unknown := sorted(set(arguments.variants or []) - known):
        parser.error(f"no variant {', '.join(unknown)} here; there are {', '.join(sorted(known))}")
    return arguments


def main(words: list[str] | None = None, now: Callable[[], float] = time.monotonic) -> int:
    """Measure what the command line asks for and is not there yet.

    Returns
    -------
    int
        0, also when the time was over before all was done; 1 if a setting failed. The others go on then.
    """
    arguments = parse(words)
    deadline = Deadline(arguments.total, now)
    torch.set_num_threads(arguments.threads)
    kinds = {"times": run_times, "memory": run_memory}
    asked = [(setting, what) for setting in arguments.settings for what in arguments.what]
    failed = 0
    for done, (setting, what) in enumerate(asked):
        try:
            print(kinds[what](setting, arguments, deadline, len(asked) - done), flush=True)
        except OutOfTimeError:
            print(f"{setting.name}: the time is over; the same command goes on from here", flush=True)
            break
        except (
            Exception
        ):  # a GPU may be lent for minutes: one setting too large for it must not cost the rest
            traceback.print_exc()
            print(f"{setting.name}: failed, and nothing was written", flush=True)
            failed = 1
        _tidy(setting)
    if arguments.plan == "gpu":
        print(speed_table(records_of(arguments)))
    return failed


def records_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of times of these settings that are there, in the plan's order."""
    paths = [arguments.out / f"{setting.name}.json" for setting in arguments.settings]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def _tidy(setting: Setting) -> None:
    """Give back what a setting held: compiled code, and models in circles."""
    if setting.compiled:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
