"""What PEFT reads and writes: loading a folder in it, and changing the files in one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_tutorial import LoraConfig

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")

TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
QUERY = "base_model.model.roberta.encoder.layer.0.attention.self.query"


def into_peft(model: nn.Module, folder: Path, **options: object) -> nn.Module:
    """Load a folder in PEFT; what it says when a tensor is missing is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*"
        )  # PEFT's use of transformers
        return peft.PeftModel.from_pretrained(model, str(folder), **options).eval()


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    values = config.to_dict()
    values["init_lora_weights"] = True if values.pop("init") == "kaiming" else "gaussian"
    return peft.LoraConfig(task_type="SEQ_CLS", **values)


def change_settings(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changes))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(change(load_file(folder / TENSORS)), folder / TENSORS, metadata={"format": "pt"})
