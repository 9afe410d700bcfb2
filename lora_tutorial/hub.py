"""The model hub when it is there, and one quick sentence when it is not."""

from __future__ import annotations

from pathlib import Path

_TIMEOUT = 5.0  # seconds; without an early look-up the libraries retry for about twenty
# No pickled weights: everything but safetensors, JSON and vocabularies stays where it is.
_FILES = ["*.json", "*.txt", "model.safetensors", "model-*.safetensors"]


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


def checkpoint_folder(repository: str, instead: str) -> Path:
    """Return the folder of a checkpoint from the hub's local cache, downloading it where it is missing.

    Raises
    ------
    HubUnreachableError, ValueError
        As ``require_hub``, if the checkpoint is not in the cache.
    """
    cached = cached_checkpoint(repository)
    if cached is not None:
        return cached
    require_hub(repository, "model", instead)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=_FILES))


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
