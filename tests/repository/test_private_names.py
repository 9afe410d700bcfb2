"""Tests use what the package offers: no private name of it, and no change to where modules are found."""

import ast
from functools import cache

import pytest
from rules import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))
PACKAGE = "lora_tutorial"
#: What is still to be freed of it: a download is interrupted between two of its steps.
KNOWN = {"tests/storage/test_assets.py": "download extract reason"}


def is_private(name):
    return name.startswith("_") and not name.endswith("_")  # not __init__, nor the notebook's _repr_html_


def defined_in(tree):
    """The private names that a module defines: functions, classes, tables, attributes of objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@cache
def private_names():
    trees = (ast.parse(path.read_text(encoding="utf8")) for path in (ROOT / PACKAGE).rglob("*.py"))
    return {name for tree in trees for name in defined_in(tree) if is_private(name)}


def reached_for(text, names):
    """The private names of the package that a test's source imports, reads, calls or replaces."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and node.attr in names:
            of_the_test = isinstance(node.value, ast.Name) and node.value.id == "self"
            found |= set() if of_the_test else {node.attr}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isascii():
            last = node.value.rpartition(".")[2]  # monkeypatch.setattr(module, "_name", ...)
            found |= {last} if last in names else set()
    return sorted(found)


def touches_the_path(text):
    """Whether a test's source changes where Python finds modules."""
    tree = ast.parse(text)
    return any(
        (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path")
        or (isinstance(node, ast.Attribute) and node.attr == "syspath_prepend")
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_reach_for_no_private_name(path):
    known = [f"_{name}" for name in KNOWN.get(path.relative_to(ROOT).as_posix(), "").split()]
    assert reached_for(path.read_text(encoding="utf8"), private_names()) == known


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_leave_the_path_alone(path):
    assert not touches_the_path(path.read_text(encoding="utf8"))


def test_each_way_to_a_private_name_is_seen():
    names = {"_secret", "_hidden"}
    for source in [
        "from lora_tutorial.lora.config import _secret",
        "from lora_tutorial.lora import config\nconfig._secret(1)",
        "assert model._hidden == {}",
        "monkeypatch.setattr(config, '_secret', None)",
        "monkeypatch.setattr('lora_tutorial.lora.config._secret', None)",
    ]:
        assert len(reached_for(source, names)) == 1, source
    assert reached_for("self._hidden = config.check(model.state)", names) == []
    assert touches_the_path("import sys\nsys.path.insert(0, '.')")
    assert touches_the_path("monkeypatch.syspath_prepend('.')")
    assert not touches_the_path("import sys\nsys.argv")
