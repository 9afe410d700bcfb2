"""The pages of the book as its table of contents lists them, and how a program is run on them."""

import subprocess
import sys
from pathlib import Path

import yaml
from rules import ROOT


def run(*command, **kwargs):
    """Run a program of the tests' own environment; both streams come back as one text."""
    kwargs = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | kwargs
    program = Path(sys.executable).parent / command[0]
    return subprocess.run([program, *command[1:]], check=False, **kwargs)


def listed_pages():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def build(source, out):
    """Build the book at `source` into a folder under `out`; a warning is an error."""
    flags = ["-W", "-n", "--keep-going", "--path-output", out]
    return run("jupyter-book", "build", source, *flags, cwd=source)
