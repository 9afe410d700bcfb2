"""What has no place in PEFT's format, and what else an export refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft_models import CONFIGS, HEAD, adapted, base
from torch import nn
from transformers import RobertaForMaskedLM

from lora_tutorial import LoraConfig, LoraLinear, inject_lora
from lora_tutorial.adapters.peft import export_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


class Doubled(LoraLinear):
    """A variant that PEFT's plain LoRA does not compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def a_variant() -> nn.Module:
    return inject_lora(base(), LoraConfig(), make=Doubled.from_linear)


def one_bias() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    model.roberta.encoder.layer[0].output.dense.bias.requires_grad_(True)
    return model


def one_frozen_weight() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    model.roberta.encoder.layer[0].attention.self.query.weight.requires_grad_(True)
    return model


def adapted_head() -> nn.Module:
    return inject_lora(base(), LoraConfig(r=2, target_modules=("query", "classifier.dense")))


def two_ranks() -> nn.Module:
    model = inject_lora(base(), LoraConfig(modules_to_save=HEAD))
    attention = model.roberta.encoder.layer[0].attention.self
    attention.query = LoraLinear.from_linear(attention.query.plain(), LoraConfig(r=2))
    return model


def shared_layer() -> nn.Module:
    layer = nn.Linear(6, 5)
    return inject_lora(nn.ModuleDict({"a": layer, "b": layer}), LoraConfig(r=2, target_modules=("a", "b")))


def tied_embedding() -> nn.Module:
    config = LoraConfig(r=2, modules_to_save=("word_embeddings",))
    return inject_lora(base(RobertaForMaskedLM, tie_word_embeddings=True), config)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (a_variant, "Doubled"),
        (one_bias, "output.dense.bias trains"),
        (one_frozen_weight, "query.weight trains"),
        (adapted_head, "modules_to_save naming that head"),
        (two_ranks, "differ in r"),
        (shared_layer, "under 2 names"),
        (tied_embedding, "shares a weight"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    build: Callable[[], nn.Module], says: str, tmp_path: Path
) -> None:
    model = build()
    with pytest.raises(NotExpressibleError, match=says):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_export_refuses_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no LoRA adapter"):
        export_peft(base(), tmp_path / "adapter")
    model = adapted(CONFIGS["query and value"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        export_peft(model, tmp_path / "full")
    model.classifier.out_proj.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"classifier\.out_proj\.bias"):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_not_the_one_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(CONFIGS["query and value"])
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight[5] += 1e-3
    with pytest.raises(ValueError, match=r"word_embeddings.*another base"):
        export_peft(model, tmp_path / "adapter", base=tiny_folder)
    with pytest.raises(
        ValueError, match="draw one at random"
    ):  # RobertaModel's folder has no language model's head
        export_peft(
            inject_lora(base(RobertaForMaskedLM), LoraConfig()), tmp_path / "adapter", base=tiny_folder
        )
