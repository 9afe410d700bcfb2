"""What becomes of an adapter that was trained on four bits: the score of every way to merge it.

Run it from the repository, when ``grids/qlora.toml`` is whole and its folders are in ``runs``:
``python benchmarks/merges.py``. It takes the arm `ARM` at the rate that its search chose, all its seeds, and
writes ``results/updates/merges.json``, in which each list has one entry a seed:

- ``answers``, by `WAYS`: the summary of the test rows, predictions included;
- ``length``, for each adapted matrix the norm of the update over that of the weight below it;
- ``arrives``, the part of the update that is left, along its own direction, when the sum is rounded to four
  bits again; ``noise``, the norm of what else the rounding does to the weight, over that of the update.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from spectra import seeds
from torch import Tensor
from updates import trained_model

from lora_tutorial.data.sources import load_task
from lora_tutorial.experiments.evaluate import RowEvaluator
from lora_tutorial.experiments.inputs import tokenize_rows
from lora_tutorial.lora.inject import disable_lora
from lora_tutorial.lora.merge import lora_modules, merge_lora, unload_lora
from lora_tutorial.models.encoders import load_tokenizer, quiet
from lora_tutorial.quant.linear4bit import dequantize_linears, keep_codes, quantize_linears
from lora_tutorial.quant.nf4 import dequantize_nf4, quantize_nf4
from lora_tutorial.training.recipes import load_recipe
from lora_tutorial.training.records import RunRecord

HERE = Path(__file__).resolve().parent
GRID, ARM = "qlora", "all-8-nf4"
WAYS = ("not merged", "dequantised base", "original base", "quantised again", "update switched off")


def main() -> None:
    """Load, merge and score every seed, and store."""
    found: dict[str, Any] = {"answers": {way: [] for way in WAYS}, "length": [], "arrives": [], "noise": []}
    runs = seeds(ARM, GRID)
    with quiet():
        evaluator, split = test_rows(runs[0][1])

        def answer(way: str, model: Any) -> None:
            found["answers"][way].append(evaluator.evaluate(model).summary(keep_predictions=True))

        for name, record in runs:
            for way, model in merged(name, record):
                answer(way, model)
            trained = trained_model(name, record)
            with disable_lora(trained):
                answer("update switched off", trained)
            for key, values in rounding(dequantize_linears(trained)).items():
                found[key].append(values)
    about = {"kind": "merges", "task": "reviews", "runs": {n: r.extra["trained_sha256"] for n, r in runs}}
    record = RunRecord(about, runs[0][1].recipe, 0, extra=found | {"split": split})
    record.status = "finished"
    record.save(HERE / "results" / "updates" / "merges.json")


def test_rows(record: RunRecord) -> tuple[RowEvaluator, str]:
    """What scores a model on the rows that the run was scored on."""
    config, split = record.config, record.extra["scored_on"]
    loaded, tokenizer = load_task(config["task"]), load_tokenizer(config["encoder"])
    rows = tokenize_rows(loaded, tokenizer, load_recipe("cpu", config["task"]))[split]
    return RowEvaluator(loaded.task.metric, rows, tokenizer), split


def merged(name: str, record: RunRecord) -> Iterator[tuple[str, Any]]:
    """The trained model, and what each way to merge makes of it; one of them takes the base unrounded."""
    yield "not merged", trained_model(name, record)
    yield "dequantised base", merge_lora(dequantize_linears(trained_model(name, record)))
    yield "original base", merge_lora(trained_model(name, record, bits=None))
    plain = unload_lora(merge_lora(dequantize_linears(trained_model(name, record))))
    keep_codes(quantize_linears(plain.model))
    yield "quantised again", plain


def rounding(model: Any) -> dict[str, list[float]]:
    """What is left of each matrix's update after a second rounding, and what is added to it."""
    found: dict[str, list[float]] = {"length": [], "arrives": [], "noise": []}
    for _, module in lora_modules(model):
        weight, update = module.weight.detach().double(), module.lora_delta().detach().double()
        change = dequantize_nf4(quantize_nf4((weight + update).float())).double() - weight
        part = float((change * update).sum() / update.square().sum())
        values: dict[str, Tensor | float] = {
            "length": update.norm() / weight.norm(),
            "arrives": part,
            "noise": (change - part * update).norm() / update.norm(),
        }
        for key, value in values.items():
            found[key].append(round(float(value), 4))
    return found


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
