"""What every command prints with: results on standard output, errors and remarks on standard error.

Of a run's processes the main one prints; ``main`` tells ``console``. Errors are every process's own.
"""

from __future__ import annotations

import os

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

console = Console()


def process() -> tuple[int, int]:
    """Return this process's number, from 0, and how many share the run, as torchrun tells them."""
    number, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(number), int(count)) if number.isdecimal() and count.isdecimal() else (0, 1)


def say(line: str) -> None:
    """A line as it is: no markup, no colours, not broken at the terminal's width."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def remark(line: str) -> None:
    """A remark beside the results."""
    Console(stderr=True, quiet=console.quiet).print(line, markup=False, highlight=False, soft_wrap=True)


def show_error(sentence: str) -> None:
    """An error in its box."""
    box = Panel(Text(sentence), title="Error", title_align="left", border_style="red")
    Console(stderr=True).print(box)
