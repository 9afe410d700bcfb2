"""A full disk, a damaged file, a second process: a sentence, and nothing that was complete is lost."""

import errno
import os
import re

import pytest
import safetensors.torch
import tiny
import torch
from interrupted_runs import assert_same_end, files_of, go, truncate

from lora_tutorial.storage.files import FolderInUseError
from lora_tutorial.training.checkpoints import CheckpointError, latest_checkpoint, resume_point
from lora_tutorial.training.records import load_record

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FillsTheDisk(tiny.Tiny):
    """At its seventh training batch, one before the checkpoint of step 6 would be due, the disk is full."""

    def __init__(self, monkeypatch, writer):
        super().__init__()
        self.left, self.fill = 6, lambda: writer(monkeypatch)

    def forward(self, points, labels=None):
        self.left -= self.training
        if self.left == 0:
            self.fill()
        return super().forward(points, labels)


def full_for_tensors(monkeypatch):
    def save_file(tensors, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


def full_for_all(monkeypatch):
    def fsync(descriptor):
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)


def full_for_the_record(monkeypatch):
    replace = os.replace

    def refused(source, target):
        if str(target).endswith("record.json"):
            raise FULL
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)


@pytest.mark.parametrize(
    ("writer", "last", "what"),
    [(full_for_tensors, 3, "Step 6"), (full_for_all, 3, "Step 6"), (full_for_the_record, 6, "The record")],
)
def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_was_complete(
    tmp_path, monkeypatch, whole, writer, last, what
):
    folder = tmp_path / "run"
    torch.manual_seed(0)
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as stopped:
        go(folder, FillsTheDisk(patch, writer))
    said = str(stopped.value)
    assert re.match(
        rf"{what} could not be saved in {re.escape(str(folder))}: .*No space left on device", said
    )
    assert "Make room there" in said and f"step-{last:08d}" in said
    assert resume_point(folder) == last and not [p for p in folder.rglob(".*") if p.name != ".run.lock"]
    assert load_record(folder / "record.json").status in ("running", "failed")
    assert_same_end(go(folder), whole)


def test_a_folder_that_cannot_be_written_at_all_is_told_before_the_first_step(tmp_path, monkeypatch):
    full_for_the_record(monkeypatch)
    model = tiny.model()
    with pytest.raises(CheckpointError, match=r"The record could not be saved .*none yet"):
        go(tmp_path / "run", model)
    assert model.seen == 0


@pytest.mark.parametrize("damaged", [b'{"format": 1', b"[]", b"", b"\xff\xfe", None])
def test_a_damaged_record_is_made_again_from_the_checkpoint(part, whole, damaged):
    path = part / "record.json"
    if damaged is None:
        path.unlink()
        assert_same_end(go(part), whole)
    else:
        path.write_bytes(damaged)
        with pytest.warns(
            UserWarning, match=r"record\.json: .*Its checkpoint holds the record too"
        ) as warned:
            assert_same_end(go(part), whole)
        assert len(warned) == 1
    assert load_record(path).steps == whole[0].steps


def test_a_damaged_record_of_a_finished_run_is_made_again_without_training(part, whole):
    go(part)
    (part / "record.json").write_text("{")
    model = tiny.model()
    with pytest.warns(UserWarning, match="going on with that"):
        assert_same_end(go(part, model), whole)
    assert load_record(part / "record.json").status == "finished" and model.seen == 3 * 64


def test_a_damaged_record_without_a_complete_checkpoint_is_refused_and_left_alone(part):
    (part / "record.json").write_text("{")
    for folder in (part / "checkpoints").iterdir():
        truncate(folder)
    before = files_of(part)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"no complete checkpoint .*remove .*run or"),
    ):
        go(part)
    assert files_of(part) == before


def test_what_resuming_would_go_on_from_is_told_beforehand(part, tmp_path, recwarn):
    assert resume_point(tmp_path / "nothing") is None
    assert resume_point(part) == 12
    truncate(part / "checkpoints" / "step-00000012")
    assert resume_point(part) == 9
    truncate(part / "checkpoints" / "step-00000009")
    assert resume_point(part) is None and not recwarn.list


def test_a_second_run_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path, whole):
    folder, refused = tmp_path / "run", []

    class Intruding(tiny.Tiny):
        def forward(self, points, labels=None):
            if self.training and self.seen == 5 * 8:
                before, generators = files_of(folder), torch.get_rng_state()
                for resume in (True, False):
                    with pytest.raises((FolderInUseError, FileExistsError)) as second:
                        go(folder, resume=resume)
                    refused.append(second)
                torch.set_rng_state(generators)
                assert files_of(folder) == before
            return super().forward(points, labels)

    torch.manual_seed(0)
    found = go(folder, Intruding())
    assert refused[0].type is FolderInUseError
    assert re.search(r"Another process is working on the run in .*run; wait", str(refused[0].value))
    assert found[0].status == "finished" and len(found[0].epochs) == 3
    assert latest_checkpoint(folder / "checkpoints").step == 24
    go(folder)  # free again
