"""What people do with an adapter: train it in PEFT, load it here, give it away, go on training, use it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft_models import CONFIGS, adapted, base, logits
from safetensors.torch import load_file
from torch import nn
from transformers import RobertaForSequenceClassification, Trainer, TrainingArguments

from lora_tutorial import LoraConfig, LoraWrapperRoberta, inject_lora, load_encoder
from lora_tutorial.adapters.card import model_card
from lora_tutorial.adapters.peft import export_peft, import_peft
from lora_tutorial.lora.parameters import count_parameters

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'lora-tutorial[peft]'")
pytestmark = pytest.mark.usefixtures("seeded_on_one_thread")

REVIEWS = ["A moving film, and a funny one.", "Dull from the first minute to the last.", "It is what it is."]
METADATA = {
    "title": "Film reviews",
    "data": "three sentences",
    "data_licence": "CC0-1.0",
    "scores": {"accuracy": 0.75},
    "licence": "MIT",
    "labels": ["bad", "fair", "good"],
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


ELSEWHERE = """
    import sys
    from pathlib import Path

    class Forbidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "lora_tutorial":
                raise ImportError("nothing of ours here")

    sys.meta_path.insert(0, Forbidden())
    try:
        import lora_tutorial
    except ImportError:
        pass
    else:
        raise SystemExit("lora_tutorial can be imported")

    import json, warnings
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, pipeline

    folder, out, texts = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
        with model.disable_adapter():
            without = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    save_file({"logits": logits, "without": without}, out)
    classify = pipeline("text-classification", model=str(folder), tokenizer=str(folder / "base"))
    print(json.dumps([row["label"] for row in classify(texts)]))
"""


@pytest.mark.slow
def test_minilm_in_a_process_with_nothing_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(7)
    labels = {"id2label": dict(enumerate(METADATA["labels"]))}
    model, tokenizer = load_encoder("minilm", model_class=RobertaForSequenceClassification, **labels)
    inject_lora(model, LoraConfig(r=3, lora_alpha=7, bias="all", modules_to_save=("LayerNorm", "classifier")))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn_like(parameter)
        inputs = tokenizer(REVIEWS, return_tensors="pt", padding=True)
        ours = model.eval()(**inputs).logits
    folder = export_peft(model, tmp_path / "adapter", metadata=METADATA)
    assert torch.equal(import_peft(folder)(**inputs).logits, ours)
    arguments = [folder, tmp_path / "out", json.dumps(REVIEWS)]
    command = [sys.executable, "-I", "-c", textwrap.dedent(ELSEWHERE), *arguments]
    bare = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=bare)
    assert result.returncode == 0, result.stderr[-2000:]
    theirs = load_file(tmp_path / "out")
    assert torch.equal(theirs["logits"], ours)
    assert (theirs["logits"] - theirs["without"]).abs().max() > 0.01
    named = [METADATA["labels"][i] for i in ours.argmax(-1)]
    assert json.loads(result.stdout.splitlines()[-1]) == named
    card = (folder / "README.md").read_text()
    for part in (
        "sentence-transformers/all-MiniLM-L6-v2",
        "apache-2.0",
        "three sentences",
        "CC0-1.0",
        "0.7500",
        "MIT",
    ):
        assert part in card


def test_the_card_says_what_is_not_known() -> None:
    model = adapted(CONFIGS["query and value"])
    from lora_tutorial.adapters.peft_layout import peft_layout

    card = model_card(peft_layout(model).settings, "", False, {})
    assert "base_model" not in card and "license" not in card
    assert card.count("not recorded") == 3 and "Licence | not stated" in card
    assert "r = 3, lora_alpha = 7" in card
    hub = model_card(peft_layout(model).settings, "org/roberta", False, METADATA)
    assert 'base_model: "org/roberta"' in hub and 'license: "mit"' in hub and "| seed | 0 |" in hub
