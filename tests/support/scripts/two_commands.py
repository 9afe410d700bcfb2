"""Commands on two processes each, as torchrun starts them: what every process printed, and what it wrote.

Usage: two_commands.py FOLDER COMMANDS

COMMANDS is a JSON object of argument lists by name. In FOLDER/NAME each process leaves what it printed, and
the files that it put in place.
"""

import json
import os
import sys
from pathlib import Path

import torch
from two_processes import spread

from lora_tutorial.cli.main import main
from lora_tutorial.experiments import run  # noqa: F401 - before the forks, which need not import it then
from lora_tutorial.training.processes import Sharded

torch.set_num_threads(1)


def command(folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    rank = environment["RANK"]
    for stream, name in ((1, "printed"), (2, "remarked")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), stream)
    put, free = os.replace, Sharded.free

    def note(line: object) -> None:
        with open(folder / f"done-{rank}", "a", encoding="utf-8") as notes:
            notes.write(f"{line}\n")

    def noted(source, target):
        note(target)
        put(source, target)

    def freed(sharded):
        note("sharded")
        free(sharded)

    os.replace, Sharded.free = noted, freed
    sys.argv = ["lora-tutorial", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"exit status {ended.code}") from ended


if __name__ == "__main__":
    for name, arguments in json.loads(sys.argv[2]).items():
        place = Path(sys.argv[1]) / name
        place.mkdir()
        spread(command, place, arguments)
