"""Files and folders that are whole or absent, a lock on a folder, and what comes with the project."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class FolderInUseError(RuntimeError):
    """Another process is writing into the folder."""


def fsync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which a colleague could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return path


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as indented JSON; NaN and infinity, which JSON does not have, raise ``ValueError``."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return atomic_write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], replace: bool = True) -> Iterator[Path]:
    """Fill a new folder beside ``path`` and move it into place when the block ends without an error.

    Parameters
    ----------
    path
        The folder to make.
    replace
        Whether an existing folder gives way to the new one. With ``False`` it raises at once.

    Raises
    ------
    FileExistsError
        If ``path`` is a file, or exists and ``replace`` is ``False``.
    """
    path = Path(path)
    if path.exists() and (not replace or not path.is_dir()):
        raise FileExistsError(f"{path} exists already; choose another folder or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        fsync_folder(temporary)
        _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(path.parent)


def _swap_in(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; an old folder is moved aside first and comes back if that fails."""
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, old)  # an empty target folder may be replaced
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], what: str = "the folder") -> Iterator[None]:
    """Hold a folder for this process alone while the block runs; a second one is refused, not kept waiting.

    The operating system drops the lock with the process, however that ends. The folder need not exist yet
    and may be replaced in the meantime: the lock is the file ``.<name>.lock`` beside it.

    Parameters
    ----------
    folder
        The folder to hold.
    what
        What is being done there, for the message: ``"the run"``.

    Raises
    ------
    FolderInUseError
        If another process, or another block of this one, holds the folder.
    """
    from filelock import FileLock, Timeout  # here, so that the records of a chapter need no more than torch

    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = lock_file(folder)
    lock = FileLock(file)
    for attempt in range(3):
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            # filelock takes no file that its last holder has removed since it was opened: try the next one
            if file.exists() or attempt == 2:
                raise FolderInUseError(
                    f"Another process is working on {what} in {folder}; wait until it has ended, or choose "
                    "another folder."
                ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows: not while it is open
            file.unlink()
        lock.release()


def lock_file(folder: Path) -> Path:
    """The file beside ``folder`` that stands for the right to write it."""
    return folder.parent / f".{folder.name}.lock"


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


#: Bytes that a committed file, or an adapter with its card, may have; and a language model's adapter.
LIMIT, LM_LIMIT = 1_000_000, 5_000_000
#: Name of the installed package's copy (``package-dir`` in pyproject.toml) to the folder of the repository.
FOLDERS = {"records": "benchmarks/results", "shipped": "benchmarks/adapters", "texts": "book/data"}


def bundled_folder(name: str) -> Path:
    """The folder ``name`` of `FOLDERS`: the installed package's copy, or the repository's own.

    A checkout has no copy, so there the repository's own is read.
    """
    here = Path(__file__).parent.parent
    copy = here / name
    return copy if copy.is_dir() else here.parent / FOLDERS[name]
