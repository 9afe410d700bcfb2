"""Adapters of our own format in a folder, to be changed as an accident or an unkind hand would."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TENSORS, SETTINGS = "adapter.safetensors", "adapter.json"


def moved(model, scale=0.25, seed=0):
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def as_format_1(folder, change=lambda settings, tensors: None):
    """Write an adapter again as the first format has it, without a checksum, after changing what it holds.

    `change` may return settings that take the place of those it was given.
    """
    settings, tensors = json.loads((folder / SETTINGS).read_text()), load_file(folder / TENSORS)
    assert len(settings.pop("sha256")) == 64
    settings["format"] = 1
    returned = change(settings, tensors)
    settings = returned if type(returned) in (list, str, int) or returned == "null" else settings
    (folder / SETTINGS).write_text("null" if settings == "null" else json.dumps(settings))
    save_file(tensors, folder / TENSORS)
    return folder
