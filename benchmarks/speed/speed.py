"""How fast and how small: full fine-tuning, its lower bounds, and LoRA in every form, side by side.

Run it from the repository, on a machine that does nothing else:

    python benchmarks/speed/speed.py --plan short            # about ten minutes on two cores
    python benchmarks/speed/speed.py --plan full --budget 60 # hours; may be stopped and started again
    python benchmarks/speed/speed.py --model minilm --tokens 16x64 32x128 --r 8 64 --targets query-value

Each setting becomes one record in ``benchmarks/results/speed``, ``NAME.json`` for times and
``NAME-memory.json`` for memory; one that is there already, with as many rounds, is skipped. All variants of a
setting run in one process, in rounds of random order, at the same weights: their losses must agree, or
nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from speed_measure import CLOCKS, measure, summarise
from speed_memory import measure_memory
from speed_settings import PRECISIONS, TARGETS, Setting, grid, plan
from speed_variants import make_bench

from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.records import describe_hardware, package_versions

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"
#: How far apart the losses of two variants may be, relative to the first.
TOLERANCE = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2}


def run_times(setting: Setting, arguments: argparse.Namespace) -> str:
    """Time one setting and store the record; says in one line what came out."""
    path = arguments.out / f"{setting.name}.json"
    variants = chosen_variants(setting, arguments.variants)
    if is_done(path, "times", setting, variants, arguments.rounds):
        return f"{setting.name}: done before"
    load = os.getloadavg()[0]
    measured = measure(
        make_bench(setting),
        variants,
        arguments.rounds,
        clock=arguments.clock,
        shortest=arguments.shortest,
        budget=arguments.budget,
    )
    check_losses(setting, measured["losses"])
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


def run_memory(setting: Setting, arguments: argparse.Namespace) -> str:
    """Measure the memory of every variant of one setting, each in its own process, and store the record."""
    path = arguments.out / f"{setting.name}-memory.json"
    variants = chosen_variants(setting, ["fast"] if arguments.quick else arguments.variants)
    if setting.phase == "infer" or (arguments.quick and not setting.layer_sizes):
        return f"{setting.name}: memory left out"
    if is_done(path, "memory", setting, variants, 0):
        return f"{setting.name}: memory done before"
    found = {v: measure_memory(setting, v, torch.get_num_threads()) for v in variants}
    save(path, "memory", setting, {"variants": variants, "bytes": found})
    peaks = ", ".join(f"{v} {row['peak'] / 2**20:.0f} MiB" for v, row in found.items())
    return f"{setting.name}: peak {peaks}"


def chosen_variants(setting: Setting, wanted: list[str] | None) -> list[str]:
    """The wanted variants that this setting has, in its own order; all of them by default."""
    return [v for v in setting.variants if not wanted or v in wanted]


def check_losses(setting: Setting, losses: dict[str, float]) -> None:
    """Refuse variants that do not compute the same function.

    Raises
    ------
    RuntimeError
        If a loss is not finite or is further from the first than `TOLERANCE`.
    """
    first = next(iter(losses.values()))
    for variant, loss in losses.items():
        if not abs(loss - first) <= TOLERANCE[setting.precision] * max(1.0, abs(first)):
            raise RuntimeError(f"{setting.name}: the loss of {variant} is {loss}, not {first}: {losses}.")


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
    record = {
        "format": FORMAT,
        "kind": kind,
        "setting": setting.to_dict(),
        **values,
        "versions": package_versions() | {"loralib": metadata.version("loralib")},
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
    add("--plan", choices=["quick", "short", "full"], help="a list of settings instead of the options below")
    add("--quick", action="store_true", help="the quick plan, two rounds: does everything work?")
    add("--model", nargs="+", default=["roberta-base"], help="roberta-base, minilm or linear-IN-OUT")
    add("--tokens", nargs="+", type=batch_by_length, default=[(16, 128)], metavar="BATCHxLENGTH")
    add("--r", nargs="+", type=int, default=[8])
    add("--targets", nargs="+", choices=TARGETS, default=["query-value"])
    add("--phase", nargs="+", choices=["train", "infer"], default=["train"])
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    add("--lora-dropout", nargs="+", type=float, default=[0.0])
    add("--checkpointing", action="store_true")
    add("--compile", action="store_true")
    add("--what", nargs="+", choices=["times", "memory"], default=["times"])
    add("--variants", nargs="+", help="only these")
    add("--rounds", type=int, default=15)
    add("--budget", type=float, help="seconds for the rounds of one setting; at least 3 rounds are done")
    add("--shortest", type=float, default=0.05, help="seconds that one sample lasts at least")
    add("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: processor time, for a busy machine")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.plan, arguments.what, arguments.rounds = "quick", ["times", "memory"], 2
        arguments.shortest = 0.0
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


def main(words: list[str] | None = None) -> None:
    """Measure what the command line asks for and is not there yet."""
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    kinds = {"times": run_times, "memory": run_memory}
    for setting in arguments.settings:
        for what in arguments.what:
            print(kinds[what](setting, arguments), flush=True)


if __name__ == "__main__":
    main()
