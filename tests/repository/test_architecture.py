"""The rules of ARCHITECTURE.md: where modules are, who imports whom, how long files and functions get."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lora_tutorial"
FILES = {
    f"{path.parent.name}.{path.stem}": path
    for path in sorted(PACKAGE.glob("*/*.py"))
    if path.stem != "__init__" and path.parent.name not in ("records", "shipped", "texts")
}
MOST_NAMES, MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 8, 450, 60, 8


def read_table(text):
    """The rows of ARCHITECTURE.md's table: folder -> (modules, folders it may use, other packages)."""
    rows = re.findall(r"^\| (\w+) \| ((?:`\w+` ?)+)\| ([\w, ]*)\| ([\w, ]*)\|$", text, flags=re.MULTILINE)
    words = re.compile(r"\w+")
    return {row[0]: tuple(set(words.findall(cell)) for cell in row[1:]) for row in rows}


TABLE = read_table((ROOT / "ARCHITECTURE.md").read_text())


def imports(source, name=""):
    """Modules ``folder.module`` and other packages that a source imports, at any depth, for types too."""
    own, other = set(), set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["lora_tutorial", *name.split(".")][: -node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            # from a folder, each name is a module; from a module, it is something inside
            if module.count(".") < 2 and module.partition(".")[0] == "lora_tutorial":
                names = [f"{module}.{alias.name}" for alias in node.names]
            else:
                names = [module]
        for full in names:
            top, _, rest = full.partition(".")
            if top == "lora_tutorial":
                own.add(".".join(rest.split(".")[:2]))
            elif top not in sys.stdlib_module_names:
                other.add(top)
    return own, other


def broken_rules(name, source):
    """What a module imports and may not: other folders, other packages, or the package's front door."""
    folder = name.partition(".")[0]
    if folder not in TABLE:
        return [f"{folder} has no row in ARCHITECTURE.md's table"]
    _, uses, packages = TABLE[folder]
    own, other = imports(source, name)
    allowed = {folder, *uses}
    return sorted(o for o in own if o.partition(".")[0] not in allowed) + sorted(other - packages)


def test_the_table_names_every_module_where_it_is():
    named = {f"{folder}.{module}" for folder, (modules, _, _) in TABLE.items() for module in modules}
    assert named == set(FILES)


def test_folders_are_ordered_and_few_names_are_in_each():
    order = list(TABLE)
    for place, (modules, uses, _) in enumerate(TABLE.values()):
        assert uses <= set(order[:place])
        assert len(modules) <= MOST_NAMES
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_what_its_row_allows(name):
    assert broken_rules(name, FILES[name].read_text()) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("lora.layers", "from transformers import RobertaModel", ["transformers"]),
        ("lora.layers", "def f():\n    import transformers.models", ["transformers"]),
        ("lora.layers", "from lora_tutorial.models.roberta import LoraWrapperRoberta", ["models.roberta"]),
        ("lora.layers", "from ..models.roberta import LoraWrapperRoberta", ["models.roberta"]),
        ("lora.layers", "from lora_tutorial.models import roberta", ["models.roberta"]),
        ("lora.layers", "from lora_tutorial import LoraWrapperRoberta", ["LoraWrapperRoberta"]),
        ("data.tasks", "import lora_tutorial.models.encoders", ["models.encoders"]),
        ("training.trainer", "from lora_tutorial.data.sources import load_task", ["data.sources"]),
        (
            "lora.config",
            "if TYPE_CHECKING:\n    from lora_tutorial.data.tasks import Task",
            ["data.tasks"],
        ),
        ("lora.layers", "import torch.nn, math\nfrom lora_tutorial.lora.config import LoraConfig", []),
        ("lora.layers", "from .config import LoraConfig", []),
        ("loft.layers", "import math", ["loft has no row in ARCHITECTURE.md's table"]),
    ],
)
def test_a_broken_rule_is_found(name, source, found):
    assert broken_rules(name, source) == found


def find_cycle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_module_imports_itself_by_a_detour_not_even_for_types():
    assert find_cycle({"a": {"b"}, "b": {"a"}}) is not None
    assert find_cycle({name: imports(path.read_text(), name)[0] for name, path in FILES.items()}) is None


def too_long(source, cli=False):
    """What is above the limits of size in a source."""
    found = [] if len(source.splitlines()) <= MOST_LINES else [f"{len(source.splitlines())} lines"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            if lines > MOST_FUNCTION_LINES:
                found.append(f"{node.name}: {lines} lines")
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in given if a.arg not in ("self", "cls", "ctx")])
            if count > MOST_PARAMETERS and not cli and node.name != "forward":
                found.append(f"{node.name}: {count} parameters")
    return found


@pytest.mark.parametrize("name", FILES)
def test_files_functions_and_signatures_are_short(name):
    assert too_long(FILES[name].read_text(), cli=name.startswith("cli.")) == []


def test_what_is_too_long_is_found():
    assert too_long("x = 1\n" * 451) == ["451 lines"]
    assert too_long("def f():\n" + "    x = 1\n" * 60) == ["f: 61 lines"]
    assert too_long("def f(a, b, c, d, e, f, g, h, i): ...") == ["f: 9 parameters"]
    assert too_long("def f(a, b, c, d, e, f, g, h, i): ...", cli=True) == []
    assert too_long('def f():\n    """One.\n' + "    x\n" * 80 + '    """\n') == []


def test_every_public_name_is_where_the_stub_says():
    import lora_tutorial

    assert len(lora_tutorial.__all__) > 100
    for name in lora_tutorial.__all__:
        assert getattr(lora_tutorial, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lora_linear'"):
        _ = lora_tutorial.lora_linear
