"""One fine-tuning run put together from the rooms of the house: task, encoder, method, recipe, score."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_tutorial.encoders import load_tokenizer
from lora_tutorial.inject import freeze_parameters_except_lora_and_bias
from lora_tutorial.merging import unload_lora
from lora_tutorial.metrics import TaskMetric, load_metric
from lora_tutorial.recipes import Recipe
from lora_tutorial.results import RunRecord
from lora_tutorial.tasks import LoadedTask, Task, load_task, make_loader, tokenize
from lora_tutorial.training import evaluate_model, seed_everything, train
from lora_tutorial.wrapper import LoraWrapperRoberta

METHODS = ("head", "bitfit", "lora", "lora+bias+norm", "full")
EVALUATION_BATCH = 64


def build_model(
    task: Task, method: str = "lora+bias+norm", encoder: str = "minilm", seed: int = 0, **settings: Any
) -> LoraWrapperRoberta:
    """The tutorial's model with just the parameters of a method left to train.

    Parameters
    ----------
    task
        Decides the number of outputs.
    method
        ``"head"`` (frozen encoder), ``"bitfit"`` (biases), ``"lora"``, ``"lora+bias+norm"`` (the tutorial's
        own) or ``"full"``; the head always trains.
    encoder
        As for ``load_encoder``.
    seed
        Set before head and adapters are drawn.
    **settings
        Further arguments of `LoraWrapperRoberta`, such as ``lora_rank``.

    Raises
    ------
    ValueError
        If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    seed_everything(seed)
    beside = method == "lora+bias+norm"
    flags = {"train_biases": beside, "train_layer_norms": beside}
    outputs = 1 if task.regression else task.num_labels
    model = LoraWrapperRoberta("glue", outputs, model_id=encoder, **flags, **settings)
    if not method.startswith("lora"):
        unload_lora(model)
        freeze_parameters_except_lora_and_bias(model.model, "all" if method == "bitfit" else "none")
        if method == "full":
            model.model.requires_grad_(True)
    model.freeze_pooler()  # nothing reads it
    return model


class Loaders(NamedTuple):
    """What a run reads: shuffled training batches, and every split the task has for scoring."""

    train: DataLoader
    scored: dict[str, DataLoader]


def make_loaders(
    loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, seed: int = 0
) -> Loaders:
    """Tokenise a task and batch it as the recipe says; the training set is cut to ``max_examples``."""
    if "train" not in loaded.data:
        raise ValueError(f"Task {loaded.task.name!r} has no training split in this source; choose another.")
    data = tokenize(loaded, tokenizer, recipe.max_length)
    rows = data["train"].select(recipe.subset(len(data["train"]), seed=0))  # the same rows for every seed
    shuffled = make_loader(rows, tokenizer, recipe.batch_size, shuffle=True, seed=seed)
    scored = {
        split: make_loader(data[split], tokenizer, EVALUATION_BATCH, sort_by_length=True)
        for split in data
        if split != "train"
    }
    return Loaders(shuffled, scored)


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


def data_hash(splits: Mapping[str, Dataset] | Iterable[tuple[str, Dataset]]) -> str:
    """SHA-256 over every row of every split, so that a record says which data it saw."""
    digest = hashlib.sha256()
    for split, rows in sorted(dict(splits).items()):
        digest.update(split.encode())
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Experiment:
    """What one run is made of; everything that a record needs to be repeated."""

    recipe: Recipe
    task: str = "reviews"
    encoder: str = "minilm"
    method: str = "lora+bias+norm"
    source: str = "auto"
    seed: int = 0
    lora_rank: int = 8
    lora_alpha: float | None = None


class Finished(NamedTuple):
    """What a run leaves behind."""

    model: LoraWrapperRoberta
    record: RunRecord
    loaded: LoadedTask
    scores: dict[str, dict[str, float]]


def run_experiment(
    experiment: Experiment,
    output_dir: str | os.PathLike[str] | None = None,
    baselines: bool = False,
    **options: Any,
) -> Finished:
    """Load, build, train and score one run.

    Parameters
    ----------
    experiment
        What to run.
    output_dir
        Folder for the record and checkpoints, as for ``train``.
    baselines
        Whether to score the majority class and the frozen encoder too.
    **options
        Passed on to ``train``: ``resume``, ``progress``, ``checkpoint_every``, ``log_with``, ``cpu``.

    Returns
    -------
    Finished
        ``scores`` has ``"trained"`` and, if asked for, the two baselines by name: all on the
        test split where there is a labelled one, else on validation.
    """
    loaded = load_task(experiment.task, experiment.source)
    metric = load_metric(loaded.task.metric)
    settings = {"lora_rank": experiment.lora_rank, "lora_alpha": experiment.lora_alpha}
    model = build_model(loaded.task, experiment.method, experiment.encoder, experiment.seed, **settings)
    loaders = make_loaders(loaded, load_tokenizer(experiment.encoder), experiment.recipe, experiment.seed)
    final = "test" if "test" in loaders.scored else "validation"
    scores = {}
    if baselines:
        scores["majority class"] = majority_baseline(loaded, metric, final)
        scores["frozen encoder, trained head"] = frozen_encoder_baseline(
            model, loaders, metric, loaded.task.regression, final
        )
    config = {
        "task": experiment.task,
        "source": Path(experiment.source).name,
        "encoder": Path(experiment.encoder).name if os.path.isdir(experiment.encoder) else experiment.encoder,
        "method": experiment.method,
        **settings,
        "data_sha256": data_hash(loaded.data),
    }
    validation = loaders.scored.get("validation", loaders.scored[final])
    record = train(
        model,
        loaders.train,
        validation,
        metric,
        experiment.recipe,
        output_dir,
        experiment.seed,
        config=config,
        **options,
    )
    scores["trained"] = evaluate_model(model, loaders.scored[final], metric)
    record.extra |= {"scored_on": final, "scores": scores}
    if output_dir is not None:
        record.save(Path(output_dir) / "record.json")
    return Finished(model, record, loaded, scores)
