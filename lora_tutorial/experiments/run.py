"""One run, from its description to its result: data, model, training, scores. Experiment -> Result."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from accelerate import PartialState
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention

from lora_tutorial.adapters.files import (
    adapter_tensors,
    save_adapter,
    start_from_adapter,
)
from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.own_file import is_text_file, task_from_file
from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask, Task
from lora_tutorial.experiments.baselines import frozen_encoder_baseline, majority_baseline
from lora_tutorial.experiments.evaluate import Evaluator, make_evaluators, other_text, written
from lora_tutorial.experiments.experiment import TUTORIAL_LORA, Experiment
from lora_tutorial.experiments.inputs import (
    Prepared,
    data_hash,
    fewer_scored,
    hold_out,
    make_loaders,
    tokenize_rows,
    train_loader,
)
from lora_tutorial.lm.basics import check_chrf
from lora_tutorial.lm.instructions import is_conversation_file, task_from_conversations
from lora_tutorial.lm.models import build_lm, load_lm, load_lm_tokenizer
from lora_tutorial.lora.config import ALL_LINEAR, LoraConfig
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias, matching_modules
from lora_tutorial.lora.merge import factor_names
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.lora.variants import VARIANTS
from lora_tutorial.models.encoders import load_encoder, load_tokenizer
from lora_tutorial.models.fast_roberta import use_fast_attention
from lora_tutorial.models.roberta import LoraWrapperRoberta
from lora_tutorial.quant.inject import inject_into_base
from lora_tutorial.training.processes import stays_on_cpu
from lora_tutorial.training.recipes import METHODS, Recipe
from lora_tutorial.training.records import HELD_OUT, RunRecord
from lora_tutorial.training.trainer import seed_everything, train

#: Every linear layer that the head reads: "all-linear" without the pooler, which nothing reads.
ENCODER_LINEARS = ("query", "key", "value", "intermediate.dense", "output.dense")
TRAINED = "trained.safetensors"  # what a run leaves for another to begin with
_HEAD = "finetune_head_"


class Result(NamedTuple):
    """What a run leaves behind: the trained model, its record, the data, and the scores by name."""

    model: Any
    record: RunRecord
    loaded: LoadedTask
    scores: dict[str, dict[str, float]]


def build_model(
    task: Task,
    method: str = "lora+bias+norm",
    encoder: str = "minilm",
    seed: int = 0,
    lora: LoraConfig = TUTORIAL_LORA,
    variant: str = "lora",
    bits: int | None = None,
    only: Sequence[str] = (),
    **options: Any,
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
    lora, variant, bits, only
        As for `Experiment`. Plain LoRA on query and value is the attention written by hand; anything else is
        injected. Both compute as their fast form does (`use_fast_attention`).
    **options
        Further options of `LoraWrapperRoberta`, such as ``head`` and ``pooling``.

    Raises
    ------
    ValueError
        If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    seed_everything(seed)
    by_hand = method.startswith("lora") and variant == "lora" and bits is None and _is_by_hand(lora)
    beside = method == "lora+bias+norm"
    options |= {"train_biases": beside, "train_layer_norms": beside, "model_id": encoder}
    options |= {"lora_rank": lora.r, "lora_alpha": lora.lora_alpha} if by_hand else {"lora_rank": None}
    kind = {"squad": "squad_v1", "squad_v2": "squad_v2"}.get(task.metric, "glue")
    model = LoraWrapperRoberta(kind, None if task.extractive else task.num_labels, **options)
    if bits:
        from lora_tutorial.quant.linear4bit import keep_codes, quantize_linears  # needs bitsandbytes

        keep_codes(quantize_linears(model.model))
    if method.startswith("lora") and not by_hand:
        heads = [
            name
            for name, part in model.named_children()
            if name.startswith(_HEAD) and list(part.parameters())
        ]
        targets = ENCODER_LINEARS if lora.target_modules == ALL_LINEAR else lora.target_modules
        config = dataclasses.replace(lora, target_modules=targets, modules_to_save=tuple(heads))
        inject_into_base(model, config, variant)
        if beside:
            freeze_parameters_except_lora_and_bias(model.model, "all", layer_norms=True)
    elif method in ("bitfit", "full"):
        freeze_parameters_except_lora_and_bias(model.model, "all" if method == "bitfit" else "none")
        if method == "full":
            model.model.requires_grad_(not only)
            for name in matching_modules(model.model, only, "only"):
                model.model.get_submodule(name).weight.requires_grad_(True)
    model.freeze_pooler()  # nothing reads it
    use_fast_attention(model)
    return model


def _is_by_hand(lora: LoraConfig) -> bool:
    """Whether `LoraRobertaSelfAttention` can hold these adapters."""
    return lora == LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha)


def run_experiment(
    experiment: Experiment,
    output_dir: str | os.PathLike[str] | None = None,
    baselines: bool = False,
    prepared: Prepared | None = None,
    every_split: bool = False,
    keep_predictions: bool = False,
    **options: Any,
) -> Result:
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
    keep_predictions
        Whether the record keeps what comparisons with other runs take: each prediction, row by row, and how
        well a language model still reads other text.
    **options
        Passed on to ``train``: ``resume``, ``progress``, ``checkpoint_every``, ``log_with``, ``cpu``,
        ``shard``. Under ``torchrun`` all processes train together, as there, and the main one writes.

    Returns
    -------
    Result
        ``scores`` has ``"trained"`` and, if asked for, the two baselines by name: all on the test split where
        there is a labelled one, else on validation (SQuAD has no baselines). ``record.extra["splits"]`` has
        rows, scores and the predictions' hash of each split scored.
    """
    if options.get("shard") and experiment.bits:
        raise ValueError(f"bits={experiment.bits}: quantised weights cannot be sharded; leave shard out.")
    processes = PartialState(cpu=stays_on_cpu(options.get("cpu", False)))
    prepared = prepare(experiment) if prepared is None else prepared
    loaded, tokens, _ = prepared
    if loaded.task.generative:
        check_chrf()  # now, and not after the training
    task, recipe, tokenizer = loaded.task, experiment.recipe, _tokenizer_of(experiment.encoder, loaded.task)
    model = _model_of(experiment, task)
    evaluators = make_evaluators(task, tokens, tokenizer, recipe)
    final = "test" if "test" in evaluators else "validation"
    scores = _baselines(experiment, prepared, model, evaluators[final], final) if baselines else {}
    # The split that is looked at while training: rows held out for it, or else validation.
    watched = next(split for split in (HELD_OUT, "validation", final) if split in evaluators)
    record = train(
        model,
        train_loader(tokens["train"], tokenizer, recipe, experiment.seed),
        None,
        None,
        recipe,
        output_dir,
        experiment.seed,
        config=describe(experiment, prepared.data_sha256, _base_sha256(experiment, task, model)),
        scorer=evaluators[watched],
        groups=VARIANTS[experiment.variant].groups if experiment.variant == "loraplus" else None,
        **options,
    )
    splits = {}
    for split in evaluators if every_split else (final,):
        evaluation = _evaluation(evaluators[split], model, record if split == watched else None)
        splits[split] = evaluation.summary(keep_predictions)
    scores["trained"] = splits[final]["scores"]
    record.extra |= {"scored_on": final, "scores": scores, "splits": splits}
    if task.generative:
        record.extra |= written(model, tokenizer, prepared, final)
        if keep_predictions:
            record.extra |= other_text(model, tokenizer)
    if output_dir is not None and processes.is_main_process:
        record.save(Path(output_dir) / "record.json")
    processes.wait_for_everyone()
    return Result(model, record, loaded, scores)


def prepare(experiment: Experiment) -> Prepared:
    """Load a run's data, hold rows out where it asks for that, and tokenise."""
    if is_conversation_file(experiment.task):
        loaded = task_from_conversations(experiment.task)
    elif is_text_file(experiment.task):
        loaded = task_from_file(experiment.task)
    else:
        loaded = load_task(experiment.task, experiment.source)
    return prepare_rows(loaded, experiment.encoder, experiment.recipe, experiment.held_out, experiment.scored)


def prepare_rows(
    loaded: LoadedTask, encoder: str, recipe: Recipe, held_out: float = 0.0, scored: int = 0
) -> Prepared:
    """The same for rows that are loaded already."""
    digest = data_hash(loaded.data)
    if scored:
        loaded = fewer_scored(loaded, scored)
    if held_out:
        loaded = hold_out(loaded, recipe, held_out)
    return Prepared(loaded, tokenize_rows(loaded, _tokenizer_of(encoder, loaded.task), recipe), digest)


def _tokenizer_of(encoder: str, task: Task) -> PreTrainedTokenizerBase:
    return load_lm_tokenizer(encoder) if task.generative else load_tokenizer(encoder)


def _base_of(model: Any) -> nn.Module:
    """What the adapters are in: the wrapper's encoder, or a language model itself."""
    return model.model if isinstance(model, LoraWrapperRoberta) else model


def _base_sha256(experiment: Experiment, task: Task, model: Any) -> str:
    """The hash of the base that a run began with; PiSSA's layers hold what is left of theirs."""
    if experiment.variant != "pissa":
        return encoder_hash(_base_of(model))
    load = load_lm if task.generative else load_encoder
    return base_hash(load(experiment.encoder).model, experiment.bits)


def _model_of(experiment: Experiment, task: Task) -> Any:
    e = experiment
    if task.generative:
        return build_lm(e.encoder, e.method, e.lora, e.variant, e.bits, e.seed)
    options = {"pooling": e.pooling, "head": e.head}
    model = build_model(task, e.method, e.encoder, e.seed, e.lora, e.variant, e.bits, e.only, **options)
    if e.recipe.attention_dropout is not None:
        for module in model.model.modules():
            if isinstance(module, RobertaSelfAttention):
                module.dropout.p = e.recipe.attention_dropout
    if e.start is not None:
        start_from(model, Path(e.start))
    return model


def _baselines(
    experiment: Experiment, prepared: Prepared, model: Any, evaluator: Evaluator, split: str
) -> dict[str, dict[str, float]]:
    if prepared.loaded.task.extractive:
        return {}
    if prepared.loaded.task.generative:
        return {"before training": evaluator(model)}
    loaded, metric = prepared.loaded, load_metric(prepared.loaded.task.metric)
    tokenizer = load_tokenizer(experiment.encoder)
    loaders = make_loaders(loaded, tokenizer, experiment.recipe, experiment.seed, prepared.tokenized)
    frozen = frozen_encoder_baseline(model, loaders, metric, loaded.task.regression, split)
    return {
        "majority class": majority_baseline(loaded, metric, split),
        "frozen encoder, linear probe": frozen,
    }


def _evaluation(evaluator: Evaluator, model: nn.Module, ended: RunRecord | None) -> Any:
    """The evaluation that training ended with, where it is of the model as it is now; else a new one."""
    if ended is not None and evaluator.last is not None and not ended.recipe.get("keep_best"):
        return evaluator.last
    return evaluator.evaluate(model)


def start_from(model: LoraWrapperRoberta, folder: Path) -> None:
    """Copy what an earlier run trained into a fresh model of the same base and method, its head aside.

    The LoRA paper begins MRPC, RTE and STS-B from the adapter that learnt MNLI (section 5.2). The folder is
    an adapter's, or that of a benchmark's run by any method.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no trained weights, or weights of another method, rank or base.
    """
    file = folder / TRAINED
    if not file.is_file():
        start_from_adapter(model, folder)
        return
    with safe_open(file, framework="pt") as stored:
        base = (stored.metadata() or {}).get("base_sha256")
        saved = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    if base != encoder_hash(model.model):
        raise ValueError(f"What {folder} holds was trained on another base; start from a run of this base.")
    saved = {name: value for name, value in saved.items() if not name.startswith(_HEAD)}
    own = {name: value for name, value in adapter_tensors(model).items() if not name.startswith(_HEAD)}
    if {n: v.shape for n, v in saved.items()} != {n: v.shape for n, v in own.items()}:
        raise ValueError(f"What {folder} trained is not what this model trains: start from the same method.")
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)  # own holds the parameters' storage, detached


def describe(experiment: Experiment, data_sha256: str, base_sha256: str) -> dict[str, Any]:
    """The configuration that a record keeps: names without this machine's paths, and two hashes."""
    e, folder = experiment, os.path.isdir(experiment.encoder)
    given = {"arm": e.arm, "only": list(e.only), "scored": e.scored}
    return {name: value for name, value in given.items() if value} | {
        "task": Path(e.task).stem if is_text_file(e.task) else e.task,
        "source": Path(e.source).name,
        "encoder": Path(e.encoder).name if folder else e.encoder,
        "method": e.method,
        "lora": e.lora.to_dict() if e.method.startswith("lora") else None,
        "variant": e.variant,
        "bits": e.bits,
        "pooling": e.pooling,
        "head": e.head,
        "held_out": e.held_out,
        "data_sha256": data_sha256,
        "base_sha256": base_sha256,
    }


def encoder_hash(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's own parameters, whatever adapters it has; see `parameters_hash`."""
    return parameters_hash(encoder, factor_names(encoder))


def base_hash(model: nn.Module, bits: int | None = None) -> str:
    """The same of a base as a run with ``bits`` holds it; ``model`` stays as it is."""
    if bits:
        from lora_tutorial.quant.linear4bit import quantize_linears  # needs bitsandbytes

        model = quantize_linears(copy.deepcopy(model))
    return encoder_hash(model)


def trained_file(model: nn.Module, base_sha256: str = "") -> bytes:
    """The safetensors file that holds everything that trained: an adapter's own, or all of a full copy."""
    tensors = {name: value.cpu().contiguous() for name, value in adapter_tensors(model).items()}
    # one entry: several are written in an order that changes, and so would the hash of the file
    about = {"base_sha256": base_sha256} if base_sha256 else {"format": "pt"}
    return safetensors.torch.save(tensors, metadata=about)


def save_run_adapter(result: Result, folder: Path) -> int:
    """Save a run's adapter with what ``lora-tutorial predict`` needs; returns the folder's size in bytes."""
    task, record = result.loaded.task, result.record
    metadata = {
        "task": task.name,
        "columns": list(task.columns),
        "labels": list(task.labels),
        "max_length": record.recipe["max_length"],
        "scored_on": record.extra["scored_on"],
        "scores": result.scores["trained"],
        "data_sha256": record.config["data_sha256"],
    }
    processes = PartialState()
    if processes.is_main_process:
        save_adapter(result.model, folder, metadata)
    processes.wait_for_everyone()
    return sum(file.stat().st_size for file in folder.iterdir())
