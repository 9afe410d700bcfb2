"""Run a chapter as a stranger's machine would: no checkout, a wheel, each library at its floor.

`python tools/colab.py [CHAPTER]`, or `make colab CHAPTER=05_lora_linear`. It takes some minutes and is no
part of `make test`. The environment has torch and numpy already, as Colab has: torch is linked from the
environment that runs this file, so that nothing large is downloaded. The chapter's first cell installs the
rest. Only the address in it is changed, to the wheel. At the end torch and numpy must be as they were.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from refresh import find
from rules import ROOT

ADDRESS = '"lora-tutorial[chapters] @ git+{REPOSITORY}"'
LINKED = "torch"
PRESENT = ("numpy", "ipykernel")
REPORT = """
import importlib.metadata as m, json, lora_tutorial
names = {names}
print(json.dumps([{{n: m.version(n) for n in names}}, lora_tutorial.__file__]))
"""


def floors(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """The lowest version that each requirement of the package and its chapters names, by distribution."""
    project = tomllib.loads(pyproject.read_text(encoding="utf8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["chapters"]]
    found = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in wanted)
    return {match[1]: match[2] for match in found if match}


def pointed_at(notebook: nbformat.NotebookNode, package: str) -> nbformat.NotebookNode:
    """The chapter with the address in its first code cell changed to `package`.

    Raises
    ------
    ValueError
        If the first code cell has no such line.
    """
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if cell.source.count(ADDRESS) != 1:
        raise ValueError(f"the first code cell does not name {ADDRESS}")
    cell.source = cell.source.replace(ADDRESS, f'"{package}"')
    return notebook


def link_torch(target: Path) -> None:
    """Put links to this environment's torch into the folder of packages `target`."""
    here = Path(sysconfig.get_paths()["purelib"])
    tops = {str(file).split("/")[0] for file in importlib.metadata.files(LINKED) or () if "/" in str(file)}
    for top in sorted(tops - {"..", "."}):
        (target / top).symlink_to(here / top)


def run_chapter(chapter: Path, folder: Path) -> dict[str, str]:
    """Make the environment in `folder`, run the chapter there, and give back the versions it ran with.

    Raises
    ------
    RuntimeError
        If torch or numpy were changed, a library is not at its floor, or the package is not the wheel's.
    """
    lowest = {name: version for name, version in floors().items() if name != LINKED}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    settings = (
        folder / "build.cfg"
    )  # else a build folder in the checkout would lend its old files to the wheel
    settings.write_text(f"[build]\nbuild_base = {folder / 'build'}\n")
    building = os.environ | {"DIST_EXTRA_CONFIG": str(settings)}
    subprocess.run([*command, "--wheel-dir", folder / "dist", ROOT], check=True, env=building)
    (wheel,) = (folder / "dist").glob("*.whl")

    venv.create(folder / "venv", with_pip=True, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    link_torch(packages)
    constraints = folder / "floors.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in lowest.items()))
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    environment |= {"PIP_CONSTRAINT": str(constraints), "HF_HUB_OFFLINE": "1"}
    for name in ("LORA_TUTORIAL_DATA", "PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *PRESENT], check=True, env=environment)

    kernel = folder / "jupyter" / "kernels" / "stranger"
    kernel.mkdir(parents=True)
    launch = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": launch, "display_name": "x", "language": "python"})
    )
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    notebook = pointed_at(nbformat.read(chapter, as_version=4), f"lora-tutorial[chapters] @ {wheel.as_uri()}")
    work = folder / "content"
    work.mkdir()
    resources = {"metadata": {"path": str(work)}}
    client = NotebookClient(notebook, timeout=3600, kernel_name="stranger", resources=resources)
    client.execute(env=environment)

    names = [LINKED, *lowest]
    report: list[str | Path] = [python, "-c", REPORT.format(names=names)]
    out = subprocess.run(report, check=True, env=environment, cwd=work, capture_output=True, text=True).stdout
    versions, where = json.loads(out)
    wanted = lowest | {LINKED: importlib.metadata.version(LINKED)}
    moved = {name: version for name, version in versions.items() if not _same(version, wanted[name])}
    if moved or not Path(where).is_relative_to(packages):
        raise RuntimeError(f"not as wanted: {moved}, and lora_tutorial is {where}")
    return versions


def _same(version: str, floor: str) -> bool:
    """Whether a version is the floor's, which may leave out zeros at its end: 1.26.0 is 1.26."""
    return re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", floor)


if __name__ == "__main__":
    path = find(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else "05_lora_linear")
    with tempfile.TemporaryDirectory() as place:
        ran = run_chapter(path, Path(place))
    print(
        f"{path.name} ran from the wheel with",
        ", ".join(f"{name} {version}" for name, version in ran.items()),
    )
