"""The reference of the package: every module has its place, and a docstring names only what there is."""

import ast
import html
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from api_reference import NOWHERE, PAGES, link_sources, look_up, modules, names_for_types
from bs4 import BeautifulSoup
from rules import ROOT

from lora_tutorial import LoraConfig, LoraLinear, show_source
from lora_tutorial.lora import inject

FOLDERS = sorted(path.parent.name for path in (ROOT / "lora_tutorial").glob("*/__init__.py"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf8"))["sphinx"]["config"]


@pytest.fixture(scope="module")
def small_book(tmp_path_factory):
    """Build one page about one module, with the book's own settings; gives back a function of the source."""
    folder = tmp_path_factory.mktemp("small")
    kept = ("default_role", "napoleon_google_docstring", "napoleon_use_ivar", "autodoc_typehints_format")
    settings = {name: CONFIG[name] for name in kept}
    extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_reference"]
    (folder / "conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(folder)!r}, {str(ROOT / 'tools')!r}]\n"
        f"extensions = {extensions}\nglobals().update({settings})\n"
    )
    (folder / "index.rst").write_text("Title\n=====\n\n.. automodule:: described\n   :members:\n")

    def build(source):
        (folder / "described.py").write_text(source)
        command = [sys.executable, "-m", "sphinx", "-E", "-W", "-n", "--keep-going", folder, folder / "out"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        return made.returncode, made.stderr, (folder / "out" / "index.html").read_text()

    return build


GOOD = '''
from __future__ import annotations
from typing import TYPE_CHECKING
import torch
if TYPE_CHECKING:
    from collections.abc import Mapping

class Thing:
    """One."""

    @property
    def size(self) -> int:
        """Outputs of the head: a count."""

def use(thing: Thing, rows: Mapping[str, torch.Tensor], *, scale: float = 1.0) -> torch.nn.Module:
    """Use a `Thing` and its `Thing.size`, see `torch.nn.Linear`, `ValueError` and `LoraConfig`.

    Parameters
    ----------
    thing : class, function or `Thing`
        What.

    Raises
    ------
    ValueError, KeyError
        Never.
    """
'''


@pytest.mark.slow
def test_a_docstring_that_names_what_is_not_there_stops_the_build(small_book):
    code, said, page = small_book(GOOD)
    assert (code, said) == (0, "")
    assert 'href="#described.Thing"' in page
    assert "Outputs of the head: a count." in page
    for right, wrong in [
        ("see `torch.nn.Linear`", "see `torch.nn.Linea`"),
        ("`Thing.size`", "`Thing.sizes`"),
    ]:
        code, said, _ = small_book(GOOD.replace(right, wrong))
        assert code != 0
        assert f"reference target not found: {wrong.split('`')[1]}" in said


def test_a_name_means_what_it_means_where_it_stands():
    name = inject.__name__
    assert look_up("LoraLinear", name) is LoraLinear
    assert look_up("LoraLinear.from_linear", name) == LoraLinear.from_linear
    assert look_up("from_linear", "lora_tutorial.lora.layers", "LoraLinear") == LoraLinear.from_linear
    assert look_up("save_adapter", name).__name__ == "save_adapter"  # a public name
    assert look_up("torch.optim.optimizer.Optimizer", name).__name__ == "Optimizer"
    assert look_up("LoraLiner", name) is NOWHERE
    assert look_up("torch.nowhere.Thing", name) is NOWHERE
    assert names_for_types("lora_tutorial.explorables.frame", "HTML") == {"IPython.display"}


def named_in_docstrings(module):
    """The names between single backticks in a module's docstrings, each with the class it stands in."""
    path = (ROOT / module.replace(".", "/")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf8"))
    holders = {
        child: node.name for node in tree.body if isinstance(node, ast.ClassDef) for child in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            holder = node.name if isinstance(node, ast.ClassDef) else holders.get(node)
            for name in re.findall(r"(?<![`:\w])`([^`\n]+)`(?![`_])", ast.get_docstring(node) or ""):
                yield name, holder


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_name_what_there_is(folder):
    wrong = [
        f"{module}: {name}"
        for module in modules(folder)
        for name, holder in named_in_docstrings(module)
        if look_up(name, module, holder) is NOWHERE
    ]
    assert wrong == []


def test_every_folder_of_the_package_has_its_page():
    assert sorted(path.stem for path in (ROOT / PAGES).glob("*.md")) == FOLDERS


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_is_on_its_page_with_what_is_public(html_folder, folder):
    page = BeautifulSoup((html_folder / PAGES / f"{folder}.html").read_text(encoding="utf8"), "html.parser")
    ids = {tag["id"] for tag in page.find_all(id=True)}
    assert {f"module-{name}" for name in modules(folder)} <= ids


@pytest.mark.slow
def test_public_names_have_an_entry(html_folder):
    stub = (ROOT / "lora_tutorial" / "__init__.pyi").read_text()
    text = "".join((html_folder / PAGES / f"{folder}.html").read_text() for folder in FOLDERS)
    homes = [line.split()[1:4:2] for line in stub.splitlines() if line.startswith("from .")]
    for home, name in homes:
        if (
            name[0].islower() or name[:2].istitle()
        ):  # functions and classes; a table may have no words of its own
            assert (
                f'id="lora_tutorial{home}.{name}"' in text
                or f'id="module-lora_tutorial{home}.{name}"' in text
            )


def test_shown_source_says_its_full_name_in_html_alone():
    shown = show_source(inject.inject_lora, docstring=False)
    name = '<code class="api-name">lora_tutorial.lora.inject.inject_lora</code>'
    assert name in shown._repr_html_()
    assert "API" not in repr(shown)
    assert show_source(inject).name == "lora_tutorial.lora.inject"
    assert show_source(LoraConfig.scaling.fget).name == "lora_tutorial.lora.config.LoraConfig.scaling"
    assert show_source(subprocess.run).name == ""


def test_a_page_links_the_source_it_shows_or_the_build_says_so(caplog):
    entry = SimpleNamespace(docname="book/api/lora", node_id="lora_tutorial.lora.inject.inject_lora")
    entries = {entry.node_id: entry}
    builder = SimpleNamespace(get_relative_uri=lambda page, target: f"{page} to {target}")
    env = SimpleNamespace(get_domain=lambda name: SimpleNamespace(objects=entries))
    app = SimpleNamespace(builder=builder, env=env)
    context = {"body": show_source(inject.inject_lora)._repr_html_()}
    link_sources(app, "book/05", "", context, None)
    address = "book/05 to book/api/lora#lora_tutorial.lora.inject.inject_lora"
    assert f'href="{address}"><code class="api-name">{entry.node_id}</code></a>' in context["body"]
    assert caplog.text == ""
    text = re.sub("<[^>]*>", "", context["body"].partition("<pre>")[2].partition("</pre>")[0])
    assert html.unescape(text).rstrip("\n") == repr(show_source(inject.inject_lora))
    indents = re.findall(r'class="source-line" style="--indent: (\d+)"', context["body"])
    lines = repr(show_source(inject.inject_lora)).splitlines()
    assert [int(n) for n in indents] == [len(line) - len(line.lstrip()) for line in lines]
    entries.clear()
    context = {"body": show_source(inject.inject_lora)._repr_html_()}
    link_sources(app, "book/05", "", context, None)
    assert "<a " not in context["body"]
    assert "which the reference does not have" in caplog.text
