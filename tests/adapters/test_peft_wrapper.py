"""The tutorial's wrapper, whose attention is written by hand, against PEFT in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_models import CONFIGS, adapted, logits, shake

from lora_tutorial import LoraWrapperRoberta
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import NotExpressibleError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")


@pytest.mark.parametrize("task", ["glue", "squad_v1"])
@pytest.mark.parametrize("rest", [True, False])
def test_the_wrapper_both_ways(task: str, rest: bool, tiny_folder: Path, tmp_path: Path) -> None:
    def wrapper(train: bool) -> LoraWrapperRoberta:
        outputs = 3 if task == "glue" else None
        return LoraWrapperRoberta(
            task, outputs, model_id=str(tiny_folder), lora_rank=3, lora_alpha=7, head="roberta",
            train_biases=train, train_layer_norms=train,
        )  # fmt: skip

    model = shake(wrapper(rest))
    folder = export_peft(model, tmp_path / "adapter")
    theirs = (
        peft.AutoPeftModelForSequenceClassification
        if task == "glue"
        else peft.AutoPeftModelForQuestionAnswering
    )
    loaded = theirs.from_pretrained(str(folder)).eval()
    assert torch.equal(logits(loaded), logits(model))
    other = wrapper(not rest)
    assert not torch.allclose(logits(other), logits(model), atol=1e-2)
    assert torch.equal(logits(import_peft(folder, other)), logits(model))
    assert torch.equal(logits(import_peft(folder)), logits(model))  # LoraLinear on the folder's own base
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "pooler" not in n}
    assert {n for n, p in other.named_parameters() if p.requires_grad and "pooler" not in n} == trained


def test_the_wrapper_says_which_rank_and_scale_it_needs(tiny_folder: Path, tmp_path: Path) -> None:
    folder = export_peft(adapted(CONFIGS["query and value"]), tmp_path / "adapter")
    wrapper = LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), lora_rank=3, head="roberta")
    with pytest.raises(ValueError, match="lora_rank=3, lora_alpha=7"):
        import_peft(folder, wrapper)


def test_the_tutorials_own_head_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    model = shake(LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder)))
    with pytest.raises(NotExpressibleError, match=r'head="roberta".*modules_to_save=\["classifier"\]'):
        export_peft(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(ValueError, match="head must be one of tutorial, roberta"):
        LoraWrapperRoberta("glue", 3, model_id=str(tiny_folder), head="bert")
