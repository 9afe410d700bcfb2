"""One fine-tuning run put together from the rooms of the house: task, encoder, method, recipe, score."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora_tutorial.baselines import frozen_encoder_baseline, majority_baseline
from lora_tutorial.encoders import load_tokenizer
from lora_tutorial.identity import parameters_hash
from lora_tutorial.inject import freeze_parameters_except_lora_and_bias
from lora_tutorial.merging import factor_names, unload_lora
from lora_tutorial.metrics import load_metric
from lora_tutorial.outcome import score_split
from lora_tutorial.recipes import Recipe
from lora_tutorial.results import RunRecord
from lora_tutorial.tasks import LoadedTask, Task, load_task, make_loader, tokenize
from lora_tutorial.training import seed_everything, train
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


def tokenize_rows(loaded: LoadedTask, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> DatasetDict:
    """Cut the training set to the recipe's ``max_examples``, the same rows for every seed, and tokenise."""
    if "train" not in loaded.data:
        raise ValueError(f"Task {loaded.task.name!r} has no training split in this source; choose another.")
    rows = loaded.data["train"]
    data = DatasetDict({**loaded.data, "train": rows.select(recipe.subset(len(rows), seed=0))})
    return tokenize(LoadedTask(loaded.task, data), tokenizer, recipe.max_length)


def make_loaders(
    loaded: LoadedTask,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    seed: int = 0,
    tokenized: DatasetDict | None = None,
) -> Loaders:
    """Batch a task as the recipe says; ``tokenized``, from `tokenize_rows`, saves tokenising it again."""
    data = tokenize_rows(loaded, tokenizer, recipe) if tokenized is None else tokenized
    grouped = {"shuffle": True, "group_by_length": recipe.group_by_length}
    shuffled = make_loader(data["train"], tokenizer, recipe.batch_size, seed=seed, **grouped)
    scored = {
        split: make_loader(data[split], tokenizer, EVALUATION_BATCH, sort_by_length=True)
        for split in data
        if split != "train"
    }
    return Loaders(shuffled, scored)


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
    head: str = "tutorial"


class Prepared(NamedTuple):
    """What the runs of one task share: its data, its tokens (see `tokenize_rows`) and its hash."""

    loaded: LoadedTask
    tokenized: DatasetDict
    data_sha256: str


class Finished(NamedTuple):
    """What a run leaves behind."""

    model: LoraWrapperRoberta
    record: RunRecord
    loaded: LoadedTask
    scores: dict[str, dict[str, float]]


def describe(experiment: Experiment, data_sha256: str, base_sha256: str) -> dict[str, Any]:
    """The configuration that a record keeps: names without this machine's paths, and two hashes."""
    folder = os.path.isdir(experiment.encoder)
    return {
        "task": experiment.task,
        "source": Path(experiment.source).name,
        "encoder": Path(experiment.encoder).name if folder else experiment.encoder,
        "method": experiment.method,
        "lora_rank": experiment.lora_rank,
        "lora_alpha": experiment.lora_alpha,
        "head": experiment.head,
        "data_sha256": data_sha256,
        "base_sha256": base_sha256,
    }


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's own parameters, whatever adapters it has; see `parameters_hash`."""
    return parameters_hash(encoder, factor_names(encoder))


def run_experiment(
    experiment: Experiment,
    output_dir: str | os.PathLike[str] | None = None,
    baselines: bool = False,
    prepared: Prepared | None = None,
    every_split: bool = False,
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
    prepared
        The data, where they are at hand already; they must be those of ``experiment``.
    every_split
        Whether the trained model is scored on every split with labels instead of the final one alone.
    **options
        Passed on to ``train``: ``resume``, ``progress``, ``checkpoint_every``, ``log_with``, ``cpu``.

    Returns
    -------
    Finished
        ``scores`` has ``"trained"`` and, if asked for, the two baselines by name: all on the
        test split where there is a labelled one, else on validation. ``record.extra["splits"]`` has
        rows, scores and the predictions' hash of each split scored.
    """
    loaded = prepared.loaded if prepared else load_task(experiment.task, experiment.source)
    metric = load_metric(loaded.task.metric)
    settings = {key: getattr(experiment, key) for key in ("lora_rank", "lora_alpha", "head")}
    model = build_model(loaded.task, experiment.method, experiment.encoder, experiment.seed, **settings)
    tokenizer = load_tokenizer(experiment.encoder)
    tokens = prepared.tokenized if prepared else tokenize_rows(loaded, tokenizer, experiment.recipe)
    loaders = make_loaders(loaded, tokenizer, experiment.recipe, experiment.seed, tokens)
    final = "test" if "test" in loaders.scored else "validation"
    scores = {}
    if baselines:
        scores["majority class"] = majority_baseline(loaded, metric, final)
        scores["frozen encoder, trained head"] = frozen_encoder_baseline(
            model, loaders, metric, loaded.task.regression, final
        )
    data_sha256 = prepared.data_sha256 if prepared else data_hash(loaded.data)
    record = train(
        model,
        loaders.train,
        loaders.scored.get("validation", loaders.scored[final]),
        metric,
        experiment.recipe,
        output_dir,
        experiment.seed,
        config=describe(experiment, data_sha256, encoder_hash(model.model)),
        **options,
    )
    splits = {
        split: score_split(
            model, loaders.scored[split], metric, [len(ids) for ids in tokens[split]["input_ids"]]
        )
        for split in (loaders.scored if every_split else (final,))
    }
    scores["trained"] = splits[final]["scores"]
    record.extra |= {"scored_on": final, "scores": scores, "splits": splits}
    if output_dir is not None:
        record.save(Path(output_dir) / "record.json")
    return Finished(model, record, loaded, scores)
