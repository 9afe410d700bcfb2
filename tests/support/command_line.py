"""Run the command in this process, well or badly."""

import pytest
from typer.testing import CliRunner

from lora_tutorial.cli.main import app, main


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["lora-tutorial", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return " ".join(captured.err.split())
