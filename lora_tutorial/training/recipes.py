"""Training recipes by name (the numbers that decide a run), and the options with which it is carried out."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

#: What can train beside the head: nothing, biases, adapters, adapters with biases and LayerNorms, all.
METHODS = ("head", "bitfit", "lora", "lora+bias+norm", "full")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """Everything the loop needs to know beside the model, the data and the seed.

    Parameters
    ----------
    name
        The recipe's name, kept in the run record.
    epochs
        Passes over the training set.
    batch_size
        Examples per optimiser step, *over all processes together*. Two processes take half each, so
        that a run means the same however it is spread; a size that does not divide is refused.
    learning_rate
        The peak, reached at the end of the warm-up.
    warmup
        Share of all steps with a rising rate, in [0, 1).
    schedule
        What follows the warm-up: ``"linear"`` decay, ``"cosine"`` decay or ``"constant"``.
    weight_decay
        AdamW's decoupled decay, for matrices only (see `lora_tutorial.training.setup.parameter_groups`).
    adam_beta2, adam_epsilon
        AdamW's second decay rate and its epsilon (the first rate is 0.9).
    max_grad_norm
        Gradients with a larger global 2-norm are scaled down to it; ``None`` never clips.
    max_examples
        Most training examples to use; ``None`` for all. :meth:`subset` says which.
    max_length
        Longest input in tokens, for whoever tokenises.
    group_by_length
        Whether training batches are drawn from rows of like length, which pads less.
    attention_dropout
        Dropout of the attention weights while training, in [0, 1); ``None`` for the encoder's own.
    mixed_precision
        ``"no"``, ``"bf16"`` or ``"fp16"``.
    start_from
        Task whose trained adapter is the starting point, or ``None``.
    patience
        Stop after this many epochs in a row without a better main score on the held-out rows; ``None`` trains
        for all ``epochs``. The schedule is that of all ``epochs``, so use ``"constant"`` with a generous
        number of them.
    keep_best
        Whether the model ends with the weights of its best epoch (by main score, the earliest of equals)
        instead of the last. That score was chosen on the rows that gave it: report another split's.

    Raises
    ------
    TypeError, ValueError
        For a value outside the ranges above, naming the field, the value and what is accepted.
    """

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.0
    schedule: str = "linear"
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0
    max_examples: int | None = None
    max_length: int = 128
    group_by_length: bool = False
    attention_dropout: float | None = None
    mixed_precision: str = "no"
    start_from: str | None = None
    patience: int | None = None
    keep_best: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "max_examples", "patience"):
            value = getattr(self, name)
            if value is None and name in ("max_examples", "patience"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Recipe {name}={value!r}: give a whole number of at least 1.")
        for name, accepted, holds in (
            # above it AdamW's step, a rate over 1 - 0.9, leaves single precision
            ("learning_rate", "a number above 0 and at most 1e30", lambda v: 0 < v <= 1e30),
            ("warmup", "a share of all steps in [0, 1)", lambda v: 0 <= v < 1),
            ("weight_decay", "a finite number of at least 0", lambda v: v >= 0),
            ("adam_beta2", "a number in (0, 1)", lambda v: 0 < v < 1),
            ("adam_epsilon", "a finite number above 0", lambda v: v > 0),
            ("max_grad_norm", "a finite number above 0, or None for no clipping", lambda v: v > 0),
            ("attention_dropout", "a probability in [0, 1), or None", lambda v: 0 <= v < 1),
        ):
            value = getattr(self, name)
            if value is None and name in ("max_grad_norm", "attention_dropout"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Recipe {name}={value!r}: give {accepted}.")
            if not math.isfinite(value) or not holds(value):
                raise ValueError(f"Recipe {name}={value!r}: give {accepted}.")
        for name in ("group_by_length", "keep_best"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Recipe {name}={getattr(self, name)!r}: give True or False.")
        for name, choices in (("schedule", SCHEDULES), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"Recipe {name}={getattr(self, name)!r}: choose from {', '.join(choices)}.")

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate at one update.

        Parameters
        ----------
        step
            Number of updates done before this one, so 0 for the first.
        total_steps
            Updates in the whole run.

        Returns
        -------
        float
            In (0, 1]. With ``W`` warm-up steps it is ``(step + 1) / W`` while rising: the first update
            already moves the weights. The last one still does, at ``1 / (total_steps - W)`` of the peak
            under ``"linear"``.
        """
        rising = round(self.warmup * total_steps)
        if step < rising:
            return (step + 1) / rising
        if self.schedule == "constant":
            return 1.0
        left = max(total_steps - step, 0) / max(total_steps - rising, 1)
        return left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2

    def subset(self, available: int, seed: int = 0) -> list[int]:
        """Indices of the examples to train on, ascending: a seeded draw of ``max_examples``, or all."""
        if self.max_examples is None or available <= self.max_examples:
            return list(range(available))
        return sorted(random.Random(seed).sample(range(available), self.max_examples))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record's recipe, with the defaults of the fields that were not there yet when it was written.

    Compare recipes in this form: a field that a later version adds does not make an old run another one.
    """
    fields = dataclasses.fields(Recipe)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return {**defaults, **values}


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, as against what it learns: the further keywords of `train`.

    Parameters
    ----------
    config
        What else identifies the run (model, task, method); part of the record, and must agree on resuming.
    scorer
        ``scorer(model, accelerator)`` is called after each epoch and returns the scores, instead of
        ``eval_loader`` and ``metric``. Its attribute ``main_score`` names the one that decides which epoch is
        best; without it the first does.
    resume
        Go on from the last complete checkpoint in ``output_dir``, or start where there is none
        (`lora_tutorial.training.checkpoints.resume_point` tells beforehand).
    groups
        ``groups(model, learning_rate)`` gives AdamW its groups of parameters, as LoRA+ needs them; by default
        matrices decay and vectors do not.
    progress
        Show a bar when standard error is a terminal.
    checkpoint_every
        Steps between checkpoints, beside the one at each epoch's end.
    log_with
        Trackers of accelerate, such as ``["tensorboard"]``; files go to ``output_dir/logs``.
    cpu
        Stay on the CPU even where there is a GPU.
    shard
        Share every parameter out over the processes of the run (FSDP2) where there are several, so that none
        holds the whole model while it trains; without it each has a copy (DDP). Not for quantised bases.

    Raises
    ------
    ValueError
        For a number of steps below 1.
    """

    config: Mapping[str, Any] | None = None
    scorer: Callable[[nn.Module, Accelerator], dict[str, float]] | None = field(default=None, repr=False)
    groups: Callable[[nn.Module, float], list[dict[str, Any]]] | None = field(default=None, repr=False)
    resume: bool = False
    progress: bool = True
    checkpoint_every: int | None = None
    log_with: Sequence[str] = ()
    cpu: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        every = self.checkpoint_every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"checkpoint_every={every!r}: give a number of steps of at least 1, or None.")


def _paper(epochs: int, batch_size: int, learning_rate: float, start_from: str | None = None) -> Recipe:
    return Recipe(
        "paper",
        epochs,
        batch_size,
        learning_rate,
        0.06,
        weight_decay=0.1,
        max_length=512,
        start_from=start_from,
    )


#: LoRA paper (Hu et al. 2022), Table 9, RoBERTa base: r = 8 and alpha = 8 there, which are LoraConfig's
#: defaults. The table gives no weight decay; 0.1 is what the authors' scripts pass. MRPC, RTE and STS-B
#: start from the MNLI adapter (section 5.2).
PAPER: dict[str, Recipe] = {
    "mnli": _paper(30, 16, 5e-4),
    "sst2": _paper(60, 16, 5e-4),
    "mrpc": _paper(30, 16, 4e-4, "mnli"),
    "cola": _paper(80, 32, 4e-4),
    "qnli": _paper(25, 32, 4e-4),
    "qqp": _paper(25, 16, 5e-4),
    "rte": _paper(80, 32, 5e-4, "mnli"),
    "stsb": _paper(40, 16, 4e-4, "mnli"),
}

#: Tokens of question and context together, as in BERT's runs on SQuAD.
SPAN_LENGTH = 384

RECIPES: dict[str, Recipe] = {
    # Two epochs up to the peak, four down to zero, with the original tutorial's AdamW settings.
    "tutorial": Recipe(
        "tutorial",
        epochs=6,
        batch_size=16,
        learning_rate=5e-4,
        warmup=2 / 6,
        weight_decay=0.1,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
    ),
    # One short epoch for a first look. Of 5e-4, 1e-3, 2e-3 and 4e-3 this rate scored best on the validation
    # sentences of the film reviews (benchmarks/results/reviews-quick-lr*.json).
    # Those runs shuffled rows of any length; rows of like length pad less, in two thirds of the time.
    "quick": Recipe(
        "quick",
        epochs=1,
        batch_size=16,
        learning_rate=2e-3,
        warmup=0.1,
        max_examples=3000,
        group_by_length=True,
    ),
    # A language model on short answers, for some minutes on a few cores.
    "chat": Recipe(
        "chat",
        epochs=1,
        batch_size=4,
        learning_rate=5e-4,
        warmup=0.1,
        weight_decay=0.0,
        max_examples=320,
        max_length=256,
        group_by_length=True,
    ),
    # A whole benchmark on a few cores.
    "cpu": Recipe(
        "cpu",
        epochs=3,
        batch_size=16,
        learning_rate=5e-4,
        warmup=0.06,
        max_examples=8000,
        group_by_length=True,
    ),
}


def load_recipe(name: str, task: str | None = None, **changes: Any) -> Recipe:
    """Look a recipe up by name.

    Parameters
    ----------
    name
        ``"tutorial"``, ``"quick"``, ``"chat"``, ``"cpu"`` or ``"paper"``.
    task
        Which row of Table 9, which ``"paper"`` needs; and how long inputs are: SQuAD's contexts need
        ``SPAN_LENGTH`` tokens.
    **changes
        Fields to replace, such as ``epochs=1``; they are checked like any other value.

    Raises
    ------
    ValueError
        For an unknown name, task or field.
    """
    if name == "paper":
        if task not in PAPER:
            raise ValueError(f"Recipe 'paper' has no row for task {task!r}: choose from {', '.join(PAPER)}.")
        recipe = PAPER[task]
    elif name in RECIPES:
        recipe = RECIPES[name]
        if task is not None and task.startswith("squad"):
            # on a processor, drawing zeros among the attention weights takes a third of a step this long
            dropout = 0.0 if name == "cpu" else None
            recipe = dataclasses.replace(recipe, max_length=SPAN_LENGTH, attention_dropout=dropout)
    else:
        raise ValueError(f"Unknown recipe {name!r}: choose from {', '.join([*RECIPES, 'paper'])}.")
    fields = [field.name for field in dataclasses.fields(Recipe)]
    unknown = sorted(set(changes) - set(fields))
    if unknown:
        raise ValueError(f"A recipe has no field {', '.join(unknown)}: choose from {', '.join(fields)}.")
    return dataclasses.replace(recipe, **changes)
