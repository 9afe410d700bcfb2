"""What a chapter must be before it is committed: each rule takes a notebook and gives back what is wrong.

`python tools/rules.py` judges every chapter; paths after it narrow that down.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
TEMPLATE = BOOK / "_template.ipynb"
OUTPUT_LIMIT = 300_000
CHAPTER_LIMIT = 1_000_000
IGNORED = "nbval-ignore-output"

# Where a home folder, a temporary file or an environment's packages live, on the systems a reader may have.
MACHINE_PATH = re.compile(
    r"((?<![\w./:])|file://)/(home|Users|root|tmp|var|work|mnt|opt|content|private|usr/lib)/[\w.-]+"
    r"|[A-Z]:\\+Users\\|site-packages"
)

# A picture in Markdown or HTML that a screen reader could not name.
SILENT_IMAGE = re.compile(
    r"!\[\s*\]\(|<img(?![^>]*\balt=.[^\"'])[^>]*>|<svg(?![^>]*\baria-(label|labelledby|hidden)=)[^>]*>"
)


def read(path: Path) -> Notebook:
    """The notebook at `path` as plain JSON."""
    return json.loads(path.read_text(encoding="utf8"))


def chapters() -> list[Path]:
    """Every chapter of the book that is a notebook, by name. The template is no chapter."""
    return sorted(path for path in BOOK.glob("*.ipynb") if not path.name.startswith("_"))


def text_of(source: str | list[str]) -> str:
    """A notebook's text, which JSON keeps as a string or as a list of lines."""
    return source if isinstance(source, str) else "".join(source)


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    """The code cells that hold code."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return [cell for cell in cells if text_of(cell["source"]).strip()]


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _outputs(notebook: Notebook) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.get("outputs", []):
            yield number, cell, output


def _texts(output: dict[str, Any]) -> Iterator[str]:
    """Every readable text in one output. Pictures in base64 are no text."""
    yield text_of(output.get("text", ""))
    yield text_of(output.get("traceback", ""))
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            yield json.dumps(value) if isinstance(value, dict) else text_of(value)


def executed(notebook: Notebook) -> list[str]:
    """Every code cell ran once, from top to bottom: counts are 1, 2, 3, ..."""
    counts = [cell.get("execution_count") for cell in code_cells(notebook)]
    if not counts:
        return ["has no code cell: a chapter computes what it says"]
    if all(count is None for count in counts):
        return ["was never executed: run `make refresh CHAPTER=...`"]
    for place, count in enumerate(counts, start=1):
        if count != place:
            return [f"code cell {place} has execution count {count}: run `make refresh CHAPTER=...`"]
    return []


def no_error(notebook: Notebook) -> list[str]:
    """No cell stored an error, unless it is tagged raises-exception: the chapter teaches that error."""
    return [
        f"code cell {number} stored an error: {output.get('ename', '')}"
        for number, cell, output in _outputs(notebook)
        if output["output_type"] == "error" and "raises-exception" not in _tags(cell)
    ]


def no_stderr(notebook: Notebook) -> list[str]:
    """Nothing was written to stderr: warnings differ between machines."""
    return [
        f"code cell {number} wrote to stderr: {text_of(output['text'])[:80]!r}"
        for number, _, output in _outputs(notebook)
        if output["output_type"] == "stream" and output["name"] == "stderr"
    ]


def no_machine_path(notebook: Notebook) -> list[str]:
    """No output names a folder of the machine that ran it."""
    found = []
    for number, _, output in _outputs(notebook):
        for text in _texts(output):
            shown = MACHINE_PATH.search(text.replace(str(ROOT), "/home/checkout"))
            if shown:
                found.append(f"code cell {number} shows a machine's path: {shown.group()!r}")
    return found


def outputs_small(notebook: Notebook) -> list[str]:
    """One output stays under 300 kB and a chapter's outputs under 1 MB."""
    found, total = [], 0
    for number, _, output in _outputs(notebook):
        size = len(json.dumps(output))
        total += size
        if size > OUTPUT_LIMIT:
            found.append(f"code cell {number} has an output of {size:,} bytes (at most {OUTPUT_LIMIT:,})")
    if total > CHAPTER_LIMIT:
        found.append(f"outputs are {total:,} bytes in all (at most {CHAPTER_LIMIT:,})")
    return found


def ignored_outputs_assert(notebook: Notebook) -> list[str]:
    """A cell whose output nbval does not compare asserts something itself."""
    found = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        if IGNORED in _tags(cell) and not _asserts(text_of(cell["source"])):
            found.append(f"code cell {number} ignores its output and asserts nothing")
    return found


def plain_python(code: str) -> str:
    """A cell's code with IPython's own lines (%config, !ls) replaced by `pass`."""
    return re.sub(r"^([ \t]*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)


def _asserts(code: str) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(plain_python(code))))


def images_have_alt(notebook: Notebook) -> list[str]:
    """A cell that leaves a picture says in words what it shows, and so does a picture in the text."""
    found = set()
    for place, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] == "markdown" and SILENT_IMAGE.search(text_of(cell["source"])):
            found.add(f"cell {place} (text) shows a picture without alt text")
    for number, cell, output in _outputs(notebook):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt.strip()) < 15:
                found.add(f"code cell {number} leaves a picture without alt text (metadata mystnb.image.alt)")
        drawn = text_of(output.get("data", {}).get("text/html", ""))
        if SILENT_IMAGE.search(drawn):
            found.add(f"code cell {number} leaves HTML with a picture that has no alt or aria-label")
    return sorted(found)


def commands_can_be_pasted(notebook: Notebook) -> list[str]:
    """A command that goes on in the next line ends in one backslash: two would end the command there."""
    found = []
    for place, cell in enumerate(notebook["cells"], start=1):
        shown = text_of(cell["source"]) if cell["cell_type"] == "markdown" else ""
        for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", shown, re.DOTALL | re.MULTILINE):
            if re.search(r"\\\\$", block, re.MULTILINE):
                found.append(f"cell {place} (text) has a command with two backslashes at a line's end")
    return found


def figures_have_captions(notebook: Notebook) -> list[str]:
    """What a cell draws has a caption, which states the finding, and a name to refer to it by.

    Names are those of no other cell in the notebook. A cell that leaves two pictures would number both alike.
    """
    found, drawn = [], dict[str, int]()
    for number, cell, output in _outputs(notebook):
        if "image/svg+xml" not in output.get("data", {}):
            continue
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        name, caption = figure.get("name", ""), figure.get("caption", "")
        if not name.startswith("fig-") or len(caption.split()) < 6 or not caption.endswith((".", ")")):
            found.append(f"code cell {number} leaves a figure without name and caption (mystnb.figure)")
        elif name in drawn:
            found.append(f"code cell {number} leaves a figure with the name of another, {name}")
        drawn[name] = number
    return found


def no_widgets(notebook: Notebook) -> list[str]:
    """No widget: a stored page cannot run one."""
    found = ["metadata keeps widget state"] if "widgets" in notebook["metadata"] else []
    for number, _, output in _outputs(notebook):
        if any("widget" in kind for kind in output.get("data", {})):
            found.append(f"code cell {number} leaves a widget")
    return found


def kernel_is_python3(notebook: Notebook) -> list[str]:
    """The kernel has the name that every installation has."""
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"names the kernel {name!r}, not 'python3'"]


def no_clock(notebook: Notebook) -> list[str]:
    """No cell keeps the time at which it ran: a refresh changes only what changed."""
    stamped = [n for n, cell in enumerate(code_cells(notebook), start=1) if "execution" in cell["metadata"]]
    return [f"code cell {number} keeps the time at which it ran: use `make refresh`" for number in stamped]


def first_cell_is_shared(notebook: Notebook) -> list[str]:
    """The first code cell is the template's: it sets the chapter up, on Colab too."""
    cells, wanted = code_cells(notebook), code_cells(read(TEMPLATE))[0]
    if not cells or text_of(cells[0]["source"]).strip() != text_of(wanted["source"]).strip():
        return ["does not begin with the set-up cell of book/_template.ipynb"]
    return [] if "hide-input" in _tags(cells[0]) else ["does not tag its set-up cell hide-input"]


RULES: tuple[Callable[[Notebook], list[str]], ...] = (
    executed,
    no_error,
    no_stderr,
    no_machine_path,
    outputs_small,
    ignored_outputs_assert,
    images_have_alt,
    figures_have_captions,
    commands_can_be_pasted,
    no_widgets,
    kernel_is_python3,
    no_clock,
    first_cell_is_shared,
)


def main(paths: list[str]) -> int:
    """Print what is wrong with the notebooks at `paths` (every chapter when there are none)."""
    found = 0
    for path in [Path(name) for name in paths] or [*chapters(), TEMPLATE]:
        notebook = read(path)
        for problem in (problem for rule in RULES for problem in rule(notebook)):
            print(f"{path.name}: {problem}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
