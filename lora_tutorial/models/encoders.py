"""RoBERTa encoders: one that needs no hub, any checkpoint from the hub or a folder, and bare shapes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, RobertaConfig, RobertaModel
from transformers import RobertaPreTrainedModel as RobertaFamily
from transformers.utils import logging as transformers_logging

from lora_tutorial.lora.merge import factor_names
from lora_tutorial.lora.parameters import ParameterCount
from lora_tutorial.models import minilm
from lora_tutorial.storage import hub

Weights = Literal["pretrained", "random", "meta"]

_INSTEAD = (
    "without it use 'minilm', the path of a RoBERTa checkpoint folder, or weights='random' with "
    "'roberta-base', 'roberta-large' or 'distilroberta-base'"
)
# RobertaConfig's own defaults have 512 positions, two token types and eps 1e-12: no published RoBERTa has.
_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_SHAPES: dict[str, dict[str, Any]] = {
    "minilm": minilm.CONFIG,
    "roberta-base": _ROBERTA,
    "distilroberta-base": _ROBERTA | {"num_hidden_layers": 6},
    "roberta-large": _ROBERTA
    | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


#: The parts of an encoder, each with the test that a parameter's name passes; the first that fits counts.
PARTS: dict[str, Callable[[str], bool]] = {
    "word embeddings": lambda name: "word_embeddings" in name,
    "other embeddings": lambda name: "_embeddings" in name,
    "LayerNorms": lambda name: "LayerNorm" in name,
    "attention": lambda name: ".attention." in name,
    "feed-forward": lambda name: ".intermediate." in name or ".output." in name,
    "pooler": lambda name: ".pooler." in name or name.startswith("pooler."),
    "head": lambda name: True,
}


class Origin(NamedTuple):
    """The public name of something and the licence that its makers gave it."""

    name: str
    licence: str


#: Where the weights of an encoder without a hub come from.
ENCODERS: dict[str, Origin] = {
    "minilm": Origin("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}


class Encoder(NamedTuple):
    """A model in evaluation mode, and its tokenizer (``None`` where there is none)."""

    model: RobertaFamily
    tokenizer: PreTrainedTokenizerBase | None


def load_encoder(
    name: str | os.PathLike[str],
    weights: Weights = "pretrained",
    model_class: type[RobertaFamily] = RobertaModel,
    **config_overrides: Any,
) -> Encoder:
    """Load a RoBERTa model and its tokenizer, without output on either stream.

    Parameters
    ----------
    name
        ``"minilm"`` (needs no hub), a checkpoint on the hub such as ``"roberta-base"``, or a folder with
        ``config.json`` and safetensors.
    weights
        ``"pretrained"``; ``"random"``, drawn from torch's global generator (seed it first); or ``"meta"``,
        shapes without memory. The last two download nothing for ``"minilm"``, ``"roberta-base"``,
        ``"roberta-large"``, ``"distilroberta-base"`` and folders, and bring a tokenizer only if one is on
        this machine already.
    model_class
        ``RobertaModel``, ``RobertaForSequenceClassification`` or another RoBERTa class. A head that the
        checkpoint lacks is drawn from torch's global generator.
    **config_overrides
        Values for ``RobertaConfig``, such as ``num_labels=3`` or ``attn_implementation="eager"``.

    Raises
    ------
    ValueError
        If ``weights`` or ``name`` is not one of the above, or the checkpoint is not a whole RoBERTa.
    TypeError
        If ``model_class`` is no RoBERTa class, or an override is not a setting of ``RobertaConfig``.
    FileNotFoundError
        If ``name`` is the path of a folder that is missing or holds no checkpoint.
    HubUnreachableError
        If the hub is needed and does not answer.
    AssetError
        If ``"minilm"`` is needed and cannot be fetched.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r} is not one of {', '.join(map(repr, get_args(Weights)))}.")
    if not (isinstance(model_class, type) and issubclass(model_class, RobertaFamily)):
        raise TypeError(f"model_class must be a RoBERTa class such as RobertaModel, not {model_class!r}.")
    for key in config_overrides:
        if key != "attn_implementation" and not hasattr(RobertaConfig(), key):
            raise TypeError(f"{key}={config_overrides[key]!r}: RobertaConfig has no setting {key!r}.")
    if weights == "pretrained":
        folder = _checkpoint(name)
        model = _load_weights(folder, model_class, config_overrides)
        model.config.name_or_path = str(name)  # what loads it again anywhere, not this machine's cache
        tokenizer = _local_tokenizer(folder)
        if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"The tokenizer in {folder} knows {len(tokenizer)} tokens and the model "
                f"{model.config.vocab_size}: save the model with its own tokenizer."
            )
        return Encoder(model, tokenizer)
    settings = _settings(name)
    if "num_labels" in config_overrides:  # a saved head's label names would contradict it
        settings = {key: value for key, value in settings.items() if key not in ("id2label", "label2id")}
    config = RobertaConfig(**(settings | config_overrides))
    with torch.device("meta") if weights == "meta" else contextlib.nullcontext():
        model = model_class(config).eval()
    return Encoder(model, _local_tokenizer(_local_folder(name)))


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to ``name`` (see ``load_encoder``, also for what it raises).

    Raises
    ------
    FileNotFoundError
        If the folder holds a model without a tokenizer.
    """
    folder = _checkpoint(name)
    tokenizer = _local_tokenizer(folder)
    if tokenizer is None:
        raise FileNotFoundError(f"{folder} has no tokenizer.json; save the tokenizer beside the model.")
    return tokenizer


def parameter_table(model: nn.Module) -> dict[str, ParameterCount]:
    """Count the parameters of an encoder part by part: ``"LoRA"`` first, ``"all"`` last, no empty parts."""
    factors = factor_names(model)
    counts = {part: [0, 0] for part in ("LoRA", *PARTS, "all")}
    for name, parameter in model.named_parameters():
        part = "LoRA" if name in factors else next(part for part, fits in PARTS.items() if fits(name))
        for row in (counts[part], counts["all"]):
            row[0] += parameter.numel() * parameter.requires_grad
            row[1] += parameter.numel()
    return {part: ParameterCount(*row) for part, row in counts.items() if row[1] or part == "all"}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading reports and progress bars of transformers and the hub, then restore them."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            enable_progress_bars()


def _local_folder(name: str | os.PathLike[str]) -> Path | None:
    """The checkpoint's folder if it is on this machine, without touching a network."""
    if name == "minilm":
        return minilm.target_folder() if minilm.target_folder().is_dir() else None
    if Path(name).is_dir():
        return Path(name)
    return hub.cached_checkpoint(str(name))


def _local_tokenizer(folder: Path | None) -> PreTrainedTokenizerBase | None:
    # Without these files transformers makes a tokenizer of five tokens and says nothing.
    files = ("tokenizer.json", "vocab.json", "vocab.txt")
    if folder is None or not any((folder / file).is_file() for file in files):
        return None
    with quiet():
        return AutoTokenizer.from_pretrained(folder)


def _checkpoint(name: str | os.PathLike[str]) -> Path:
    """Turn any accepted name into a folder that holds a RoBERTa checkpoint."""
    if name == "minilm":
        return minilm.minilm_folder()
    text = os.fspath(name)
    if not text.strip():
        raise ValueError(f"The encoder's name is empty; {_INSTEAD}.")
    if not Path(text).is_dir() and (not isinstance(name, str) or text.startswith((".", "~", os.sep))):
        raise FileNotFoundError(f"There is no folder {text}; give a RoBERTa checkpoint folder or 'minilm'.")
    return Path(text) if Path(text).is_dir() else hub.checkpoint_folder(text, _INSTEAD)


def _settings(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration behind ``name``, from the built-in table where it is known."""
    known = str(name).removeprefix("FacebookAI/")
    return dict(_SHAPES[known]) if known in _SHAPES else _read_config(_checkpoint(name))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no config.json; give the folder of a RoBERTa checkpoint."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{folder / 'config.json'} is not JSON ({error}); save the checkpoint again."
        ) from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "roberta":
        raise ValueError(
            f"{folder} holds a {kind!r} checkpoint, and this package adapts 'roberta' ones only."
        )
    return settings


def _load_weights(folder: Path, model_class: type[RobertaFamily], overrides: dict[str, Any]) -> RobertaFamily:
    _read_config(folder)
    if not any(folder.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no model.safetensors; pickled weights are not read: save it anew."
        )
    try:
        with quiet():
            loaded: Any = model_class.from_pretrained(
                folder, output_loading_info=True, dtype=torch.float32, **overrides
            )
            model, report = loaded
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The weights in {folder} cannot be read ({error}); remove that folder or save anew."
        ) from error
    except RuntimeError as error:  # shapes; transformers names them only in its log
        raise ValueError(
            f"The weights in {folder} have other shapes than {model_class.__name__} with {overrides} needs; "
            "ask for the number of labels and the sizes that were saved."
        ) from error
    encoder = ("embeddings.", "encoder.")  # a missing pooler or head is drawn; a missing layer is an error
    missing = sorted(k for k in report["missing_keys"] if k.removeprefix("roberta.").startswith(encoder))
    if missing:
        raise ValueError(
            f"{folder} is not a whole RoBERTa: {len(missing)} weights such as {missing[0]} are missing."
        )
    return model
