"""What a grid of runs consists of: tasks x methods x seeds, and the learning rate of each method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetDict

from lora_tutorial.data.sources import load_task
from lora_tutorial.data.tasks import LoadedTask, get_task
from lora_tutorial.experiments.evaluate import tokenize_rows
from lora_tutorial.experiments.run import METHODS, Experiment, Prepared, data_hash
from lora_tutorial.models.encoders import load_tokenizer
from lora_tutorial.squad.threshold import split_by_article
from lora_tutorial.training.recipes import Recipe, load_recipe
from lora_tutorial.training.records import load_record

#: What a sweep tries, lowest first: the fewer parameters a method trains, the higher its rates.
RATES = {
    "head": (1e-3, 3e-3, 1e-2),
    "bitfit": (5e-4, 1e-3, 3e-3),
    "lora": (5e-4, 1e-3, 2e-3),
    "lora+bias+norm": (5e-4, 1e-3, 2e-3),
    "full": (3e-5, 1e-4, 3e-4),
}
HELD_OUT = 0.2  # of the training rows, for choosing the rate
SWEEP_SEED = 0
SWEEPS = "sweeps"  # folder beside the records


def parse_list(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """``"0,1,2"`` as values of one kind; ``ValueError`` names what cannot be read."""
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name}={text!r}: give {kind.__name__} values with commas between.") from None


@dataclass(frozen=True)
class Grid:
    """What to run.

    Parameters
    ----------
    tasks, methods, seeds
        Each combination is one run, in this order.
    encoder, source
        As for ``load_encoder`` and ``load_task``.
    recipe
        A recipe's name.
    changes
        Fields of the recipe to replace. Without ``learning_rate`` each method takes the best rate of its
        sweep on the task, or the recipe's where there was none. ``start_from`` names the task whose adapter,
        of the same method and seed, a run by LoRA begins with; other methods begin with the bare encoder.

    Raises
    ------
    ValueError
        For an empty or repeated entry, an unknown name, or a bad value.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "minilm"
    source: str = "auto"
    recipe: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values!r}: give at least one, and each once.")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
        for task in self.tasks:
            get_task(task)
            self.recipe_for(task)

    def recipe_for(self, task: str, method: str = "lora") -> Recipe:
        """The task's recipe, with a start only where there is an adapter to start from."""
        recipe = load_recipe(self.recipe, task, **self.changes)
        if not method.startswith("lora") or recipe.start_from == task:
            recipe = dataclasses.replace(recipe, start_from=None)
        return recipe

    def stem(self, task: str, method: str) -> str:
        """Common beginning of the file names of a task's and method's records."""
        return f"{task}-{Path(self.encoder).name}-{method}-{self.recipe}"

    def start(self, task: str, method: str, seed: int, work: Path) -> Path | None:
        """The adapter a run starts from: made by an earlier run of this grid, or there already."""
        first = self.recipe_for(task, method).start_from
        if first is None:
            return None
        folder = work / f"{self.stem(first, method)}-seed{seed}" / "adapter"
        planned = first in self.tasks[: self.tasks.index(task)] and seed in self.seeds
        if not planned and not folder.is_dir():
            raise FileNotFoundError(
                f"{task} starts from the adapter of {first}, and {folder} is not there: put {first} before "
                "it in --tasks, run it first, or give --start-from none."
            )
        return folder


class TaskData:
    """A task's rows and their hash; tokenised when first trained on, and once."""

    def __init__(self, loaded: LoadedTask, encoder: str, recipe: Recipe) -> None:
        if "train" not in loaded.data or "validation" not in loaded.data:
            raise ValueError(
                f"bench needs train and validation rows of {loaded.task.name!r}; choose another source."
            )
        self.loaded, self.encoder, self.recipe = loaded, encoder, recipe
        self.sha256, self._prepared = data_hash(loaded.data), None

    def prepared(self) -> Prepared:
        if self._prepared is None:
            tokens = tokenize_rows(self.loaded, load_tokenizer(self.encoder), self.recipe)
            self._prepared = Prepared(self.loaded, tokens, self.sha256)
        return self._prepared


class Job(NamedTuple):
    """One run to do: file name without ending, what it is, its data, and what its record says besides."""

    name: str
    experiment: Experiment
    data: TaskData
    folder: Path
    extra: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def sweep(self) -> bool:
        return "sweep" in self.extra

    def cost(self) -> int:
        """Training examples over all epochs."""
        recipe = self.experiment.recipe
        return recipe.epochs * len(recipe.subset(len(self.data.loaded.data["train"])))


def held_out_split(loaded: LoadedTask, recipe: Recipe) -> LoadedTask:
    """The rows a run would train on, cut in two for choosing a rate; the task's other splits stay unseen."""
    rows = loaded.data["train"]
    rows = rows.select(recipe.subset(len(rows), seed=0))
    if loaded.task.extractive:
        kept, held = split_by_article(rows, HELD_OUT, SWEEP_SEED)
    else:
        kept, held = rows.train_test_split(HELD_OUT, seed=SWEEP_SEED).values()
    return LoadedTask(loaded.task, DatasetDict(train=kept, validation=held))


def best_rate(folder: Path, stem: str) -> tuple[float | None, dict[str, float]]:
    """The rate of the sweep with the highest last score (the lowest of equals), and every rate's score."""
    scores = {}
    for path in (folder / SWEEPS).glob(f"{stem}-lr*.json"):
        record = load_record(path)
        if record.status == "finished":
            scores[record.recipe["learning_rate"]] = record.last["scores"][record.main_score]
    scores = dict(sorted(scores.items()))
    best = max(scores, key=scores.__getitem__) if scores else None
    return best, {f"{rate:g}": score for rate, score in scores.items()}


def plan_jobs(grid: Grid, folder: Path, work: Path, sweep: bool, rates: Sequence[float] | None) -> list[Job]:
    """Every run of the grid, or of its sweep, in order; all data are loaded and checked here."""
    jobs = []
    for task in grid.tasks:
        recipe, loaded = grid.recipe_for(task), load_task(task, grid.source)
        if sweep:
            loaded = held_out_split(loaded, recipe)
        data = TaskData(loaded, grid.encoder, recipe)
        for method in grid.methods:
            stem = grid.stem(task, method)
            if sweep:
                extra = {"sweep": {"held_out": HELD_OUT, "of": "train"}}
                plan = [(f"lr{rate:g}", rate, SWEEP_SEED) for rate in rates or RATES[method]]
            else:
                rate, scores = best_rate(folder, stem) if "learning_rate" not in grid.changes else (None, {})
                source = (
                    "sweep" if rate else "given" if "learning_rate" in grid.changes else "recipe, unswept"
                )
                extra = {"learning_rate": {"from": source, "sweep": scores}}
                plan = [(f"seed{seed}", rate or recipe.learning_rate, seed) for seed in grid.seeds]
            for ending, rate, seed in plan:
                start = None if sweep else grid.start(task, method, seed, work)
                first = grid.recipe_for(task, method).start_from if start else None
                chosen = dataclasses.replace(recipe, learning_rate=rate, start_from=first)
                experiment = Experiment(chosen, task, grid.encoder, method, grid.source, seed, start=start)
                ending = f"from-{first}-{ending}" if first else ending
                target = folder / SWEEPS if sweep else folder
                jobs.append(Job(f"{stem}-{ending}", experiment, data, target, extra))
    return jobs
