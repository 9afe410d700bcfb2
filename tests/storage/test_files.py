"""Files and folders that are whole or absent, and the lock that one process holds on a folder."""

import contextlib
import hashlib
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
    folder = tmp_path / "new" / "runs" / "mine"
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


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_one_holder_where_the_lock_file_is_removed_between_opening_and_locking_it(tmp_path, monkeypatch):
    import fcntl

    folder, lock = tmp_path / "mine", fcntl.flock

    def after_the_holder_has_ended(*arguments):
        monkeypatch.undo()
        holder.close()
        assert list(tmp_path.iterdir()) == []
        lock(*arguments)

    with contextlib.ExitStack() as holder:
        holder.enter_context(files.folder_lock(folder))
        monkeypatch.setattr(fcntl, "flock", after_the_holder_has_ended)
        with files.folder_lock(folder):
            assert fcntl.flock is lock and files.lock_file(folder).exists()
            with pytest.raises(files.FolderInUseError), files.folder_lock(folder):
                pytest.fail("held twice")


def test_a_file_is_whole_or_absent_readable_to_others_and_its_folder_is_made(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "record.json"
    assert files.atomic_write_json(path, {"é": [1.5]}) == path
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1.5\n  ]\n}\n'
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o644
    assert files.atomic_write_bytes(path, b"second").read_bytes() == b"second"
    with pytest.raises(ValueError, match="JSON"):
        files.atomic_write_json(path, float("nan"))

    def fails(*arguments):
        raise OSError("full")

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, fails)
            with pytest.raises(OSError, match="full"):
                files.atomic_write_bytes(path, b"third")
        assert path.read_bytes() == b"second"
    assert [found.name for found in path.parent.iterdir()] == ["record.json"]


def test_every_file_and_folder_is_on_the_disk_before_it_is_in_place(tmp_path, monkeypatch):
    events = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (events.append("sync"), sync(descriptor)))
    monkeypatch.setattr(files.os, "replace", lambda *names: (events.append("rename"), rename(*names)))
    after = [] if sys.platform == "win32" else ["sync"]  # a folder cannot be opened there
    files.atomic_write_bytes(tmp_path / "file", b"1")
    assert events == ["sync", "rename", *after]
    events.clear()
    with files.atomic_folder(tmp_path / "folder") as new:
        (new / "inner").mkdir()
        (new / "inner" / "one").write_text("1")
        (new / "two").write_text("2")
    assert events == ["sync", "sync", *after, "rename", *after]


def test_a_folder_is_whole_or_absent_and_gives_way_only_if_it_may(tmp_path):
    path = tmp_path / "new" / "runs" / "run"
    for content in ("first", "second"):
        with files.atomic_folder(path) as folder:
            (folder / content).write_text(content)
            assert not (path / content).exists()
        assert [found.name for found in path.iterdir()] == [content]
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(FileNotFoundError), files.atomic_folder(path) as folder:
        (folder / "third").write_bytes((folder / "absent").read_bytes())
    (tmp_path / "file").write_text("")
    for taken, replace in ((path, False), (tmp_path / "file", True), (tmp_path / "file", False)):
        with (
            pytest.raises(FileExistsError, match="choose another folder"),
            files.atomic_folder(taken, replace),
        ):
            pytest.fail("the block ran")
    with files.atomic_folder(tmp_path / "fresh", replace=False):
        pass
    assert (path / "second").read_text() == "second"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "fresh", "new"]
    assert [found.name for found in path.parent.iterdir()] == ["run"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path, rename, calls = tmp_path / "run", os.replace, []
    with files.atomic_folder(path) as folder:
        (folder / "old").write_text("")

    def second_fails(*names):
        calls.append(names)
        if len(calls) == 2:
            raise PermissionError("in use")
        rename(*names)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(PermissionError, match="in use"), files.atomic_folder(path) as folder:
        (folder / "new").write_text("")
    assert [found.name for found in path.iterdir()] == ["old"]
    assert [found.name for found in tmp_path.iterdir()] == ["run"]


def test_a_digest_is_that_of_all_bytes(tmp_path):
    data = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_what_comes_with_the_project_is_found_in_the_checkout_or_in_the_package(tmp_path, monkeypatch):
    root = Path(files.__file__).parents[2]
    assert {files.bundled_folder(name).relative_to(root).as_posix() for name in files.FOLDERS} == set(
        files.FOLDERS.values()
    )
    monkeypatch.setattr(files, "__file__", str(tmp_path / "package" / "storage" / "files.py"))
    (tmp_path / "package" / "texts").mkdir(parents=True)
    assert files.bundled_folder("texts") == tmp_path / "package" / "texts"
    assert files.bundled_folder("records") == tmp_path / "benchmarks" / "results"
