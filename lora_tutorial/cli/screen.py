"""What every command prints with: results on standard output, errors and remarks on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

console = Console()


def say(line: str) -> None:
    """A line as it is: no markup, no colours, not broken at the terminal's width."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def remark(line: str) -> None:
    """A remark beside the results."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def show_error(sentence: str) -> None:
    """An error in its box."""
    box = Panel(Text(sentence), title="Error", title_align="left", border_style="red")
    Console(stderr=True).print(box)
