"""The import rules of ARCHITECTURE.md, module sizes, and what an import costs."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_tutorial"
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}


def read_table(text):
    """The rows of ARCHITECTURE.md's table: group -> (modules, groups it may use, other packages)."""
    rows = re.findall(r"^\| (\w+) \| ((?:`\w+` ?)+)\| ([\w, ]*)\| ([\w, ]*)\|$", text, flags=re.MULTILINE)
    words = re.compile(r"\w+")
    return {row[0]: tuple(set(words.findall(cell)) for cell in row[1:]) for row in rows}


TABLE = read_table((ROOT / "ARCHITECTURE.md").read_text())
GROUP = {module: group for group, (modules, _, _) in TABLE.items() for module in modules}


def imports(source):
    """The modules of the package and the other packages that a source imports, at any depth of its code.

    Imports for type checkers only are left out: they never run.
    """
    own, other = set(), set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes = node.orelse
        else:
            nodes = ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"lora_tutorial.{node.module or ''}".rstrip(".") if node.level else node.module
            bare = module == "lora_tutorial"
            names = [f"{module}.{alias.name}" for alias in node.names] if bare else [module]
        for top, _, rest in (name.partition(".") for name in names):
            if top == "lora_tutorial":
                own.add(rest.split(".")[0])
            elif top not in sys.stdlib_module_names:
                other.add(top)
        for child in nodes:
            visit(child)

    visit(ast.parse(source))
    return own & set(MODULES), other


def broken_rules(module, source):
    """What a module imports and may not."""
    if module not in GROUP:
        return ["it has no place in ARCHITECTURE.md's table"]
    group = GROUP[module]
    _, uses, packages = TABLE[group]
    own, other = imports(source)
    reachable = {name for name in own if GROUP.get(name) in {group, *uses}}
    return sorted(own - reachable) + sorted(other - packages)


def test_the_table_names_every_module_once():
    named = [module for modules, _, _ in TABLE.values() for module in modules]
    assert sorted(named) == sorted(set(named))
    assert set(MODULES) - set(named) == set(), "a new module needs a place in ARCHITECTURE.md's table"


def test_groups_are_ordered():
    order = list(TABLE)
    for place, (_, uses, _) in enumerate(TABLE.values()):
        assert uses <= set(order[:place])


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_row_allows(module):
    assert broken_rules(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("layers", "from transformers import RobertaModel", ["transformers"]),
        ("layers", "def f():\n    import transformers.models", ["transformers"]),
        ("layers", "from lora_tutorial.wrapper import LoraWrapperRoberta", ["wrapper"]),
        ("layers", "from .wrapper import LoraWrapperRoberta", ["wrapper"]),
        ("layers", "from lora_tutorial import wrapper", ["wrapper"]),
        ("config", "import torch", ["torch"]),
        ("tasks", "import lora_tutorial.encoders", ["encoders"]),
        ("training", "from lora_tutorial.tasks import load_task", ["tasks"]),
        ("layers", "import torch.nn, math\nfrom lora_tutorial.config import LoraConfig", []),
        ("layers", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers", []),
    ],
)
def test_a_broken_rule_is_found(module, source, found):
    assert broken_rules(module, source) == found


def find_cycle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_module_imports_itself_by_a_detour():
    assert find_cycle({"a": {"b"}, "b": {"a"}}) is not None
    assert find_cycle({module: imports(path.read_text())[0] for module, path in MODULES.items()}) is None


@pytest.mark.parametrize("path", sorted([*PACKAGE.glob("*.py"), *(ROOT / "tools").glob("*.py")]), ids=str)
def test_no_module_is_longer_than_250_lines(path):
    assert len(path.read_text().splitlines()) <= 250


def loaded_by(statement):
    """The top-level packages in a fresh Python after `statement`."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {
    "transformers",
    "datasets",
    "evaluate",
    "sklearn",
    "scipy",
    "matplotlib",
    "accelerate",
    "peft",
    "pandas",
}


def test_importing_the_package_is_cheap():
    assert loaded_by("import lora_tutorial") & (HEAVY | {"torch"}) == set()
    assert loaded_by("from lora_tutorial import LoraLinear, inject_lora, merge_lora") & HEAVY == set()
    assert loaded_by("import scipy") & HEAVY == {"scipy"}


def test_every_public_name_loads():
    import lora_tutorial

    for name in lora_tutorial.__all__:
        assert getattr(lora_tutorial, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lora_linear'"):
        _ = lora_tutorial.lora_linear
