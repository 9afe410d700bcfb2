"""What `make colab` is made of; the run itself takes minutes and is asked for by name."""

import importlib.metadata

import colab
import nbformat
import pytest
from packaging.version import Version
from rules import TEMPLATE, chapters


def test_floors_are_read_and_lie_below_the_pins():
    floors = colab.floors()
    assert {"torch", "transformers", "peft", "matplotlib"} <= set(floors)
    for name, version in floors.items():
        assert Version(version) <= Version(importlib.metadata.version(name)), name


def test_floors_of_a_file(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[project]\ndependencies = ["a-b>=1.2", "c", "d>=3,<4"]\n'
        '[project.optional-dependencies]\nchapters = ["e.f>=0.4.3"]\nother = ["g>=9"]\n'
    )
    assert colab.floors(path) == {"a-b": "1.2", "d": "3", "e.f": "0.4.3"}


@pytest.mark.parametrize("path", [*chapters(), TEMPLATE], ids=lambda path: path.stem)
def test_every_chapter_can_be_pointed_at_a_wheel(path):
    before, after = (nbformat.read(path, as_version=4) for _ in range(2))
    colab.pointed_at(after, "lora-tutorial[chapters] @ file:///x.whl")
    changed = [(a.source, b.source) for a, b in zip(before.cells, after.cells, strict=True) if a != b]
    ((old, new),) = changed
    assert new == old.replace(colab.ADDRESS, '"lora-tutorial[chapters] @ file:///x.whl"')


def test_a_chapter_without_the_first_cell_is_refused():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import torch")])
    with pytest.raises(ValueError, match="first code cell"):
        colab.pointed_at(notebook, "x")


def test_a_floor_may_leave_out_zeros():
    assert colab._same("1.26.0", "1.26") and colab._same("5.0.0", "5.0") and colab._same("10", "10")
    assert not colab._same("1.26.1", "1.26") and not colab._same("1.2", "1.20")
