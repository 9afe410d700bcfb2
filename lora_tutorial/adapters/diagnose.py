"""What is wrong with an adapter, as far as its folder shows: ours or PEFT's, mostly without its base."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lora_tutorial.adapters import validation

#: Scales (``lora_alpha / r``, or over its root) beyond these are a slip: published ones are from 1/16 to 64.
SCALES = (1 / 256, 256.0)
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<layer>.+?)\.lora_(?:embedding_)?(?:(?P<part>\w+)_)?(?P<side>[AB])(?:\.weight)?")
_ALL = "all-linear"
_AGAIN = "Copy the folder again, or save the adapter again."
_TIED = ("embed_tokens.weight", "lm_head.weight")


class Finding(NamedTuple):
    """Something wrong: what was found, and what to do about it (where the first does not say so already)."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} {self.advice}".rstrip()


class _Folder(NamedTuple):
    """What was read: settings, tensors, and LoRA's words for how they are used, whoever wrote them."""

    path: Path
    ours: bool
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    lora: dict[str, Any]

    def factors(self) -> dict[tuple[str, str], dict[str, Tensor]]:
        """Layer and part of it (an attention's query, say) to its ``A`` and ``B``."""
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, value in self.tensors.items():
            if match := _FACTOR.fullmatch(name):
                key = match["layer"].removeprefix(_PREFIX), match["part"] or ""
                found.setdefault(key, {})[match["side"]] = value
        return found


def diagnose(folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Look for what makes an adapter do nothing, or something else than it was trained for.

    Parameters
    ----------
    folder
        What `save_adapter`, `export_peft` or PEFT's ``save_pretrained`` wrote.
    base
        Its base, as for ``load_lm`` or ``load_encoder``. With it the adapter is loaded too, so that another
        base, and names and shapes that do not fit, are found; it takes seconds. Left out, no model is loaded.

    Returns
    -------
    list of Finding
        Empty where nothing was found.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter at all.
    """
    path = Path(folder)
    read = _read(path)
    if isinstance(read, Finding):
        return [read]
    files, weights = (_checksum, _empty, _not_finite, _names), (_pairs, _untrained)
    checks = (*files, *weights, _scale, _targets, _whole, _tied, _place)
    try:
        found = [finding for check in checks for finding in check(read)]
    except (TypeError, AttributeError, KeyError, ValueError, RuntimeError, re.error) as error:
        return [Finding(f"A setting or tensor is of a kind that no adapter has ({error}).", _AGAIN)]
    if base is not None and (refusal := _refusal(read, base)):
        found.append(Finding(refusal, ""))
    return found


def _read(path: Path) -> _Folder | Finding:
    """The folder's content, or why it cannot be looked into."""
    ours, theirs = (
        (validation.SETTINGS, validation.TENSORS),
        (validation.PEFT_SETTINGS, validation.PEFT_TENSORS),
    )
    kinds = [names for names in (ours, theirs) if any((path / name).is_file() for name in names)]
    if not kinds:
        raise FileNotFoundError(f"{path} holds no adapter: neither {ours[0]} nor {theirs[0]} is in it.")
    settings_name, tensors_name = kinds[0]
    for name in (settings_name, tensors_name):
        if not (path / name).is_file():
            pickled = (path / "adapter_model.bin").is_file()
            return Finding(
                f"{name} is missing.",
                "adapter_model.bin is pickled and not read: save it again as safetensors."
                if pickled
                else _AGAIN,
            )
    try:
        settings = validation.read_json(path / settings_name)
        lora = _lora_of(settings, kinds[0] == ours)
        tensors = load((path / tensors_name).read_bytes())
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        return Finding(f"A file is damaged ({' '.join(str(error).split()).rstrip('.')}).", _AGAIN)
    return _Folder(path, kinds[0] == ours, settings, tensors, lora)


def _lora_of(settings: dict[str, Any], ours: bool) -> dict[str, Any]:
    """Rank, scale and targets in `LoraConfig`'s words; of a wrapper's own adapters, its arguments."""
    if not ours:
        return settings
    base = settings["base"]
    if "lora" in base:
        return base["lora"]
    rank, alpha = base["wrapper"].get("lora_rank"), base["wrapper"].get("lora_alpha")
    return {"r": rank, "lora_alpha": rank if alpha is None else alpha}


def _checksum(found: _Folder) -> Iterator[Finding]:
    said = found.settings.get("sha256")
    if not found.ours or (said is None and found.settings.get("format") == 1):
        return
    if said != validation.checksum(found.settings, (found.path / validation.TENSORS).read_bytes()):
        yield Finding(
            "The files are not those that were saved: their SHA-256 differs from the one in adapter.json.",
            "Copy the folder again; load_adapter refuses it as it is.",
        )


def _empty(found: _Folder) -> Iterator[Finding]:
    held = [name for name, value in found.tensors.items() if value.numel()]
    if not held or not found.factors():
        what = "no tensor with a value" if not held else f"{len(held)} tensors and no lora_A or lora_B"
        yield Finding(
            f"The adapter is empty: its file holds {what}.",
            "It was saved where the weights were not: under ZeRO-3 or FSDP gather them first, and save the "
            "adapted model, not its base.",
        )


def _not_finite(found: _Folder) -> Iterator[Finding]:
    bad = [name for name, value in found.tensors.items() if not torch.isfinite(value.float()).all()]
    if bad:
        yield Finding(
            f"{len(bad)} of {len(found.tensors)} tensors hold an infinity or NaN, such as {bad[0]}.",
            "Training diverged: train again at a lower rate, in float32 or bfloat16.",
        )


def _names(found: _Folder) -> Iterator[Finding]:
    odd = [name for name in found.tensors if not name.startswith(_PREFIX)]
    if odd and not found.ours:
        yield Finding(
            f"{len(odd)} tensors have names that PEFT does not look for, such as {odd[0]}: it would leave "
            "them out and begin anew without an error.",
            f"Their names must begin with {_PREFIX}; save with the PeftModel's own save_pretrained.",
        )


def _pairs(found: _Folder) -> Iterator[Finding]:
    alone = [
        (layer, side) for (layer, _), pair in found.factors().items() for side in {"A", "B"} - pair.keys()
    ]
    if alone:
        layer, side = alone[0]
        yield Finding(f"{layer} has no lora_{side}.", "The file is not whole: save the adapter again.")


def _untrained(found: _Folder) -> Iterator[Finding]:
    all_B = {layer: pair["B"] for layer, pair in found.factors().items() if "B" in pair}
    zero = [".".join(filter(None, layer)) for layer, value in all_B.items() if not value.any()]
    if zero and len(zero) == len(all_B):
        yield Finding(
            "Every lora_B is zero, so the adapter changes nothing.",
            "Either nothing was learnt (no gradient reached it: under reentrant activation checkpointing "
            "call enable_input_require_grads), or a run that should have gone on from an adapter began anew.",
        )
    elif zero:
        yield Finding(
            f"lora_B is zero in {len(zero)} of {len(all_B)} layers, such as {zero[0]}: they learnt nothing.",
            "Leave out of target_modules what is never called, or see why no gradient reaches it.",
        )


def _scale(found: _Folder) -> Iterator[Finding]:
    r: Any = found.lora.get("r")
    alpha: Any = found.lora.get("lora_alpha")
    if not (validation.is_kind(r, int) and r > 0 and validation.is_kind(alpha, int | float)):
        yield Finding(
            f"Rank {r!r} and lora_alpha {alpha!r} give no scale.", "Save the adapter with its settings again."
        )
        return
    scale = alpha / (math.sqrt(r) if found.lora.get("use_rslora") else r)
    if not SCALES[0] <= scale <= SCALES[1]:  # false for NaN too
        yield Finding(
            f"The scale is {scale:g} (lora_alpha {alpha:g}, r {r}): no adapter is trained at that.",
            f"Put the lora_alpha that it was trained with into its settings; the usual is r to {2 * r}.",
        )
    if found.lora.get("rank_pattern"):
        return
    ranks = {int(pair["A"].shape[0]) for pair in found.factors().values() if "A" in pair}
    if other := sorted(ranks - {r}):
        yield Finding(
            f"The settings say rank {r}, and lora_A has {other[0]} rows.",
            "The settings are another adapter's: put its own beside the tensors.",
        )


def _targets(found: _Folder) -> Iterator[Finding]:
    layers = {layer for layer, _ in found.factors()}
    wanted = found.lora.get("target_modules")
    if not layers or not wanted or wanted == _ALL:
        return
    if isinstance(wanted, str):
        unmatched = [] if any(re.fullmatch(wanted, layer) for layer in layers) else [wanted]
        strays = [layer for layer in layers if not re.fullmatch(wanted, layer)]
    else:
        unmatched = [entry for entry in wanted if not any(_ends(layer, entry) for layer in layers)]
        strays = [layer for layer in layers if not any(_ends(layer, entry) for entry in wanted)]
    if unmatched:
        yield Finding(
            f"target_modules names {', '.join(sorted(unmatched))}, and no tensor belongs to such a layer.",
            "Correct the name, or take it out.",
        )
    if strays:
        yield Finding(
            f"{len(strays)} layers have tensors and are not in target_modules, such as {min(strays)}: "
            "whoever loads the adapter leaves them out.",
            "Put the settings that it was trained with beside the tensors.",
        )


def _whole(found: _Folder) -> Iterator[Finding]:
    """Modules that train whole; PEFT names both heads where a model has one, and we name a tied pair once."""
    wanted = found.lora.get("modules_to_save") or ()
    held = {entry for entry in wanted if any(f".{entry}." in f".{name}" for name in found.tensors)}
    for either in ({"classifier", "score"}, {"embed_tokens", "lm_head"} if found.ours else set()):
        held |= either if held & either else set()
    for entry in sorted(set(wanted) - held):
        yield Finding(
            f"modules_to_save names {entry}, and no tensor belongs to it: whoever loads the adapter has it "
            "as it was before training, or drawn at random.",
            "Save the adapter again with it.",
        )


def _ends(layer: str, entry: str) -> bool:
    return layer == entry or layer.endswith(f".{entry}")


def _tied(found: _Folder) -> Iterator[Finding]:
    """In PEFT's files alone: ours has a shared weight once, and puts it back as one."""
    if found.ours:
        return
    values = {
        end: value for name, value in found.tensors.items() for end in _TIED if name.endswith(f".{end}")
    }
    tied = _config_of_base(found).get("tie_word_embeddings")
    if tied is False or not values:
        return
    if len(values) == 1:
        there = next(iter(values))
        gone = next(end for end in _TIED if end not in values)
        shared = "the base shares one weight" if tied else "where the base shares one weight"
        yield Finding(
            f"{there} was trained and saved, and {gone} was not; {shared} between them, they drift apart.",
            "Name both in modules_to_save (or ensure_weight_tying=True) and train again.",
        )
    elif tied and not torch.equal(*values.values()):
        yield Finding(
            "embed_tokens and lm_head were saved with two values, and the base has one weight for both.",
            "Set tie_word_embeddings to false in the base's config.json before you merge, or one is lost.",
        )


def _config_of_base(found: _Folder) -> dict[str, Any]:
    """``config.json`` of a base that lies in a folder; empty where it does not."""
    name = found.settings.get("base_model_name_or_path")
    for folder in (found.path / "base", Path(name) if isinstance(name, str) and name else found.path):
        try:
            return validation.read_json(folder / "config.json")
        except (OSError, ValueError):
            continue
    return {}


def _place(found: _Folder) -> Iterator[Finding]:
    """A base in a folder that is not there."""
    if found.ours:
        name, place = found.settings["base"].get("name"), found.settings["base"].get("folder")
        if place and not (found.path / place).is_dir() and not Path(str(name)).is_dir():
            yield Finding(
                f"Its base, the folder {name}, is not there.",
                "Say where it is: load_adapter(folder, base=...).",
            )
        return
    name = found.settings.get("base_model_name_or_path")
    if isinstance(name, str) and Path(name).is_absolute() and not Path(name).is_dir():
        beside = (found.path / "base").is_dir()
        yield Finding(
            f"Its base, the folder {name}, is not there.",
            "The folder was moved: call relocate_peft on it."
            if beside
            else "Put the base's new place there.",
        )


def _refusal(found: _Folder, base: str | os.PathLike[str]) -> str:
    """What is said when the adapter is put onto a base; empty if it fits."""
    from lora_tutorial.adapters.files import load_adapter
    from lora_tutorial.adapters.peft import import_peft

    try:
        (load_adapter if found.ours else import_peft)(found.path, os.fspath(base))
    except (ValueError, FileNotFoundError) as error:
        return " ".join(str(error).split())
    return ""
