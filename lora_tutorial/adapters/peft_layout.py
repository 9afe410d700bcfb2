"""Where each part of an adapted model stands in PEFT's files: one description, read in both directions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.models.roberta import LoraWrapperRoberta

PREFIX = "base_model.model."
# By name: LoraLinear4bit needs bitsandbytes.
PLAIN = (
    "LoraLinear",
    "FastLoraLinear",
    "LoraLinear4bit",
    "LoraRobertaSelfAttention",
    "FastLoraRobertaSelfAttention",
)
# What PEFT calls the task of a transformers class, and the heads that it then trains and saves unasked.
TASKS = {
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
    "ForCausalLM": ("CAUSAL_LM", ()),
}


class NotExpressibleError(ValueError):
    """The model holds something for which PEFT's format has no place."""


@dataclass(frozen=True)
class PeftLayout:
    """An adapted model in PEFT's terms.

    Attributes
    ----------
    tensors
        Name in ``adapter_model.safetensors`` to the model's own tensor, not a copy.
    settings
        The entries of ``adapter_config.json`` that say how to read them.
    frozen
        Name in the base model to its tensor as before merging, for all that the file does not carry.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    frozen: dict[str, Tensor]


def peft_layout(model: nn.Module) -> PeftLayout:
    """Describe an adapted model in PEFT's terms, from what it holds and what trains in it.

    Raises
    ------
    ValueError
        If the model holds no adapter.
    NotExpressibleError
        If PEFT would not build the same function from such files; the message says what stands in the way.
    """
    names = base_names(model)
    task, heads = task_of(model)
    factors = _factors(model, names)
    config = _shared_config(model)
    targets = list(factors)
    modules = {names(n): m for n, m in model.named_modules(remove_duplicate=False) if names(n)}
    whole = _whole_modules(model, names)
    whole += [n for n in modules if n in heads and not any(_inside(n, [w]) for w in whole)]
    if clash := [t for t in targets if _inside(t, whole)]:
        raise NotExpressibleError(
            f"{clash[0]} is adapted, but PEFT trains the head it belongs to whole. "
            "Inject with modules_to_save naming that head, so that target_modules leaves it out."
        )
    adapters = {id(f) for pair in factors.values() for f in pair}
    parameters = {names(n): p for n, p in model.named_parameters() if id(p) not in adapters and names(n)}
    rest = {n: p for n, p in parameters.items() if not _inside(n, whole)}
    bias, biases = _bias_setting({n for n, p in rest.items() if p.requires_grad}, rest, targets, config.bias)
    owner = {f"{t}.bias": f"{t}.base_layer.bias" for t in targets}
    tensors = {
        f"{PREFIX}{t}.lora_{x}.weight": f for t, ab in factors.items() for x, f in zip("AB", ab, strict=True)
    }
    tensors |= {PREFIX + owner.get(n, n): rest[n] for n in biases}
    tensors |= {
        f"{PREFIX}{w}.{n}": value for w in whole for n, value in modules[w].state_dict(keep_vars=True).items()
    }
    settings = {
        "peft_type": "LORA",
        "task_type": task,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "target_modules": _target_entries(modules, targets, whole, config),
        "modules_to_save": _saved_entries(modules, whole) or None,
        "bias": bias,
        "init_lora_weights": True if config.init == "kaiming" else "gaussian",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    originals = {
        names(f"{n}.{w}".lstrip(".")): o for n, m in lora_modules(model) for w, o in m.originals.items()
    }
    return PeftLayout(tensors, settings, {n: originals.get(n, p) for n, p in rest.items() if n not in biases})


def task_of(model: nn.Module) -> tuple[str | None, tuple[str, ...]]:
    """PEFT's name for the model's task, or ``None``, and the heads that PEFT saves for it."""
    if isinstance(model, LoraWrapperRoberta):
        return TASKS["ForSequenceClassification" if model.task_type == "glue" else "ForQuestionAnswering"]
    for ending, task in TASKS.items():
        if type(model).__name__.endswith(ending):
            return task
    return None, ()


def base_names(model: nn.Module) -> Any:
    """A function from a name in ``model`` to the name in the base that PEFT loads, ``""`` for none."""
    if not isinstance(model, LoraWrapperRoberta):
        return lambda name: name
    if model.init_args.get("head", "tutorial") != "roberta":
        raise NotExpressibleError(
            "The tutorial's head (LayerNorm, dropout, linear) is in no transformers class: PEFT has no place "
            'for it. Train LoraWrapperRoberta(head="roberta"), or RobertaForSequenceClassification with '
            'inject_lora and modules_to_save=["classifier"]; or keep this one with save_adapter.'
        )
    head = "classifier" if model.task_type == "glue" else "qa_outputs"

    def names(name: str) -> str:
        if name.startswith("model.pooler"):  # read by no head: the classes that PEFT wraps have no pooler
            return ""
        name = re.sub(r"^model(?=\.|$)", "roberta", name)
        name = re.sub(r"^finetune_head_classifier(?=\.|$)", head, name)
        return "" if name.startswith("finetune_head") else name

    return names


def _factors(model: nn.Module, names: Any) -> dict[str, tuple[Tensor, ...]]:
    """The adapted layers of the base, each with its (lora_A, lora_B)."""
    found: dict[str, tuple[Tensor, ...]] = {}
    uses = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for name, module in lora_modules(model):
        kind = type(module)
        if kind.__name__ not in PLAIN or not kind.__module__.startswith("lora_tutorial."):
            raise NotExpressibleError(
                f"{name} is a {kind.__name__}; only {', '.join(PLAIN)} compute what PEFT's plain LoRA does. "
                "Keep this adapter with save_adapter."
            )
        if uses[id(module)] > 1:
            raise NotExpressibleError(
                f"{name} is one layer under {uses[id(module)]} names; PEFT would adapt one. Leave it out."
            )
        for weight, pair in module.lora_factors().items():
            found[names(f"{name}.{weight}".lstrip(".")).removesuffix(".weight")] = pair
    if not found:
        raise ValueError("The model holds no LoRA adapter; inject one first, or load one with load_adapter.")
    if "weight" in found:
        raise NotExpressibleError("The model is itself the adapted layer; PEFT adapts layers inside a model.")
    return found


def _shared_config(model: nn.Module) -> LoraConfig:
    configs = [module.lora_config for _, module in lora_modules(model)]
    for field in ("r", "lora_alpha", "use_rslora", "lora_dropout"):
        if len(values := {getattr(c, field) for c in configs}) > 1:
            raise NotExpressibleError(
                f"Layers differ in {field} ({sorted(values)}); one adapter here has one value."
            )
    return getattr(model, "lora_config", configs[0])


def _whole_modules(model: nn.Module, names: Any) -> list[str]:
    """The outermost modules that train whole, by their name in the base."""
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: list[str] = []

    def visit(name: str, module: nn.Module) -> None:
        parameters = list(module.parameters())
        if (
            names(name)
            and parameters
            and all(p.requires_grad for p in parameters)
            and not any(lora_modules(module))
        ):
            if any(shared[id(p)] > 1 for p in parameters):
                raise NotExpressibleError(
                    f"{name} trains and shares a weight; PEFT would train a copy. Freeze it."
                )
            found.append(names(name))
        else:
            for child, inner in module.named_children():
                visit(f"{name}.{child}".lstrip("."), inner)

    visit("", model)
    return found


def _bias_setting(
    trained: set[str], rest: Mapping[str, Tensor], targets: Iterable[str], wanted: str
) -> tuple[str, list[str]]:
    """PEFT's ``bias`` and the biases that it makes the file carry, given what trains beside whole modules."""
    every = {n for n in rest if n.rpartition(".")[2] == "bias"}
    meanings = {"none": set(), "lora_only": every & {f"{t}.bias" for t in targets}, "all": every}
    fitting = [bias for bias, names in meanings.items() if names == trained]
    if not fitting:
        odd = sorted(trained - every) or sorted(trained)
        raise NotExpressibleError(
            f"{odd[0]} trains, and PEFT has no setting for it: it knows no biases, those of adapted layers, "
            "all biases, and whole modules. Freeze it, or train its module whole (modules_to_save)."
        )
    bias = wanted if wanted in fitting else fitting[0]
    return bias, [n for n in rest if n in meanings[bias]]


def _target_entries(
    modules: dict[str, nn.Module], targets: list[str], whole: list[str], config: LoraConfig
) -> list[str]:
    """``target_modules`` in the user's words if PEFT reads them as was meant, else every name in full."""
    saved = _saved_entries(modules, whole)
    open_names = [n for n in modules if not any(re.match(rf"(^|.*\.){s}($|\..*)", n) for s in saved)]
    given = [] if isinstance(config.target_modules, str) else list(config.target_modules)
    for entries in (given, targets):
        if {n for n in open_names if any(n == e or n.endswith(f".{e}") for e in entries)} == set(targets):
            return sorted(entries)
    raise NotExpressibleError(
        f"PEFT would not find just these layers by their names: {', '.join(targets[:3])} ..."
    )


def _saved_entries(modules: dict[str, nn.Module], whole: list[str]) -> list[str]:
    """``modules_to_save`` as short as PEFT, which compares endings letter by letter, still reads rightly."""
    for entries in (sorted({w.rpartition(".")[2] for w in whole}), sorted(whole)):
        chosen = [n for n in modules if any(n.endswith(e) for e in entries)]
        if sorted(n for n in chosen if not any(n != c and _inside(n, [c]) for c in chosen)) == sorted(whole):
            return entries
    raise NotExpressibleError(
        f"PEFT would save other modules too if told these names: {', '.join(whole[:3])} ..."
    )


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == m or name.startswith(f"{m}.") for m in modules)
