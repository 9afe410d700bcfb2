"""A tiny language model for nearly every test, and SmolLM2 for the few that need real weights."""

import os

import pytest
from tiny_llama import make_tiny_lm


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny Llama with random weights and a chat template."""
    return make_tiny_lm(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.fixture
def tiny(tiny_folder):
    """A fresh copy of it: (model, tokenizer)."""
    from lora_tutorial.lm.models import load_lm

    return load_lm(tiny_folder)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct: (model, tokenizer). Read only. CI may not skip it."""
    from lora_tutorial.lm.models import load_lm
    from lora_tutorial.storage.downloads import AssetError

    try:
        return load_lm("smollm2")
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"SmolLM2 cannot be had here: {error}")
