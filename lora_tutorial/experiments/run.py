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
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from lora_tutorial.adapters.files import save_adapter, start_from_adapter
from lora_tutorial.data.own_file import is_text_file, task_from_file
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask, Task
from lora_tutorial.experiments.evaluate import (
    frozen_encoder_baseline,
    majority_baseline,
    make_reading,
    tokenize_rows,
)
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias
from lora_tutorial.lora.merge import factor_names, unload_lora
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.training.recipes import Recipe
from lora_tutorial.training.records import RunRecord
from lora_tutorial.training.trainer import seed_everything, train

METHODS = ("head", "bitfit", "lora", "lora+bias+norm", "full")


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
    kind = {"squad": "squad_v1", "squad_v2": "squad_v2"}.get(task.metric, "glue")
    outputs = None if task.extractive else task.num_labels
    model = LoraWrapperRoberta(kind, outputs, model_id=encoder, **flags, **settings)
    if not method.startswith("lora"):
        unload_lora(model)
        freeze_parameters_except_lora_and_bias(model.model, "all" if method == "bitfit" else "none")
        if method == "full":
            model.model.requires_grad_(True)
    model.freeze_pooler()  # nothing reads it
    return model


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
    task: str = "reviews"  # or the path of a reader's file, see `task_from_file`
    encoder: str = "minilm"
    method: str = "lora+bias+norm"
    source: str = "auto"
    seed: int = 0
    lora_rank: int = 8
    lora_alpha: float | None = None
    head: str = "tutorial"
    start: str | os.PathLike[str] | None = None  # folder of the adapter that ``recipe.start_from`` names


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
        "task": Path(experiment.task).stem if is_text_file(experiment.task) else experiment.task,
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


def _load(experiment: Experiment) -> LoadedTask:
    if is_text_file(experiment.task):
        return task_from_file(experiment.task)
    return load_task(experiment.task, experiment.source)


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
        test split where there is a labelled one, else on validation (SQuAD has no baselines).
        ``record.extra["splits"]`` has rows, scores and the predictions' hash of each split scored.
    """
    if (experiment.recipe.start_from is None) != (experiment.start is None):
        raise ValueError(
            f"The recipe starts from {experiment.recipe.start_from!r} and start={experiment.start!r}: a run "
            "needs the task's name and its adapter's folder, or neither (start_from=None)."
        )
    loaded = prepared.loaded if prepared else _load(experiment)
    settings = {key: getattr(experiment, key) for key in ("lora_rank", "lora_alpha", "head")}
    model = build_model(loaded.task, experiment.method, experiment.encoder, experiment.seed, **settings)
    if experiment.recipe.attention_dropout is not None:
        for module in model.model.modules():
            if isinstance(module, RobertaSelfAttention):
                module.dropout.p = experiment.recipe.attention_dropout
    if experiment.start is not None:
        start_from_adapter(model, experiment.start)
    tokenizer = load_tokenizer(experiment.encoder)
    tokens = prepared.tokenized if prepared else tokenize_rows(loaded, tokenizer, experiment.recipe)
    reading = make_reading(loaded, tokenizer, experiment.recipe, experiment.seed, tokens)
    loaders, metric = reading.loaders, reading.metric
    final = "test" if "test" in reading.splits else "validation"
    scores = {}
    if baselines and not loaded.task.extractive:
        scores["majority class"] = majority_baseline(loaded, metric, final)
        scores["frozen encoder, trained head"] = frozen_encoder_baseline(
            model, loaders, metric, loaded.task.regression, final
        )
    data_sha256 = prepared.data_sha256 if prepared else data_hash(loaded.data)
    record = train(
        model,
        loaders.train,
        loaders.scored.get("validation", loaders.scored.get(final)),
        metric,
        experiment.recipe,
        output_dir,
        experiment.seed,
        config=describe(experiment, data_sha256, encoder_hash(model.model)),
        scorer=reading.scorer,
        **options,
    )
    wanted = reading.splits if every_split else (final,)
    known = record.last["scores"] if record.last else None
    splits = {split: reading.score(model, split, known) for split in wanted}
    scores["trained"] = splits[final]["scores"]
    record.extra |= {"scored_on": final, "scores": scores, "splits": splits}
    if output_dir is not None:
        record.save(Path(output_dir) / "record.json")
    return Finished(model, record, loaded, scores)


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
