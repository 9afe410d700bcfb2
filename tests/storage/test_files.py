"""Files and folders that are whole or absent, and the lock that one process holds on a folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_tutorial.storage import files


def hold(folder):
    """A process that holds a folder until its input ends."""
    script = (
        "import sys\nfrom lora_tutorial.storage.files import folder_lock\n"
        "with folder_lock(sys.argv[1], 'the run'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_block_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "mine"
    with files.folder_lock(folder, "the run"):
        assert not folder.exists()
        with (
            pytest.raises(files.FolderInUseError, match=r"Another process is working on the run in .*mine;"),
            files.folder_lock(folder, "the run"),
        ):
            pytest.fail("held twice")
        with files.folder_lock(folder.with_name("other")):
            pass
    with files.folder_lock(folder):
        pass
    assert list(folder.parent.iterdir()) == []


def test_an_error_in_the_block_lets_the_folder_go(tmp_path):
    with pytest.raises(KeyError), files.folder_lock(tmp_path / "mine"):
        raise KeyError
    with files.folder_lock(tmp_path / "mine"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_another_process_is_refused_until_the_holder_is_gone_by_kill_9_too(tmp_path, monkeypatch):
    process = hold(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(files.FolderInUseError), files.folder_lock("mine"):
        pytest.fail("held by two processes")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with files.folder_lock("mine"):
        assert files.lock_file(tmp_path / "mine").exists()
    assert list(tmp_path.iterdir()) == []
