"""What people do with an adapter: train it in PEFT, load it here, give it away, go on training, use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_models import CONFIGS, adapted, base, logits
from torch import nn
from transformers import RobertaForSequenceClassification, Trainer, TrainingArguments

from lora_tutorial import LoraWrapperRoberta, inject_lora
from lora_tutorial.adapters.card import model_card
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.adapters.peft_layout import peft_layout
from lora_tutorial.lora.parameters import count_parameters

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")

METADATA = {
    "licence": "MIT",
    "seed": 0,
}


def examples() -> list[dict[str, torch.Tensor]]:
    """64 rows of 8 tokens whose label, 0 to 2, is told by the second token."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 60, (64, 8), generator=generator)
    return [{"input_ids": row, "labels": row[1] % 3} for row in ids]


def train(model: nn.Module, folder: Path, steps: int = 25) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        seed=0,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=examples())
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Path]:
    """A base folder, a model that PEFT and Trainer trained on it, and the folder that Trainer saved."""
    root = tmp_path_factory.mktemp("trained")
    base(num_labels=2).roberta.save_pretrained(root / "base")  # as a base is found: it knows no third label
    with torch.random.fork_rng():
        torch.manual_seed(6)
        plain = RobertaForSequenceClassification.from_pretrained(root / "base", num_labels=3)
        config = peft.LoraConfig(
            r=3, lora_alpha=7, target_modules=["query", "value"], task_type="SEQ_CLS", bias="all"
        )
        trainer = train(peft.get_peft_model(plain, config), root / "run")
    trainer.save_model(str(root / "adapter"))
    early, late = losses(trainer)[0], losses(trainer)[-1]
    assert late < early - 0.05  # it learnt something: B is not zero
    return root / "base", trainer.model.eval(), root / "adapter"


def test_an_adapter_that_trainer_trained_loads_here(trained: tuple[Path, nn.Module, Path]) -> None:
    folder, theirs, adapter = trained
    plain = RobertaForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert (logits(theirs) - logits(plain)).abs().max() > 0.01
    assert torch.equal(logits(import_peft(adapter)), logits(theirs))  # the base by its recorded name
    assert torch.equal(logits(import_peft(adapter, folder)), logits(theirs))
    wrapper = LoraWrapperRoberta("glue", 3, model_id=str(folder), lora_rank=3, lora_alpha=7, head="roberta")
    assert torch.equal(logits(import_peft(adapter, wrapper)), logits(theirs))


def test_trainer_goes_on_with_ours(trained: tuple[Path, nn.Module, Path], tmp_path: Path) -> None:
    folder, _, adapter = trained
    ours = import_peft(adapter, folder)
    exported = export_peft(ours, tmp_path / "ours")
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(exported), is_trainable=True)
    before = logits(theirs)
    assert torch.equal(before, logits(ours))
    assert count_parameters(theirs).trainable == count_parameters(ours).trainable
    trainer = train(theirs, tmp_path / "run")
    fresh = train(inject_lora(base(), CONFIGS["query and value"]), tmp_path / "fresh")
    assert losses(trainer)[0] < losses(fresh)[0] - 0.05  # it starts where we stopped
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model(str(tmp_path / "more"))
    again = import_peft(tmp_path / "more", folder)
    assert torch.equal(logits(again), logits(trainer.model))
    assert (logits(again) - before).abs().max() > 0.01


def test_the_card_says_what_is_not_known() -> None:
    model = adapted(CONFIGS["query and value"])
    card = model_card(peft_layout(model).settings, "", False, {})
    assert "base_model" not in card and "license" not in card
    assert card.count("not recorded") == 3 and "Licence | not stated" in card
    assert "r = 3, lora_alpha = 7" in card
    hub = model_card(peft_layout(model).settings, "org/roberta", False, METADATA)
    assert 'base_model: "org/roberta"' in hub and 'license: "mit"' in hub and "| seed | 0 |" in hub
