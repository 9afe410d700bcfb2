"""What a trained model is kept as: its predictions by hash, its adapter by bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
from torch import nn
from torch.utils.data import DataLoader

from lora_tutorial.adapters import adapter_tensors, save_adapter
from lora_tutorial.metrics import TaskMetric
from lora_tutorial.training import evaluate_model

if TYPE_CHECKING:
    from lora_tutorial.experiments import Finished


class _KeepsPredictions:
    """A metric that also keeps what it was given."""

    def __init__(self, metric: TaskMetric) -> None:
        self.metric, self.predictions = metric, []

    def add_batch(self, predictions: Any, references: Any) -> None:
        self.predictions.extend(predictions.tolist())
        self.metric.add_batch(predictions=predictions, references=references)

    def compute(self) -> dict[str, float]:
        return self.metric.compute()


def score_split(
    model: nn.Module, loader: DataLoader, metric: TaskMetric, lengths: Sequence[int]
) -> dict[str, Any]:
    """Score a split and hash what was predicted.

    Parameters
    ----------
    model
        As for ``evaluate_model``.
    loader
        A split from ``make_loader(..., sort_by_length=True)``.
    metric
        The task's.
    lengths
        Tokens of each row in the data set's own order, from which the loader's order follows.

    Returns
    -------
    dict
        ``rows``, ``scores`` and ``predictions_sha256`` (see `predictions_hash`).
    """
    kept = _KeepsPredictions(metric)
    scores = evaluate_model(model, loader, kept)
    in_order = np.empty(len(lengths))
    in_order[np.argsort(lengths, kind="stable")] = kept.predictions
    return {"rows": len(lengths), "scores": scores, "predictions_sha256": predictions_hash(in_order)}


def predictions_hash(predictions: Sequence[float]) -> str:
    """SHA-256 of the predictions as a JSON list, in the order of the rows, to four decimals.

    A class is a whole number, so its hash is exact; a regression's may still differ between machines.
    """
    return hashlib.sha256(json.dumps([round(float(value), 4) for value in predictions]).encode()).hexdigest()


def trained_file(model: nn.Module) -> bytes:
    """The safetensors file that holds everything that trained: an adapter's own, or all of a full copy."""
    tensors = {name: value.cpu().contiguous() for name, value in adapter_tensors(model).items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def save_run_adapter(finished: Finished, folder: Path) -> int:
    """Save a run's adapter with what `lora-tutorial predict` needs; returns the folder's size in bytes."""
    task, record = finished.loaded.task, finished.record
    metadata = {
        "task": task.name,
        "columns": list(task.columns),
        "labels": list(task.labels),
        "max_length": record.recipe["max_length"],
        "scored_on": record.extra["scored_on"],
        "scores": finished.scores["trained"],
        "data_sha256": record.config["data_sha256"],
    }
    save_adapter(finished.model, folder, metadata)
    return sum(file.stat().st_size for file in folder.iterdir())
