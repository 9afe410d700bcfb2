"""The stored book: every chapter keeps the rules, every rule can fail, nbval sees a change."""

import ast
import configparser
import copy
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import rules
import yaml
from book_pages import listed_pages, run
from IPython.core.inputtransformer2 import TransformerManager
from rules import BOOK, ROOT, RULES, TEMPLATE, chapters, code_cells, read, text_of

PAGES = [*chapters(), TEMPLATE]


# --- what is stored


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_chapter_keeps_rule(path, rule):
    assert rule(read(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_chapter_is_a_valid_notebook(path):
    nbformat.validate(nbformat.read(path, as_version=4))


def test_every_page_is_listed_once_and_exists():
    pages = [*BOOK.glob("*.ipynb"), *BOOK.glob("*.md"), *BOOK.glob("api/*.md")]
    places = [path.relative_to(BOOK.parent).with_suffix("") for path in pages if path.name[0] != "_"]
    assert sorted(listed_pages()) == sorted(place.as_posix() for place in places)


def test_repository_address_is_set_in_one_place():
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    cell = text_of(code_cells(read(TEMPLATE))[0]["source"])
    assert f'REPOSITORY = "{address}"' in cell


# --- every rule can fail

IMAGE = {
    "output_type": "display_data",
    "metadata": {},
    "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"},
}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def html(text):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": text}}


def good():
    """The template, which keeps every rule."""
    return copy.deepcopy(read(TEMPLATE))


def with_output(output):
    notebook = good()
    code_cells(notebook)[1]["outputs"] = [output]
    return notebook


def with_cell(number=1, **fields):
    notebook = good()
    code_cells(notebook)[number].update(fields)
    return notebook


def with_metadata(**metadata):
    notebook = good()
    notebook["metadata"].update(metadata)
    return notebook


def with_text(text):
    notebook = good()
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": text})
    return notebook


def unexecuted():
    notebook = good()
    for cell in code_cells(notebook):
        cell.update(execution_count=None, outputs=[])
    return notebook


def drawn(**figure):
    """Metadata of a cell whose figure has an alt text."""
    return {"mystnb": {"figure": figure, "image": {"alt": "Accuracy rises with the rank"}}}


SVG = {**IMAGE, "data": {"image/svg+xml": "<svg/>", "text/plain": "<Figure>"}}
CAPTION = {"name": "fig-rank", "caption": "Up to rank eight, accuracy rises."}
IGNORED = {"tags": ["nbval-ignore-output"]}
PNG = IMAGE["data"]
BAD = [
    ("executed", unexecuted()),
    ("executed", with_cell(execution_count=7)),
    ("executed", with_cell(number=-1, execution_count=None)),
    ("executed", with_cell(execution_count=1)),
    ("no_error", with_output(ERROR)),
    ("no_stderr", with_output(stream("UserWarning: careful", "stderr"))),
    ("no_machine_path", with_output(stream("saved in /home/anna/adapter"))),
    ("no_machine_path", with_output(stream(r"C:\Users\anna"))),
    ("no_machine_path", with_output(stream("file:///tmp/x/page.html"))),
    ("no_machine_path", with_output(html(f"<code>{ROOT}/lora_tutorial</code>"))),
    ("no_machine_path", with_output({**ERROR, "traceback": ["lib/python3.12/site-packages/torch"]})),
    ("outputs_small", with_output(stream("x" * 300_001))),
    ("ignored_outputs_assert", with_cell(metadata=IGNORED, source="score = 0.8\nprint('assert')  # assert")),
    ("images_have_alt", with_output(IMAGE)),
    ("images_have_alt", with_cell(outputs=[IMAGE], metadata={"mystnb": {"image": {"alt": "plot"}}})),
    ("images_have_alt", with_output(html("<svg viewBox='0 0 1 1'></svg>"))),
    ("images_have_alt", with_text("![](_static/logo.svg)")),
    ("figures_have_captions", with_cell(outputs=[SVG], metadata=drawn())),
    ("figures_have_captions", with_cell(outputs=[SVG], metadata=drawn(**CAPTION | {"name": "rank"}))),
    ("figures_have_captions", with_cell(outputs=[SVG], metadata=drawn(**CAPTION | {"caption": "Ranks."}))),
    ("figures_have_captions", with_cell(outputs=[SVG, SVG], metadata=drawn(**CAPTION))),
    ("commands_can_be_pasted", with_text("```bash\npip install \\\\\n    torch\n```")),
    ("no_widgets", with_metadata(widgets={})),
    ("no_widgets", with_output({**IMAGE, "data": {"application/vnd.jupyter.widget-view+json": {}}})),
    ("kernel_is_python3", with_metadata(kernelspec={"name": "my-env"})),
    ("kernel_is_python3", with_metadata(kernelspec={})),
    ("no_clock", with_cell(metadata={"execution": {"iopub.execute_input": "2026-01-01"}})),
    ("first_cell_is_shared", with_cell(number=0, source="import torch")),
    ("first_cell_is_shared", with_cell(number=0, metadata={})),
]


@pytest.mark.parametrize(("rule", "notebook"), BAD, ids=[f"{name}-{n}" for n, (name, _) in enumerate(BAD)])
def test_rule_refuses(rule, notebook):
    assert getattr(rules, rule)(good()) == []
    assert len(getattr(rules, rule)(notebook)) == 1


def test_every_rule_is_seen_to_refuse():
    assert {name for name, _ in BAD} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    "notebook",
    [
        with_cell(outputs=[ERROR], metadata={"tags": ["raises-exception"]}),
        with_cell(outputs=[IMAGE], metadata={"mystnb": {"image": {"alt": "Accuracy rises with the rank"}}}),
        with_cell(outputs=[SVG], metadata=drawn(**CAPTION)),
        with_cell(metadata=IGNORED, source="%time score = 0.8\nassert 0.7 < score < 0.9"),
        with_output(stream("see https://example.org/home/page, and 3/opt/2")),
        with_output(html('<svg viewBox="0 0 1 1" role="img" aria-label="A square"></svg>')),
        with_output(html('<img src="a.png" alt="A square">')),
        with_text("```bash\npip install \\\n    torch\n```\n\n$$a \\\\\nb$$"),
    ],
    ids=["taught-error", "alt", "caption", "asserts", "url", "svg", "img", "command"],
)
def test_rules_accept(notebook):
    assert [problem for rule in RULES for problem in rule(notebook)] == []


def test_rules_run_as_a_program(tmp_path, capsys):
    path = tmp_path / "bad.ipynb"
    nbformat.write(nbformat.from_dict(unexecuted()), path)
    assert rules.main([str(path)]) == 1
    assert "bad.ipynb: was never executed" in capsys.readouterr().out
    assert rules.main([str(TEMPLATE)]) == 0


# --- the first cell


class Shell:
    """Notes IPython's own lines instead of carrying them out."""

    def __init__(self):
        self.lines = []

    def run_line_magic(self, name, line):
        self.lines.append(f"{name} {line}")


def first_cell(shell):
    """What the template's first code cell does, with `shell` in IPython's place."""
    code = TransformerManager().transform_cell(text_of(code_cells(read(TEMPLATE))[0]["source"]))
    exec(code, {"get_ipython": lambda: shell})


def test_first_cell_changes_nothing_where_the_package_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shell = Shell()
    first_cell(shell)
    assert shell.lines == [] and list(tmp_path.iterdir()) == []


def test_first_cell_installs_on_colab_and_holds_torch_and_numpy(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lora_tutorial" else real(name)
    )
    shell = Shell()
    first_cell(shell)
    listed, install = shell.lines
    # what IPython hands to the shell after `%pip`
    command = f"{sys.executable} -m {listed}"
    subprocess.run(command, shell=True, check=True)
    version = importlib.metadata.version
    held = Path("held.txt").read_text().split()
    assert sorted(held) == [f"numpy=={version('numpy')}", f"torch=={version('torch')}"]
    assert install.startswith("pip install ") and "-c held.txt " in install
    assert install.endswith('"lora-tutorial[chapters] @ git+{REPOSITORY}"')
    assert "--upgrade" not in install


# --- the machinery itself


@pytest.mark.slow
def test_nbval_sees_a_changed_number(tmp_path):
    command = ["pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-c", os.devnull]
    changed = good()
    changed["cells"] = changed["cells"][: changed["cells"].index(code_cells(changed)[1]) + 1]
    nbformat.write(nbformat.from_dict(changed), tmp_path / "same.ipynb")
    (output,) = code_cells(changed)[1]["outputs"]
    output["data"]["text/plain"] = ["3"]
    nbformat.write(nbformat.from_dict(changed), tmp_path / "changed.ipynb")
    same = run(*command, "same.ipynb", cwd=tmp_path)
    assert same.returncode == 0, same.stdout
    drifted = run(*command, "changed.ipynb", cwd=tmp_path)
    assert drifted.returncode == 1
    assert "1 failed" in drifted.stdout


def drawn_in(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [text_of(o["data"]["image/svg+xml"]) for o in outputs if "image/svg+xml" in o.get("data", {})]


def test_nbval_sees_that_there_is_a_figure_and_not_its_lines():
    patterns = configparser.RawConfigParser()
    patterns.read(ROOT / "tools" / "sanitize.cfg")
    figures = patterns["figures"]
    stored = [text for path in chapters() for text in drawn_in(read(path))]
    assert stored
    for svg in stored:
        assert re.sub(figures["regex"], figures["replace"], svg) == "SVG"
    page = '<figure><svg viewBox="0 0 1 1"></svg></figure>'  # a figure to touch is compared
    assert re.sub(figures["regex"], figures["replace"], page) == page


def test_no_comment_in_a_chapter_is_left_to_do():
    for path in PAGES:
        for cell in code_cells(read(path)):
            plain = rules.plain_python(text_of(cell["source"]))
            assert isinstance(ast.parse(plain), ast.Module)
            assert not re.search(r"\b(TODO|FIXME)\b", plain), path.name
