"""The model hub when it is there, and one quick sentence when it is not."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from lora_tutorial.storage.files import sha256_of

_TIMEOUT = 5.0  # seconds; without an early look-up the libraries retry for about twenty
# No pickled weights: everything but safetensors, JSON and vocabularies stays where it is.
_FILES = ["*.json", "*.txt", "*.jinja", "model.safetensors", "model-*.safetensors"]


class HubUnreachableError(ConnectionError):
    """The hub does not answer, or ``HF_HUB_OFFLINE`` forbids asking it."""


def require_hub(repository: str, kind: str, instead: str) -> None:
    """Ask the hub for ``repository`` once, and fail at once if it cannot be had.

    Parameters
    ----------
    repository
        Identifier on the hub, such as ``"roberta-base"``.
    kind
        ``"model"`` or ``"dataset"``.
    instead
        End of the sentence that tells a reader without the hub what to use.

    Raises
    ------
    HubUnreachableError
        If the hub does not answer within a few seconds.
    ValueError
        If the hub answers that there is no such repository, or that it is not open to this reader.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    look_up = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        look_up(repository, timeout=_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(
            f"The hub has no {kind} {repository!r} open to you; check its name, or {instead}."
        ) from error
    except Exception as error:  # the HTTP client's own classes differ between releases of the hub's library
        raise HubUnreachableError(
            f"The hub cannot be reached for the {kind} {repository!r} ({type(error).__name__}); {instead}."
        ) from error


def is_reachable() -> bool:
    """Whether the hub answers within a few seconds."""
    try:
        require_hub("roberta-base", "model", "")
    except (HubUnreachableError, ValueError):
        return False
    return True


def download(repository: str, kind: str, patterns: list[str], instead: str) -> Path:
    """Fetch files of a repository, check each against its hash, and return their folder.

    The hub's library compares sizes only. The folder's name is the revision.

    Parameters
    ----------
    repository, kind, instead
        As for ``require_hub``.
    patterns
        Which files, such as ``["*.json"]``.

    Raises
    ------
    HubUnreachableError
        Also if the download breaks off.
    ValueError
        Also if a file is not what the hub announced; it is removed, so that the next call fetches it again.
    OSError
        If there is no room for the files.
    """
    require_hub(repository, kind, instead)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, repo_type=kind, allow_patterns=patterns))
    except Exception as error:  # see require_hub
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"The disk has no room for the {kind} {repository!r}; make room, or set HF_HOME to a folder "
                "on another disk, then run this again."
            ) from error
        told = " ".join(str(error).split())
        raise HubUnreachableError(
            f"The hub did not deliver the {kind} {repository!r} whole ({told}); try again, or {instead}."
        ) from error
    for file in folder.rglob("*"):
        if file.is_file() and not _is_as_announced(file):
            file.resolve().unlink()
            file.unlink(missing_ok=True)
            raise ValueError(
                f"{file.name} of the {kind} {repository!r} has other bytes than the hub announced and was "
                f"removed; try again, or {instead}."
            )
    return folder


def upload(folder: Path, repository: str, patterns: list[str], private: bool | None = None) -> str:
    """Upload files of a folder as one commit to a model's repository, made if it does not exist.

    Parameters
    ----------
    folder, patterns
        The folder, and which of its files.
    repository
        ``"user/name"`` on the hub.
    private
        As for ``huggingface_hub.HfApi.create_repo``.

    Returns
    -------
    str
        The repository's address.

    Raises
    ------
    HubUnreachableError
        If the hub does not answer.
    ValueError
        If the hub does not take the name or the card, or does not let you write.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repository.count("/") != 1:
        raise ValueError(f"{repository!r} is no repository of yours: give 'user/name'.")
    try:
        address = HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, allow_patterns=patterns)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no name for a repository; give 'user/name'.") from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise HubUnreachableError(
                f"The hub did not take {repository!r} ({str(error).splitlines()[0]}); try again later."
            ) from error
        raise ValueError(
            f"The hub does not let you write to {repository!r}: log in with `hf auth login` and a token that "
            "may write, or choose a repository of your own."
        ) from error
    except ValueError:  # the card's head
        raise
    except Exception as error:  # see require_hub
        raise HubUnreachableError(
            f"The hub cannot be reached for {repository!r} ({type(error).__name__}); try again later."
        ) from error
    return str(address)


def _is_as_announced(file: Path) -> bool:
    """Whether a file in the hub's cache has the hash it is stored under: SHA-256, or git's for small ones."""
    stored = file.resolve().name
    if len(stored) == 64:
        return sha256_of(file) == stored
    if len(stored) == 40:
        data = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == stored
    return True  # a file system without links: its hash is not known here


def checkpoint_folder(repository: str, instead: str) -> Path:
    """Return the folder of a checkpoint from the hub's local cache, downloading it where it is missing.

    Raises
    ------
    HubUnreachableError, ValueError
        As ``download``, if the checkpoint is not in the cache.
    """
    return cached_checkpoint(repository) or download(repository, "model", _FILES, instead)


def cached_checkpoint(repository: str) -> Path | None:
    """The checkpoint's folder in the hub's local cache, or ``None`` if it is absent or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=_FILES, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    whole = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    return folder if whole else None
