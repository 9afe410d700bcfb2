"""Runs that stop and go on, and what must be the same at their end."""

import tiny
import torch

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.training import checkpoints
from lora_tutorial.training.trainer import train


def go(folder, model=None, **changes):
    """Train in ``folder``; returns the record and everything the last checkpoint holds."""
    model = model if model is not None else tiny.model()
    arguments = {"resume": True, "checkpoint_every": 3, "recipe": tiny.recipe(), **changes}
    recipe, loaders = arguments.pop("recipe"), arguments.pop("loaders", None) or tiny.loaders()
    record = train(model, *loaders, load_metric("accuracy"), recipe, folder, **arguments)
    return record, checkpoints.latest_checkpoint(folder / "checkpoints").tensors, model


def assert_same_end(found, whole):
    record, tensors, model = found
    expected_record, expected, expected_model = whole
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name
    for name, value in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert record.steps == expected_record.steps and record.last == expected_record.last
    assert record.status == "finished" and len(record.epochs) == 3


def truncate(folder):
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
