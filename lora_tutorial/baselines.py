"""What a score is compared with: the majority class, and a linear head on the untouched encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader

from lora_tutorial.metrics import TaskMetric
from lora_tutorial.tasks import LoadedTask
from lora_tutorial.wrapper import LoraWrapperRoberta

if TYPE_CHECKING:
    from lora_tutorial.reading import Loaders


def majority_baseline(loaded: LoadedTask, metric: TaskMetric, split: str = "test") -> dict[str, float]:
    """The score of always giving the commonest training class (the mean, for a regression)."""
    train_labels = loaded.data["train"]["label"]
    dummy = DummyRegressor() if loaded.task.regression else DummyClassifier(strategy="most_frequent")
    dummy.fit([[0]] * len(train_labels), train_labels)
    gold = loaded.data[split]["label"]
    return metric.compute(predictions=dummy.predict([[0]] * len(gold)), references=list(gold))


def frozen_encoder_baseline(
    model: LoraWrapperRoberta, loaders: Loaders, metric: TaskMetric, regression: bool, split: str = "test"
) -> dict[str, float]:
    """The score of a linear head on the frozen encoder's first token: what is there before any adaptation.

    ``model`` must be fresh: its adapters add nothing yet. The head is scikit-learn's, trained to its optimum
    on the same training rows.
    """
    x, y = _first_tokens(model.model, loaders.train)
    head = RidgeCV(alphas=(0.1, 1, 10, 100, 1000)) if regression else LogisticRegression(C=0.1, max_iter=1000)
    fitted = make_pipeline(StandardScaler(), head).fit(x, y)
    x, y = _first_tokens(model.model, loaders.scored[split])
    return metric.compute(predictions=fitted.predict(x), references=y)


@torch.no_grad()
def _first_tokens(encoder: nn.Module, loader: DataLoader) -> tuple[Any, Any]:
    """First token of the last hidden state, (rows, hidden), and the labels, (rows,), as NumPy arrays."""
    encoder.eval()
    states, labels = [], []
    for batch in loader:
        labels.append(batch.pop("labels"))
        batch = {key: value.to(encoder.device) for key, value in batch.items()}
        states.append(encoder(**batch).last_hidden_state[:, 0].float().cpu())
    return torch.cat(states).numpy(), torch.cat(labels).numpy()
