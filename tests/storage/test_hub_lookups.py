"""What is asked of the hub's library, and what becomes of its answers; the library's calls are stand-ins."""

import errno
import hashlib
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from lora_tutorial.storage import hub
from lora_tutorial.storage.hub import HubUnreachableError

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights" * 9}


def blob_names(files):
    """As the hub's cache has them: SHA-256 of a large file, git's hash of a small one."""
    git = {name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for name, data in files.items()}
    return git | {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name.endswith("s")
    }


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library's three calls: what they were asked, and what they answer or raise."""
    told = SimpleNamespace(
        asked=[], look_up=None, download=None, files=dict(CONTENT), announced=blob_names(CONTENT)
    )
    folder = tmp_path / "models--someone--thing" / "snapshots" / "abc"

    def look_up(kind):
        def call(self, repository, timeout):
            told.asked.append((kind, repository))
            assert 0 < timeout < 20
            if told.look_up:
                raise told.look_up

        return call

    def snapshot_download(repository, repo_type="model", allow_patterns=None, local_files_only=False):
        told.asked.append(
            ("cache" if local_files_only else "download", repository, repo_type, allow_patterns)
        )
        if told.download:
            raise told.download
        for name, data in told.files.items():
            blob = tmp_path / "models--someone--thing" / "blobs" / told.announced[name]
            for file in (blob, folder / name):
                file.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            (folder / name).symlink_to(blob)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", look_up("model"))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", look_up("dataset"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    told.folder = folder
    return told


def not_found():
    return RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_looked_up_as_what_it_is(library, kind):
    assert hub.require_hub("someone/thing", kind, "wait") is None
    assert library.asked == [(kind, "someone/thing")]


def test_no_such_repository_and_no_answer_are_two_things(library):
    for error in (not_found(), HFValidationError("a/b/c")):
        library.look_up = error
        with pytest.raises(ValueError, match="no model 'someone/thing' open to you; check its name, or wait"):
            hub.require_hub("someone/thing", "model", "wait")
    library.look_up = TimeoutError()
    said = r"cannot be reached for the dataset 'someone/thing' \(TimeoutError\); wait"
    with pytest.raises(HubUnreachableError, match=said):
        hub.require_hub("someone/thing", "dataset", "wait")


def test_the_hub_is_reachable_if_it_answers(library):
    assert hub.is_reachable()
    for error in (not_found(), TimeoutError()):
        library.look_up = error
        assert not hub.is_reachable()


def test_the_hub_is_asked_once_before_a_download_begins(library):
    assert hub.download("someone/thing", "model", ["*.json"], "wait") == library.folder
    assert library.asked == [
        ("model", "someone/thing"),
        ("download", "someone/thing", "model", ["*.json"]),
    ]
    library.look_up = TimeoutError()
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        hub.download("someone/thing", "dataset", ["*.json"], "wait")
    assert library.asked[2:] == [("dataset", "someone/thing")], (
        "nothing is fetched from a hub that is not there"
    )


@pytest.mark.parametrize("name", CONTENT)
def test_a_file_of_other_bytes_is_removed_with_its_blob(library, name):
    library.files[name] += b"x"
    with pytest.raises(ValueError, match=rf"{name} of the model 'someone/thing' has other bytes.*, or wait"):
        hub.download("someone/thing", "model", [], "wait")
    blobs = library.folder.parents[1] / "blobs"
    assert not (blobs / library.announced[name]).exists() and not (library.folder / name).is_symlink()
    assert len(list(blobs.iterdir())) == 1, "the other file is kept"


def test_a_file_whose_hash_is_not_known_is_taken_as_it_is(library):
    library.announced = {name: name for name in CONTENT}
    assert hub.download("someone/thing", "model", [], "wait") == library.folder


def test_a_download_that_breaks_off_and_a_full_disk_are_one_sentence_each(library):
    library.download = RuntimeError("cut\n  short")
    with pytest.raises(
        HubUnreachableError, match=r"did not deliver the model .* whole \(cut short\); try again"
    ):
        hub.download("someone/thing", "model", [], "wait")
    library.download = OSError(errno.EIO, "broken")
    with pytest.raises(HubUnreachableError, match="broken"):
        hub.download("someone/thing", "model", [], "wait")
    for number in (errno.ENOSPC, errno.EDQUOT):
        library.download = OSError(number, "full")
        with pytest.raises(OSError, match="no room for the model 'someone/thing'; make room, or set HF_HOME"):
            hub.download("someone/thing", "model", [], "wait")


def test_a_checkpoint_in_the_cache_is_taken_without_a_look_at_the_hub(library):
    assert hub.checkpoint_folder("someone/thing", "wait") == library.folder
    ((kind, *_, patterns),) = library.asked
    assert kind == "cache" and "model.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns), "nothing pickled"


def test_a_checkpoint_that_is_not_whole_is_fetched(library):
    del library.files["model.safetensors"]
    assert hub.cached_checkpoint("someone/thing") is None
    for error in (LocalEntryNotFoundError("not there"), HFValidationError("a/b/c")):
        library.download = error
        assert hub.cached_checkpoint("someone/thing") is None
        library.asked.clear()
        with pytest.raises(HubUnreachableError):
            hub.checkpoint_folder("someone/thing", "wait")
        assert [kind for kind, *_ in library.asked] == ["cache", "model", "download"]


def test_a_checkpoint_without_config_is_not_whole(library):
    del library.files["config.json"]
    assert hub.cached_checkpoint("someone/thing") is None
