"""A whole run, and an interrupted one, that several files of tests compare with."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from interrupted_runs import go

from lora_tutorial.training.records import load_record


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("part") / "run"
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        go(folder, tiny.Interrupted())
    assert load_record(folder / "record.json").status == "running"
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000009", "step-00000012"]
    return folder


@pytest.fixture
def part(interrupted, tmp_path):
    """A copy of a run that was interrupted in its second epoch, with checkpoints of steps 9 and 12."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))
