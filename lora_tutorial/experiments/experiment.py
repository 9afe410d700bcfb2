"""What one run is made of. Needs no torch, so that a mistake in it is found at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.training.recipes import Recipe

#: The tutorial's own choice: rank 8, scale 1, on query and value.
TUTORIAL_LORA = LoraConfig(r=8, lora_alpha=8)


@dataclass(frozen=True)
class Experiment:
    """What one run is made of; everything that a record needs to be repeated.

    Parameters
    ----------
    recipe
        The numbers of the training loop.
    task
        A key of ``TASKS``, or the path of a reader's file (see `task_from_file`).
    encoder, source
        As for ``load_encoder`` and ``load_task``.
    method
        What trains, see `build_model`.
    seed
        Decides adapters, head, order and dropout.
    lora
        Rank, scale and place of the adapters; read for the LoRA methods only.
    variant
        A row of ``VARIANTS``.
    bits
        ``4`` for a base in bitsandbytes' NF4 (QLoRA), ``None`` for full precision.
    pooling, head
        What the head reads and what it is, as for `LoraWrapperRoberta`.
    start
        Folder of an earlier run, whose trained weights (its head aside) this one begins with; the recipe's
        ``start_from`` names its task.
    held_out
        Share of the training rows to keep apart, see `hold_out`; 0 for none.
    arm
        What a grid calls this way to train; part of the record.
    only
        For method ``"full"``: names of linear layers, as in ``target_modules``. Then of the encoder their
        weights alone train, as large as they are; without names, everything does.
    scored
        At most so many rows of each validation and test set are scored, the same for all runs; 0 for all.
    """

    recipe: Recipe
    task: str = "reviews"
    encoder: str = "minilm"
    method: str = "lora+bias+norm"
    source: str = "auto"
    seed: int = 0
    lora: LoraConfig = TUTORIAL_LORA
    variant: str = "lora"
    bits: int | None = None
    pooling: str = "first"
    head: str = "tutorial"
    start: str | os.PathLike[str] | None = None
    held_out: float = 0.0
    arm: str = ""
    only: tuple[str, ...] = ()
    scored: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (None, 4):
            raise ValueError(f"bits must be 4 or left out; got {self.bits!r}.")
        if isinstance(self.only, str) or (self.only and self.method != "full"):
            raise ValueError(
                f"only={self.only!r} must be a list of layers' names, for method 'full'; to place adapters "
                "use target_modules."
            )
        if self.scored < 0:
            raise ValueError(f"scored={self.scored!r}: give a number of rows, or 0 for all of them.")
        if (self.recipe.start_from is None) != (self.start is None):
            raise ValueError(
                f"The recipe starts from {self.recipe.start_from!r} and start={self.start!r}: a run needs "
                "the task's name and the folder of its run, or neither (start_from=None)."
            )
