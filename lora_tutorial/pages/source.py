"""What only the chapters need: the package's own source on the page, and silence from the libraries."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import textwrap
import warnings
from typing import Any

__all__ = ["Source", "quiet", "show_source"]


_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "matplotlib",
    "peft",
    "torch",
    "tqdm",
    "transformers",
)


def quiet() -> None:
    """Silence the libraries' progress bars, advice and warnings: a chapter prints only its own words.

    Call it before torch, transformers or datasets are imported: they read these variables once, at import.
    One has nothing to do with silence: threads of torch that wait for each other do not spin, which on a busy
    machine would take most of the time. Set ``OMP_WAIT_POLICY`` yourself and it stays as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["DATASETS_VERBOSITY"] = "error"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TQDM_DISABLE"] = "1"
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    # A warning of a chapter's own code still shows, and a test then refuses the chapter.
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})\b")


class Source:
    """The source text of a class, function or module, shown highlighted where the front end can.

    Attributes
    ----------
    text : str
        The source, dedented and without a trailing newline. It is also the plain-text form, so a stored
        output stops matching as soon as the package changes.
    name : str
        The full name, ``lora_tutorial.lora.inject.inject_lora``, of the first thing shown, or an empty text
        for what is not of the package. In the book it leads to the reference.
    """

    def __init__(self, text: str, name: str = "") -> None:
        self.text = text
        self.name = name

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        # Only the classes, never a colour: the page's theme has a style for light and one for dark.
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        shown = highlight(self.text, PythonLexer(), HtmlFormatter(cssclass="highlight", wrapcode=False))
        # Plain text in a notebook; the book's build makes it a link, and refuses a name it does not have.
        api = f'<p class="shown-api">API: <code class="api-name">{self.name}</code></p>' if self.name else ""
        return f'<div class="highlight-python shown-source">{shown.rstrip()}{api}</div>'


def show_source(*things: Any, docstring: bool = True) -> Source:
    """Show the source of something in the package.

    Parameters
    ----------
    *things : class, function, method or module
        What to show, one below the other: a long class is best shown by the methods that the text is about.
        Their source files must be present.
    docstring : bool
        False leaves the docstrings out, where the chapter has just said the same.

    Returns
    -------
    Source
        Make it the last expression of a cell.

    Raises
    ------
    TypeError
        If one of them has no Python source (a built-in, a number, an instance), or there is none.
    """
    accepted = "pass a class, function, method or module"
    if not things:
        raise TypeError(f"show_source was given nothing: {accepted}")
    shown = [inspect.unwrap(thing) if callable(thing) else thing for thing in things]
    texts = []
    for thing in shown:
        try:
            text = textwrap.dedent(inspect.getsource(thing))
        except (TypeError, OSError) as error:
            raise TypeError(
                f"show_source was given {thing!r}, which has no Python source: {accepted}"
            ) from error
        texts.append((text if docstring else _without_docstrings(text)).rstrip("\n"))
    return Source("\n\n".join(texts), _full_name(shown[0]))


def _full_name(obj: Any) -> str:
    """The name by which the reference has ``obj``, or an empty text if it is not of this package."""
    name = obj.__name__ if inspect.ismodule(obj) else f"{obj.__module__}.{obj.__qualname__}"
    return name if name.partition(".")[0] == __name__.partition(".")[0] else ""


def _without_docstrings(text: str) -> str:
    lines = text.splitlines()
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        # A body that is only its docstring keeps it: without it the text would not be Python.
        if isinstance(node, holders) and len(node.body) > 1 and ast.get_docstring(node, clean=False):
            end = node.body[0].end_lineno or 0
            while end < len(lines) and not lines[end].strip():
                end += 1
            dropped.update(range(node.body[0].lineno - 1, end))
    return "\n".join(line for number, line in enumerate(lines) if number not in dropped)
