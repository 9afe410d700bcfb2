"""Save what was trained, and nothing else; load it into the base it was trained on, and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from lora_tutorial.adapters import validation
from lora_tutorial.adapters.validation import FORMAT, SETTINGS, TENSORS, checksum
from lora_tutorial.lm.basics import is_language_model
from lora_tutorial.lm.models import load_lm
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import factor_names, lora_modules
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.lora.variants import variant_of
from lora_tutorial.quant.inject import inject_into_base
from lora_tutorial.storage.files import atomic_folder, atomic_write_bytes, atomic_write_json, bundled_folder


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything the adapter consists of: LoRA factors and whatever else trains, by name."""
    factors = factor_names(model)
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad or n in factors}


def save_adapter(
    model: nn.Module, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> Path:
    """Write ``adapter.safetensors`` and ``adapter.json`` into ``folder``, whole or not at all.

    Parameters
    ----------
    model
        A `LoraWrapperRoberta`, or any model that `inject_lora` has changed.
    folder
        Made if it does not exist; an adapter already in it is replaced in one step.
    metadata
        Whatever else should travel along as JSON: task, scores, labels, licence. ``labels`` are one for each
        output of a classifier.

    Raises
    ------
    ValueError, FileExistsError
        If the model holds no adapter, or one of PiSSA; a tensor is not finite or has no data (``"meta"``);
        the metadata are no JSON; or the folder holds anything but an adapter.
    """
    folder = Path(folder)
    if not any(True for _ in lora_modules(model)):
        raise ValueError("The model holds no LoRA adapter; inject one before saving.")
    if variant_of(model) == "pissa":
        raise ValueError(
            "A PiSSA adapter fits the residual it was trained on and no base that anyone has. Save what "
            "pissa_to_lora(model, base) makes of it."
        )
    validation.check_only(folder, (TENSORS, SETTINGS), "an adapter")
    tensors = adapter_tensors(model)
    validation.check_finite(tensors)
    settings = {
        "format": FORMAT,
        "base": _describe(model, folder) | {"sha256_of_frozen_parameters": parameters_hash(model, tensors)},
        "parameters": sum(value.numel() for value in tensors.values()),
        "metadata": metadata or {},
    }
    try:
        settings = json.loads(json.dumps(settings, allow_nan=False))  # as it will be read: lists, no tuples
    except (TypeError, ValueError) as error:
        raise ValueError(f"The metadata are no JSON ({error}); give texts, numbers and lists.") from error
    validation.check_settings(folder / SETTINGS, settings)
    data = save({n: t.cpu().contiguous() for n, t in tensors.items()}, metadata={"format": "pt"})
    with atomic_folder(folder) as new:
        atomic_write_bytes(new / TENSORS, data)
        atomic_write_json(new / SETTINGS, settings | {"sha256": checksum(settings, data)})
    return folder


def _describe(model: nn.Module, folder: Path) -> dict[str, Any]:
    """How to build the model again: the wrapper's arguments, or a class with its configuration."""
    wrapper, config = getattr(model, "init_args", None), getattr(model, "config", None)
    name = wrapper["model_id"] if wrapper else getattr(config, "name_or_path", "")
    place = {}
    if name and not Path(name).is_absolute() and Path(name).is_dir():  # means nothing in another directory
        place = {"folder": Path(os.path.relpath(name, folder)).as_posix()}
    injected: dict[str, Any] = {}
    settings: Any = getattr(model, "lora_config", None)
    if settings is not None:
        injected = {"lora": settings.to_dict(), "variant": variant_of(model)}
    if wrapper:
        return {"name": name, **place, "wrapper": wrapper, **injected}
    labels = {str(key): label for key, label in getattr(config, "id2label", {}).items()}
    return {"name": name, **place, "class": type(model).__name__, "id2label": labels, **injected}


def load_adapter(
    folder: str | os.PathLike[str], base: nn.Module | str | os.PathLike[str] | None = None
) -> nn.Module:
    """Put a saved adapter back onto its base, with head, biases and number of labels.

    Parameters
    ----------
    folder
        What `save_adapter` wrote.
    base
        The model without adapters; or where the base is now, as for ``load_encoder``, or ``load_lm`` if it is
        a causal language model. Left out, it is loaded again by the name it had.

    Returns
    -------
    nn.Module
        The adapted model, in evaluation mode; ``model.adapter_metadata`` is what was saved along.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, damaged or changed, a tensor is missing, unexpected or of another shape, or the
        base is not the one that the adapter was trained on. A base that was given is then as it was.
    """
    settings, tensors = read_adapter(folder)
    described = settings["base"]
    model = base if isinstance(base, nn.Module) else _load_base(folder, settings, base)
    if "wrapper" in described and model is base:
        raise ValueError("This adapter builds its own wrapper; call load_adapter without a base model.")
    validation.check_length(folder, settings["metadata"], getattr(model, "config", None))
    for name in sorted(dict(model.named_parameters()).keys() & tensors.keys()):
        validation.check_shape(name, tensors[name], model.get_parameter(name))
    trial = _adapt(validation.shapes_of(model), described) if "lora" in described else model
    validation.check_fit(folder, tensors, dict(trial.named_parameters()), needed_names(trial))
    if parameters_hash(model, {*tensors, *factor_names(model)}) != described["sha256_of_frozen_parameters"]:
        raise ValueError(
            f"This base is not the one that the adapter was trained on ({described['name'] or 'unnamed'}): "
            "their frozen parameters differ. Load that one, or train an adapter for this one."
        )
    for name, parameter in _adapt(model, described).named_parameters():
        parameter.requires_grad_(name in tensors)  # what was saved is what trained: training can go on
        if name in tensors:
            parameter.detach().copy_(tensors[name])
    model.adapter_metadata = settings["metadata"]
    return model.eval()


def start_from_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Copy another task's adapter into a fresh model of the same base; the head stays as it is.

    The LoRA paper begins MRPC, RTE and STS-B from the adapter that learnt MNLI (section 5.2).

    Parameters
    ----------
    model
        A fresh `LoraWrapperRoberta` with the same parameters to train, its head aside.
    folder
        What `save_adapter` wrote for the other task.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no adapter, or one of another base, rank or set of trained parameters.
    """
    settings, tensors = read_adapter(folder)
    body = {n: t for n, t in tensors.items() if not n.startswith("finetune_head_")}
    own = {n: p for n, p in adapter_tensors(model).items() if not n.startswith("finetune_head_")}
    if body.keys() != own.keys():
        differing = sorted(body.keys() ^ own.keys())
        raise ValueError(
            f"The adapter in {folder} trained other parameters than this model will, such as "
            f"{differing[0]}: start from one of the same method."
        )
    for name, value in body.items():
        validation.check_shape(name, value, own[name])
    heads = {name for name, _ in model.named_parameters() if name.startswith("finetune_head_")}
    if parameters_hash(model, own.keys() | heads) != settings["base"]["sha256_of_frozen_parameters"]:
        raise ValueError(f"The adapter in {folder} was trained on another base; start from one of this base.")
    for name, value in body.items():
        own[name].copy_(value)  # own holds the parameters' storage, detached
    return model


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors in an adapter folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, is not as it was saved, holds something of another kind, or a tensor is not
        finite.
    """
    folder = Path(folder)
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no adapter folder: {name} is missing.")
    settings, data = validation.read_json(folder / SETTINGS), (folder / TENSORS).read_bytes()
    if settings.get("format") not in (1, FORMAT):
        raise ValueError(
            f"{folder} has adapter format {settings.get('format')!r}; this version reads 1 and {FORMAT}."
        )
    checked = settings["format"] != 1 or "sha256" in settings
    if checked and settings.get("sha256") != checksum(settings, data):
        raise validation.damaged(folder, "its files are not those that were saved (their SHA-256 differs)")
    validation.check_settings(folder / SETTINGS, settings)
    return settings, validation.read_tensors(folder / TENSORS, data)


def base_of(folder: str | os.PathLike[str], settings: dict[str, Any]) -> str:
    """Where an adapter's base is, as ``load_encoder`` or ``load_lm`` takes it.

    Parameters
    ----------
    folder, settings
        The adapter's folder, and what `read_adapter` returns for it.

    Raises
    ------
    FileNotFoundError
        If the base was in a folder with a relative path, and is no longer where the adapter saw it.
    """
    name, place = settings["base"]["name"], settings["base"].get("folder")
    if place is None:
        return name
    for path in (Path(folder, place), Path(name)):
        if path.is_dir():
            return str(path.resolve())
    raise FileNotFoundError(
        f"The base of the adapter in {folder} was in a folder {name!r}, {place} from the adapter, and is "
        "not there. Put it back, or say where it is: load_adapter(folder, base=...)."
    )


def needed_names(model: nn.Module) -> set[str]:
    """What an adapter's file must hold for an adapted model: every factor, and the head of a wrapper."""
    own = dict(model.named_parameters()) if hasattr(model, "init_args") else {}
    return factor_names(model) | {name for name in own if not name.startswith("model.")}


def _adapt(model: nn.Module, described: dict[str, Any]) -> nn.Module:
    if "lora" not in described:  # a wrapper has its adapters already
        return model
    config = LoraConfig.from_dict(described["lora"])
    return inject_into_base(model, config, described.get("variant", "lora"))


def _load_base(
    folder: str | os.PathLike[str], settings: dict[str, Any], given: str | os.PathLike[str] | None
) -> nn.Module:
    described = settings["base"]
    name = base_of(folder, settings) if given is None else os.fspath(given)
    if "wrapper" in described:
        from lora_tutorial.models.roberta import LoraWrapperRoberta

        return LoraWrapperRoberta(**described["wrapper"] | {"model_id": name})
    if name and is_language_model(described["class"]):
        return load_lm(name).model
    import transformers

    from lora_tutorial.models.encoders import load_encoder

    model_class = getattr(transformers, described["class"], None)
    if (
        not name
        or not isinstance(model_class, type)
        or not issubclass(model_class, transformers.RobertaPreTrainedModel)
    ):
        kind = "is no RoBERTa model or causal language model" if name else "has no name"
        raise ValueError(f"This adapter's base, a {described['class']}, {kind} to load it by: pass base=.")
    labels = {int(key): label for key, label in described["id2label"].items()}
    return load_encoder(name, model_class=model_class, id2label=labels).model


def stored_adapters(base: str | None = None) -> dict[str, Path]:
    """The folder of each adapter that comes with the book, by task, in order of name; of one base, if named.

    They are in ``benchmarks/adapters`` of the repository; an installed package carries a copy.
    """
    paths = sorted(bundled_folder("shipped").glob(f"*/{SETTINGS}"))
    found = {path.parent.name: path.parent for path in paths}
    if base is None:
        return found
    return {task: folder for task, folder in found.items() if read_adapter(folder)[0]["base"]["name"] == base}


def stored_adapter(task: str) -> Path:
    """The folder of one of them, for ``load_adapter`` or an ``AdapterShelf``.

    Raises
    ------
    FileNotFoundError
        If none comes for that task.
    """
    stored = stored_adapters()
    if task not in stored:
        raise FileNotFoundError(
            f"There is no adapter folder {task!r}, and the adapters that come with the book are "
            f"{', '.join(stored) or 'not installed'}."
        )
    return stored[task]
