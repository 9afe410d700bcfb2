"""Run the command in this process, well or badly, and the installed script in one of its own."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_tutorial.cli.main import app, main


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(monkeypatch, capsys, *arguments):
    """The sentence with which the command ends in this process."""
    return ends(monkeypatch, capsys, *arguments)[1]


def ends(monkeypatch, capsys, *arguments):
    """What the command prints in this process, and the sentence with which it ends."""
    monkeypatch.setenv("COLUMNS", "2000")  # the box breaks no path
    monkeypatch.setattr("sys.argv", ["lora-tutorial", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2, captured.err
    assert "Traceback" not in captured.err + captured.out
    return captured.out, unboxed(captured.err)


def unboxed(text):
    """What stands in a box, without the box."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "╭─╮│╰╯"), " ")).split())


def installed_script():
    """The script that pip made, beside this Python."""
    found = shutil.which("lora-tutorial", path=sysconfig.get_path("scripts"))
    assert found, "the package is not installed here"
    return found


def environment(**more):
    """No hub, no folder of data, and boxes that break no path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LORA_TUTORIAL_DATA", "LORA_TUTORIAL_DEBUG")}
    return kept | {"HF_HUB_OFFLINE": "1", "COLUMNS": "2000"} | more


def call(*arguments, cwd=None, **more):
    """The installed script, to its end."""
    command = [installed_script(), *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, timeout=300)


def contents(folder):
    """Every file and folder below, with what would change if it were written to."""
    entries = sorted(Path(folder).rglob("*"))
    return [(p, p.lstat().st_size, p.lstat().st_mtime_ns) for p in entries]
