"""A Sphinx extension: the reference of the package, made from its docstrings and held to them.

A page ``book/api/FOLDER.md`` is followed by every module of that folder. A name between single backticks in
a docstring is looked up as Python would, from the module it stands in, and becomes a link. What no longer
exists is a warning, which stops the build. No other project's inventory is asked for: a name of torch is
looked up in torch, and stays text. Under the source that a chapter shows stands its full name; here it
becomes a link. A line of such a source that is wider than the page goes on below, further in than it began.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import logging as stdlib_logging
import pkgutil
import re
from typing import Any

from docutils import nodes
from sphinx.util import logging

PACKAGE = "lora_tutorial"
PAGES = "book/api/"
MODULE = """
## {title}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :show-inheritance:
   :member-order: bysource
```
"""
#: In a docstring's list of types, words that describe instead of naming: "class, function or module".
WORDS = re.compile(r"[^A-Z._]*|.*[^\w.].*|\d.*")
SHOWN = re.compile(r'<code class="api-name">([\w.]+)</code>')
SHOWN_LINES = re.compile(
    r'(<div class="[^"]*shown-source[^"]*">.*?<pre>(?:<span></span>)?)(.*?)(</pre>)', re.DOTALL
)
NOWHERE = object()

logger = logging.getLogger(__name__)
# It remarks on a kernel that this machine lacks, when it is imported; nothing of ours is wrong then.
stdlib_logging.getLogger("bitsandbytes").setLevel(stdlib_logging.ERROR)


def modules(folder: str) -> list[str]:
    """The full names of the modules in a folder of the package."""
    package = importlib.import_module(f"{PACKAGE}.{folder}")
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


def add_modules(app: Any, docname: str, source: list[str]) -> None:
    """Put the modules of a folder at the end of its page."""
    if docname.startswith(PAGES):
        names = modules(docname.removeprefix(PAGES))
        source[0] += "".join(MODULE.format(title=name.rpartition(".")[2], name=name) for name in names)


def keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the words before a colon in an attribute's first line as its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment, in which there is no colon


def look_up(name: str, module: str, holder: str | None = None) -> Any:
    """What ``name`` means in a docstring of ``module``, inside the class ``holder`` if there is one.

    Returns
    -------
    object
        The thing itself, or `NOWHERE`.
    """
    scopes: list[Any] = [importlib.import_module(PACKAGE), builtins]
    if module:
        scopes.insert(0, importlib.import_module(module))
        scopes[1:1] = [importlib.import_module(source) for source in sorted(names_for_types(module, name))]
    if holder:
        scopes.insert(0, _inside(scopes[0], holder))
    for scope in scopes:
        if (found := _inside(scope, name)) is not NOWHERE:
            return found
    try:  # the name may begin with a package: torch.nn.Module
        return pkgutil.resolve_name(name) if "." in name else NOWHERE
    except (ImportError, AttributeError):
        return NOWHERE


def names_for_types(module: str, name: str) -> set[str]:
    """The modules from which ``module`` imports ``name`` for its annotations alone, under TYPE_CHECKING."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    first = name.partition(".")[0]
    return {node.module for node in imports if node.module and first in {alias.name for alias in node.names}}


def _inside(scope: Any, path: str) -> Any:
    """Follow the dots of ``path`` from ``scope``; a field that a class only declares is there too."""
    for part in path.split("."):
        declared = {} if scope is NOWHERE else getattr(scope, "__annotations__", {})
        if not hasattr(scope, part) and part not in declared:
            return NOWHERE
        scope = getattr(scope, part, None)
    return scope


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Answer Sphinx where no entry has exactly the name in ``node``: a link, text, or None for a warning."""
    if node.get("refdomain") != "py":
        return None
    name, wanted = node["reftarget"], node.get("reftype")
    if wanted != "obj" and WORDS.fullmatch(name) and not hasattr(builtins, name):
        return contnode
    found = look_up(name, node.get("py:module") or "", node.get("py:class"))
    if found is NOWHERE:
        return None
    entries = env.get_domain("py").objects
    path = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    for full in [path, *(key for key in entries if key.endswith(f".{name}"))]:
        if full in entries and (full == path or pkgutil.resolve_name(full) is found):
            return _link(app, env, node["refdoc"], full, contnode)
    return contnode


def _link(app: Any, env: Any, page: str, full: str, shown: Any) -> nodes.reference:
    entry = env.get_domain("py").objects[full]
    address = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
    return nodes.reference("", "", shown, internal=True, refuri=address, reftitle=full)


def link_sources(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Make links of the full names that stand under the sources a chapter shows."""
    entries = app.env.get_domain("py").objects

    def link(match: re.Match[str]) -> str:
        name = match[1]
        while name not in entries and "." in name:  # what is private stands on no page, but its module does
            name = name.rpartition(".")[0]
        if name in entries and name != PACKAGE:
            entry = entries[name]
            address = f"{app.builder.get_relative_uri(pagename, entry.docname)}#{entry.node_id}"
            return f'<a class="reference internal" href="{address}">{match[0]}</a>'
        logger.warning(
            "the source shown is of %s, which the reference does not have", match[1], location=pagename
        )
        return match[0]

    if "body" in context:
        context["body"] = SHOWN_LINES.sub(_hang_lines, SHOWN.sub(link, context["body"]))


def _hang_lines(match: re.Match[str]) -> str:
    """Each line of a source in a block of its own that knows its indent, for the style sheet to hang."""
    lines = []
    for line in match[2].splitlines(keepends=True):
        text = re.sub(r"<[^>]*>", "", line)
        indent = len(text) - len(text.lstrip(" "))
        lines.append(f'<span class="source-line" style="--indent: {indent}">{line}</span>')
    return match[1] + "".join(lines) + match[3]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when the book is built."""
    app.connect("source-read", add_modules)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon
    app.connect("missing-reference", resolve)
    app.connect("html-page-context", link_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
