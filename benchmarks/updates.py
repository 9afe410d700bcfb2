"""What a finished full fine-tuning learnt, cut down to rank r: its score, and how new its directions are.

Run it from the repository with the name of a run of method ``full``, and of LoRA runs to set beside it:
``python benchmarks/updates.py reviews/reviews-full-lr0.0001-seed0 reviews/reviews-qv-8-lr0.0005-seed0``.
Each needs its folder in ``runs``. It writes ``results/updates/<task>.json``, in which

- ``kept`` has, for each rank r, the predictions of the tuned model with the update of every linear layer of
  the encoder replaced by its best approximation of rank r. Embeddings, biases, LayerNorms and head stay as
  they were trained;
- ``random`` has the same for an update of rank r that keeps r random directions instead of the strongest;
- ``spectra`` has the singular values of some updates, and ``intruders`` the new directions of each weight.

The update of one layer goes to ``results/updates/<task>.safetensors``, in half precision, for chapter 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora_tutorial.adapters.files import load_adapter
from lora_tutorial.analysis.subspaces import intruders, truncate
from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments.evaluate import RowEvaluator
from lora_tutorial.experiments.inputs import tokenize_rows
from lora_tutorial.experiments.run import TRAINED, build_model
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import merge_lora
from lora_tutorial.models.encoders import load_encoder, load_tokenizer, quiet
from lora_tutorial.storage.files import atomic_write_bytes
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import RunRecord, load_record

HERE = Path(__file__).resolve().parent
RANKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 384)
DRAWS = 3  # of random directions
SHOWN = "encoder.layer.2.attention.self.query.weight"


def main(names: list[str]) -> None:
    """Take the first run's updates apart, and set the others' directions beside them."""
    if not names:
        raise SystemExit(__doc__)
    records = {name: load_record(HERE / "results" / f"{name}.json") for name in names}
    full = records[names[0]]
    if full.config["method"] != "full" or full.extra.get("trained_sha256") is None:
        raise SystemExit(f"{names[0]} is not a finished run of method full.")
    with quiet():
        encoder = load_encoder(full.config["encoder"]).model
        before = linears(encoder)
        tuned = trained_model(names[0], full)
        after = linears(tuned.model)
        found = scores_by_rank(tuned, before, after, full)
        weights = {name: after if name == names[0] else merged(name) for name in names}
    found["intruders"] = {
        name: {layer: intruders(before[layer], weight) for layer, weight in tuned.items()}
        for name, tuned in weights.items()
    }
    found["spectra"] = {
        name: {
            layer: [round(float(v), 5) for v in torch.linalg.svdvals((tuned[layer] - before[layer]).double())]
            for layer in before
            if "value" in layer
        }
        for name, tuned in weights.items()
    }
    task, folder = full.config["task"], HERE / "results" / "updates"
    hashes = {name: record.extra["trained_sha256"] for name, record in records.items()}
    about = {"kind": "updates", "task": task, "arm": "full", "runs": hashes}
    record = RunRecord(about, full.recipe, full.seed, extra=found, main_score=full.main_score)
    record.status = "finished"
    record.save(folder / f"{task}.json")
    shown = {"update": (after[SHOWN] - before[SHOWN]).half()}
    named = {"layer": SHOWN, "run": names[0]}
    atomic_write_bytes(folder / f"{task}.safetensors", safetensors.torch.save(shown, named))


def linears(encoder: nn.Module) -> dict[str, Tensor]:
    """The weight of every linear layer that the head reads, by name."""
    return {
        f"{name}.weight": module.weight.detach().clone()
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    }


def trained_model(name: str, record: RunRecord, **changed: Any) -> Any:
    """The model that a run left; ``changed`` takes another value for something of its configuration."""
    config = record.config | changed
    options = {"bits": config["bits"], "pooling": config["pooling"]}
    if config["lora"]:
        options["lora"] = LoraConfig.from_dict(config["lora"])
    task = load_task(config["task"]).task
    model = build_model(task, config["method"], config["encoder"], record.seed, **options)
    with safe_open(HERE.parent / "runs" / name / TRAINED, framework="pt") as stored:
        saved = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
    if strange := model.load_state_dict(saved, strict=False).unexpected_keys:
        raise SystemExit(f"{name} holds what this model has not: {strange}.")
    return model.eval()


def merged(name: str) -> dict[str, Tensor]:
    """The weights of a LoRA run with its update added in."""
    model: Any = merge_lora(load_adapter(HERE.parent / "runs" / name / "adapter"))
    return linears(model.model)


def scores_by_rank(
    model: Any, before: dict[str, Tensor], after: dict[str, Tensor], record: RunRecord
) -> dict[str, Any]:
    """Predictions on the final split, and the score, with the update cut down to each rank."""
    config, recipe = record.config, load_recipe("cpu", record.config["task"])
    loaded, tokenizer = load_task(config["task"]), load_tokenizer(config["encoder"])
    split = record.extra["scored_on"]
    rows = tokenize_rows(loaded, tokenizer, recipe)[split]
    evaluator = RowEvaluator(loaded.task.metric, rows, tokenizer)

    def score(updates: dict[str, Tensor]) -> dict[str, Any]:
        with torch.no_grad():
            for layer, update in updates.items():
                model.model.get_parameter(layer).copy_(before[layer] + update)
        return evaluator.evaluate(model).summary(keep_predictions=True)

    whole = {layer: after[layer] - before[layer] for layer in before}
    kept = {str(r): score({k: truncate(update, r) for k, update in whole.items()}) for r in RANKS}
    drawn: dict[str, list[dict[str, Any]]] = {}
    for r in RANKS[1:-1]:
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(draw)
            parts = {k: random_part(update, r, generator) for k, update in whole.items()}
            drawn.setdefault(str(r), []).append(score(parts))
    score(whole)
    return {"split": split, "kept": kept, "random": drawn}


def random_part(update: Tensor, r: int, generator: torch.Generator) -> Tensor:
    """What an update does along r random directions of its input: a matrix of rank r."""
    basis, _ = torch.linalg.qr(torch.randn(update.shape[1], r, generator=generator))  # (in, r)
    return update @ basis @ basis.T  # (out, in) (in, r) (r, in) -> (out, in)


if __name__ == "__main__":
    main(sys.argv[1:])
