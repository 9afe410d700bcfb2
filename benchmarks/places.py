"""LoRA on every linear layer of the encoder, on GLUE: is the gap to full fine-tuning one of place?

Run it from the repository, with a folder of GLUE in ``LORA_TUTORIAL_DATA`` or the hub in reach:

    OMP_NUM_THREADS=1 python benchmarks/places.py mrpc --rates 1e-3 2e-3

Everything but the adapted layers is as in ``lora-tutorial bench --methods lora``: recipe, rows, their order,
r, alpha, head, seed. Each run writes one record into ``benchmarks/results/places``; a run whose record is
there is skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from found import found_record

from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask
from lora_tutorial.experiments.evaluate import make_reading, tokenize_rows
from lora_tutorial.experiments.run import build_model, data_hash, encoder_hash
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import inject_lora
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.training.recipes import Recipe, load_recipe
from lora_tutorial.training.records import RunRecord
from lora_tutorial.training.trainer import train

RESULTS = Path(__file__).parent / "results" / "places"
LORA = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear")


def run(path: Path, loaded: LoadedTask, recipe: Recipe, seed: int) -> RunRecord:
    """Train and score one model, or read the record of the time it was done."""
    config = {"task": loaded.task.name, "encoder": "minilm", "method": "lora-all-linear"}
    config |= {"lora": LORA.to_dict(), "head": "tutorial", "data_sha256": data_hash(loaded.data)}
    if record := found_record(path, config, recipe, seed):
        return record
    model = build_model(loaded.task, "head", "minilm", seed)
    config["base_sha256"] = encoder_hash(model.model)
    inject_lora(model.model, LORA)
    model.freeze_pooler()  # nothing reads it
    tokenizer = load_tokenizer("minilm")
    reading = make_reading(loaded, tokenizer, recipe, seed, tokenize_rows(loaded, tokenizer, recipe))
    record = train(
        model,
        reading.loaders.train,
        reading.loaders.scored["validation"],
        reading.metric,
        recipe,
        seed=seed,
        config=config,
        cpu=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    record.save(path)
    print(path.name, record.last["scores"], f"{record.wall_seconds:.0f} s", flush=True)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--max-examples", type=int, default=4000)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    changes = {"epochs": options.epochs} if options.epochs else {}
    for task in options.tasks:
        loaded = load_task(task)
        for rate in options.rates:
            recipe = load_recipe(
                "cpu", task, learning_rate=rate, max_examples=options.max_examples, **changes
            )
            for seed in options.seeds:
                path = options.out / f"{task}-minilm-lora-all-linear-lr{rate:g}-seed{seed}.json"
                run(path, loaded, recipe, seed)


if __name__ == "__main__":
    main()
