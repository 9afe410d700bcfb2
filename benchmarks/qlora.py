"""Nine small runs for the chapter on QLoRA: LoRA in float32, LoRA on NF4, a head on NF4; three seeds each.

Run it from the repository: ``python benchmarks/qlora.py``. Each run writes one record into
``benchmarks/results``; a run whose record is there is skipped, so it may be stopped at any time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, RobertaForSequenceClassification

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments.evaluate import make_loaders
from lora_tutorial.experiments.run import data_hash
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.models.encoders import load_tokenizer, quiet
from lora_tutorial.models.minilm import minilm_folder
from lora_tutorial.quant.linear4bit import inject_lora_4bit, keep_codes
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import load_record
from lora_tutorial.training.trainer import evaluate_model, seed_everything, train

RESULTS = Path(__file__).parent / "results"
METHODS = ("fp32-lora", "nf4-lora", "nf4-head")
SEEDS = (0, 1, 2)
RECIPE = load_recipe("quick", max_examples=1000, learning_rate=1e-3)
LORA = LoraConfig(r=8, lora_alpha=16, modules_to_save=("classifier",))


def build(method: str, seed: int) -> nn.Module:
    """A classifier on MiniLM with what ``method`` trains; seeded before its head and adapters are drawn."""
    seed_everything(seed)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["classifier"],
    )
    with quiet():
        model = RobertaForSequenceClassification.from_pretrained(
            minilm_folder(),
            num_labels=2,
            dtype=torch.float32,
            quantization_config=None if method == "fp32-lora" else nf4,
        )
    if method.endswith("lora"):
        return inject_lora_4bit(model, LORA)
    keep_codes(model).requires_grad_(False)
    model.classifier.requires_grad_(True)
    return model


def run(method: str, seed: int, path: Path) -> None:
    """Train one model and store its record, with its score on the test split."""
    loaded = load_task("reviews")
    metric = load_metric(loaded.task.metric)
    model = build(method, seed)
    loaders = make_loaders(loaded, load_tokenizer("minilm"), RECIPE, seed)
    settings = {
        "task": "reviews",
        "encoder": "minilm",
        "method": method,
        "lora": LORA.to_dict(),
        "data_sha256": data_hash(loaded.data),
    }
    record = train(model, loaders.train, None, metric, RECIPE, seed=seed, config=settings)
    scores = {"trained": evaluate_model(model, loaders.scored["test"], metric)}
    record.extra |= {"scored_on": "test", "scores": scores, "footprint_bytes": model.get_memory_footprint()}
    record.save(path)
    print(path.name, scores["trained"], f"{record.wall_seconds:.0f} s", flush=True)


def main() -> None:
    """Do the runs that are missing."""
    for seed in SEEDS:
        for method in METHODS:
            path = RESULTS / f"qlora-{method}-{seed}.json"
            if not path.is_file() or load_record(path).status != "finished":
                run(method, seed, path)


if __name__ == "__main__":
    main()
