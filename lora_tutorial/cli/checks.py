"""What is wrong with a command, found before torch is imported, a row is loaded or a file is written.

The tables of tasks, recipes and settings need no torch. What they cannot tell (whether tensors fit, whether a
checkpoint is whole) is found later, by whoever reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_tutorial.cli.screen import process
from lora_tutorial.data.own_file import is_text_file, task_from_file
from lora_tutorial.data.tasks import TASKS, Task, find_source, get_task
from lora_tutorial.lm.basics import check_chrf, is_language_model, is_lm_adapter
from lora_tutorial.lm.instructions import is_conversation_file, task_from_conversations
from lora_tutorial.lora.config import ALL_LINEAR, LoraConfig
from lora_tutorial.storage.files import bundled_folder, folder_lock, lock_file
from lora_tutorial.training.recipes import METHODS, Recipe

# Copies of what models, adapters and accelerate say, where saying it takes torch; a test compares them.
HEADS = ("tutorial", "roberta")
EVALUATION_BATCH = 64
WIDTHS = {"minilm": 384, "roberta-base": 768, "distilroberta-base": 768, "roberta-large": 1024}
LM, LM_METHODS, LM_ROWS = "smollm2", ("lora", "full"), {"smollm2": 192}  # the narrowest matrix: keys
#: What ``train`` takes where nothing is said, for an encoder and for a language model.
DEFAULTS = {"encoder": "minilm", "method": "lora+bias+norm", "recipe": "quick"}
LM_DEFAULTS = {"encoder": LM, "method": "lora", "recipe": "chat"}
# fmt: off
TRACKERS = (
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb",
)
# fmt: on
SETTINGS, TENSORS, FORMATS = "adapter.json", "adapter.safetensors", (1, 2)
PEFT_SETTINGS, PEFT_TENSORS = "adapter_config.json", "adapter_model.safetensors"
ADVICE = "Copy the adapter again, or train it again."
_AN_LM = (
    "is a language model, and an encoder is needed here: leave --encoder out, or train on docstrings or on a "
    "file of conversations (JSON lines with instruction and output, or with messages)."
)
_NO_LM = (
    f"is no language model, and one is needed here: {LM}, or a checkpoint for ...ForCausalLM, in a folder "
    "or on the hub."
)
FEWEST = 10  # training rows of each class, without which the baselines cannot be fitted


def check_task(name: str, source: str) -> Task:
    """The task, of the table or of a file, if its data can be found."""
    if is_conversation_file(name):
        return task_from_conversations(name).task
    if is_text_file(name):
        return task_from_file(name).task
    task = get_task(name)
    find_source(name, source)
    return task


def is_generative(name: str) -> bool:
    """Whether a task is one for a language model, as far as its name or its file's first line tells."""
    return TASKS[name].generative if name in TASKS else is_conversation_file(name)


def check_lm_options(name: str, method: str, start: Path | None, head: str | None) -> None:
    """What of an encoder's options a language model has no use for, and what scores its answers."""
    if method not in LM_METHODS:
        raise ValueError(
            f"{name} is a task for a language model, which is trained by --method {' or '.join(LM_METHODS)}; "
            f"got {method!r}."
        )
    for option, value in (("--head", head), ("--start", start)):
        if value is not None:
            raise ValueError(f"{option} is for encoders, and {name} is for a language model; leave it out.")
    check_chrf()


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}; got {value!r}.")


def check_method(method: str, start: Path | None, head: str) -> None:
    """What trains, and whether it fits what it begins with."""
    check_choice("method", method, METHODS)
    check_choice("head", head, HEADS)
    if start is not None and not method.startswith("lora"):
        raise ValueError(f"--start begins with an adapter, and --method {method} trains none; leave one out.")


def check_number(option: str, value: int, low: int, high: int) -> None:
    """A whole number between two others, both included."""
    if not low <= value <= high:
        raise ValueError(f"{option} {value} is not from {low} to {high}.")


def check_recipe(recipe: Recipe, task: Task) -> None:
    """What the recipe cannot judge alone."""
    if recipe.learning_rate > 1:
        raise ValueError(
            f"--learning-rate {recipe.learning_rate:g} is above 1: AdamW moves each weight by about "
            "the rate in every step, and nothing learns by that; give one such as 1e-3."
        )
    classes = max(len(task.labels), 1)
    least = 1 if task.extractive or task.generative else FEWEST * classes
    if recipe.max_examples is not None and recipe.max_examples < least:
        raise ValueError(
            f"--max-examples {recipe.max_examples} is too few for {task.name}: with fewer than {least} "
            "training rows the baselines cannot be fitted."
        )


def check_rank(rank: int, lora_alpha: float | None, encoder: str, generative: bool = False) -> LoraConfig:
    """Rank and scale, the rank also against the model's width where that is known without loading it.

    An encoder's adapters are at scale 1 on query and value, a language model's at 2 on every linear layer.
    """
    alpha = lora_alpha if lora_alpha is not None else rank * (2 if generative else 1)
    lora = LoraConfig(r=rank, lora_alpha=alpha)
    if generative:
        lora = replace(lora, target_modules=ALL_LINEAR)
    width = LM_ROWS.get(encoder, WIDTHS.get(encoder.removeprefix("FacebookAI/")))
    if Path(encoder).is_dir():
        settings = read_json(Path(encoder) / "config.json", "Save the checkpoint again.")
        width = _key_rows(settings) if generative else settings.get("hidden_size")
    if isinstance(width, int) and rank > width:
        raise ValueError(
            f"--rank {rank} is more than the {width} rows of {encoder}'s matrices, and no update of "
            f"theirs has a higher rank; give one from 1 to {width}, such as 8."
        )
    return lora


def _key_rows(settings: dict[str, Any]) -> int | None:
    """Rows of a Llama's key projections, which several query heads share: its narrowest matrices."""
    hidden, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return None
    size = settings.get("head_dim") or hidden // heads
    return size * (settings.get("num_key_value_heads") or heads)


def check_base(settings: dict[str, Any]) -> None:
    """Whether an adapter's base can be had; one beside the adapter is looked for when it is loaded."""
    if "folder" not in settings["base"]:
        (check_lm if is_lm_adapter(settings) else check_encoder)(settings["base"]["name"])


def check_encoder(name: str, weights: bool = True) -> None:
    """Whether an encoder can be had: a folder with a RoBERTa in it, a known name, or one the hub knows.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is missing or holds no RoBERTa, or the hub has none of that name.
    HubUnreachableError
        If only the hub could tell, and it does not answer.
    """
    text = name.strip()
    if not text:
        raise ValueError("The encoder's name is empty; give minilm, roberta-base or a checkpoint's folder.")
    if Path(text).is_dir():
        kind = read_json(Path(text) / "config.json", "Save the checkpoint again.").get("model_type")
        if _is_causal(Path(text)):
            raise ValueError(f"{text} {_AN_LM}")
        if kind != "roberta":
            raise ValueError(f"{text} holds a {kind!r} checkpoint, and only 'roberta' ones are adapted here.")
        if weights and not any(Path(text).glob("model*.safetensors")):
            raise FileNotFoundError(
                f"{text} has no model.safetensors; pickled weights are not read: save anew."
            )
        return
    if Path(text).exists() or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise FileNotFoundError(
            f"There is no folder {text}; give a RoBERTa checkpoint's folder, or minilm, which needs none."
        )
    if text == LM:
        raise ValueError(f"{text} {_AN_LM}")
    known = text if weights else text.removeprefix("FacebookAI/")
    if known == "minilm" or (not weights and known in WIDTHS):
        return
    from lora_tutorial.storage import hub

    if hub.cached_checkpoint(text) is None:
        hub.require_hub(text, "model", "take minilm, or the folder of a RoBERTa checkpoint")


def _is_causal(folder: Path) -> bool:
    written_for = read_json(folder / "config.json", "Save the checkpoint again.").get("architectures")
    return any(map(is_language_model, written_for or ()))


def check_lm(name: str) -> None:
    """Whether a language model can be had: ``smollm2``, a folder with one in it, or one the hub knows.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is missing or holds none, or only half of it, or the hub has none of that name.
    HubUnreachableError
        If only the hub could tell, and it does not answer.
    """
    text = name.strip()
    if not text:
        raise ValueError(f"The language model's name is empty; give {LM}, or a checkpoint's folder.")
    folder = Path(text)
    if folder.is_dir():
        if not _is_causal(folder):
            raise ValueError(f"{text} {_NO_LM}")
        template = "chat_template" in read_json(folder / "tokenizer_config.json", "Save the tokenizer there.")
        if not template and not (folder / "chat_template.jinja").is_file():
            raise ValueError(f"{text} has no chat template; take an instruction-tuned checkpoint.")
        for pattern in ("model*.safetensors", "tokenizer.json"):
            if not any(folder.glob(pattern)):
                raise FileNotFoundError(f"{text} has no {pattern}; save model and tokenizer there again.")
        return
    if folder.exists() or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise FileNotFoundError(
            f"There is no folder {text}; give that of a language model, or {LM}, which needs none."
        )
    if text in WIDTHS:
        raise ValueError(f"{text} {_NO_LM}")
    if text == LM:
        return
    from lora_tutorial.storage import hub

    if hub.cached_checkpoint(text) is None:
        hub.require_hub(text, "model", f"take {LM}, or the folder of a checkpoint")


def check_processes(shard: bool, encoder: str, batches: Sequence[int]) -> None:
    """Whether all processes of a run can share batches of these sizes, and with ``--shard`` the weights.

    Of a base on the hub it is not known here whether it is quantised; ``train`` refuses it before a step.
    """
    _, count = process()
    if shard and count == 1:
        raise ValueError(
            "--shard shares a model's weights out over several processes, and here is one: start it as "
            "`torchrun --nproc-per-node 2 -m lora_tutorial train ... --shard`, or leave --shard out."
        )
    for size in batches:
        if size % count:
            raise ValueError(
                f"{count} processes cannot share a batch of {size} equally; start as many as divide {size}."
            )
    if shard and Path(encoder).is_dir():
        settings = read_json(Path(encoder) / "config.json", "Save the checkpoint again.")
        if settings.get("quantization_config"):
            raise ValueError(
                f"--shard gives each process a part of every matrix, and those in {encoder} are quantised: "
                "codes and scales belong together. Take a base of 4 or 2 bytes a weight, or leave --shard "
                "out."
            )


def check_trackers(names: Sequence[str]) -> None:
    """Whether accelerate can log with these."""
    modules = {"tensorboard": ("tensorboard", "tensorboardX")}
    here = [name for name in TRACKERS if any(map(find_spec, modules.get(name, (name,))))]
    for name in names:
        if name not in here:
            raise ValueError(
                f"Tracker {name!r} is unknown or not installed; here: {', '.join(here) or 'none'}."
            )


def check_run_folder(folder: Path, resume: bool) -> None:
    """Whether a run can begin, or go on, in a folder.

    Raises
    ------
    FileExistsError
        If it is a file, or holds a run that is not to be resumed.
    FileNotFoundError
        If there is nothing to resume.
    OSError
        If nothing can be written there.
    FolderInUseError
        If another process is at work there.
    """
    began = (folder / "record.json").exists() or any(folder.glob("checkpoints/step-*"))
    if began and not resume:
        raise FileExistsError(
            f"{folder} holds a run; add --resume to go on, or name another folder with --out."
        )
    if resume and not began:
        raise FileNotFoundError(
            f"There is nothing to resume in {folder}: it holds no run. Leave --resume out, or name the run's "
            "folder with --out."
        )
    check_writable(folder)
    if process()[0] == 0 and lock_file(folder.resolve()).exists():  # one process holds it for all
        with folder_lock(folder, "the run"):
            pass


def check_writable(folder: Path) -> None:
    """Try to write where a folder is or will be made; nothing stays."""
    nearest = folder.resolve()
    while not nearest.exists() and nearest.parent != nearest:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise FileExistsError(f"{nearest} is a file, so {folder} cannot be a folder; name another one.")
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=".lora-tutorial-"))
    except OSError as error:
        raise OSError(
            f"Nothing can be written into {nearest} ({error.strerror}); name another folder than {folder}."
        ) from None


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object, or a sentence that says what is wrong with the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. {advice}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). {advice}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds {json.dumps(found)[:40]}, no object. {advice}")
    return found


def find_adapter(name: Path) -> Path:
    """The folder of an adapter: one of the user's, or one that comes with the book, by its task."""
    if name.is_dir():
        return name
    if name.exists():
        raise ValueError(f"{name} is a file; give the folder that holds {SETTINGS} and {TENSORS}.")
    stored = {p.parent.name: p.parent for p in sorted(bundled_folder("shipped").glob(f"*/{SETTINGS}"))}
    if str(name) not in stored:
        raise FileNotFoundError(
            f"There is no adapter folder {str(name)!r}, and the adapters that come with the book are "
            f"{', '.join(stored) or 'not installed'}."
        )
    return stored[str(name)]


def find_any_adapter(name: Path) -> Path:
    """`find_adapter`, of a folder that holds a file of our format or of PEFT's, whole or not."""
    folder = find_adapter(name)
    if not any((folder / file).exists() for file in (SETTINGS, TENSORS, PEFT_SETTINGS, PEFT_TENSORS)):
        raise FileNotFoundError(
            f"{folder} holds no adapter: neither {SETTINGS} nor {PEFT_SETTINGS} is in it."
        )
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """An adapter's settings without its tensors: format, base and metadata are there and of their kinds."""
    for file in (SETTINGS, TENSORS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is no adapter folder: {file} is missing.")
    settings = read_json(folder / SETTINGS, ADVICE)
    if settings.get("format") not in FORMATS:
        found, known = settings.get("format"), " and ".join(map(str, FORMATS))
        raise ValueError(f"{folder} has adapter format {found!r}; this version reads {known}.")
    for key in ("base", "metadata"):
        if not isinstance(settings.get(key), dict):
            raise ValueError(f"{folder / SETTINGS} is damaged: it has no {key}. {ADVICE}")
    if not isinstance(settings["base"].get("name"), str):
        raise ValueError(f"{folder / SETTINGS} is damaged: its base has no name. {ADVICE}")
    return settings


def read_trained_settings(folder: Path) -> dict[str, Any]:
    """`read_settings` of an adapter that says how it is used, as those that ``train`` saves do."""
    settings = read_settings(folder)
    about = settings["metadata"]
    wanted = {"task": str, "columns": list, "labels": list, "max_length": int}
    if is_lm_adapter(settings):
        raise ValueError(f"{folder} is a language model's adapter: use `lora-tutorial generate` or `chat`.")
    if not wanted.keys() <= about.keys():
        raise ValueError(
            f"{folder} was not saved by `lora-tutorial train`; load it with load_adapter instead."
        )
    for key, kind in wanted.items():
        if not isinstance(about[key], kind) or about[key] in (0, ""):
            raise ValueError(f"{folder / SETTINGS} is damaged: its {key} is {about[key]!r}. {ADVICE}")
    outputs = settings["base"].get("wrapper", {}).get("num_classes")
    if about["labels"] and outputs not in (None, len(about["labels"])):
        raise ValueError(
            f"{folder / SETTINGS} is damaged: it names {len(about['labels'])} labels, and the head has "
            f"{outputs} outputs. {ADVICE}"
        )
    return settings


def read_lm_settings(folder: Path) -> dict[str, Any]:
    """`read_settings` of an adapter of a language model, whose base can be had."""
    settings = read_settings(folder)
    if not is_lm_adapter(settings):
        raise ValueError(
            f"{folder} is an encoder's adapter and writes nothing; use it with `lora-tutorial predict`."
        )
    check_base(settings)
    return settings


def check_exportable(adapter: Path, folder: Path) -> None:
    """Whether a class of transformers has a place for all of an adapter, and its base can be had."""
    settings = read_settings(folder)
    if settings["base"].get("wrapper", {}).get("head") == "tutorial":
        raise ValueError(
            f"{adapter} has the tutorial's head (LayerNorm, dropout, linear), for which neither PEFT nor "
            "transformers has a place; train it with --head roberta."
        )
    check_base(settings)


def check_peft_folder(folder: Path) -> dict[str, Any]:
    """Whether a folder looks like what PEFT saves; returns its settings."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; give the one that holds {PEFT_SETTINGS}.")
    settings = read_json(folder / PEFT_SETTINGS, "Give the folder that PEFT's save_pretrained wrote.")
    if not (folder / PEFT_TENSORS).is_file():
        raise FileNotFoundError(
            f"{folder} is no PEFT adapter: {PEFT_TENSORS} is missing. A pickled adapter_model.bin is not "
            "read; save it with safe_serialization=True."
        )
    return settings
