"""What a grid consists of, and which runs are next: each arm's rates on a task, then seeds at the best."""

from __future__ import annotations

import dataclasses
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lora_tutorial.data.tasks import get_task
from lora_tutorial.experiments.experiment import TUTORIAL_LORA, Experiment
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.training.recipes import METHODS, Recipe, load_recipe
from lora_tutorial.training.records import RunRecord, best_rate, held_out_score

#: What a search tries first, lowest first: the fewer parameters a method trains, the higher its rates.
RATES = {
    "head": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "bitfit": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "lora": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    "lora+bias+norm": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    "full": (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4),
}
PROBE = "probe"  # the arm that trains nothing: a linear probe on the frozen encoder
Records = Mapping[str, RunRecord | None]
#: Parameters that submitit has for every kind of cluster; those of Slurm alone are prefixed.
SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")


@dataclass(frozen=True)
class Arm:
    """One way to train, compared with others on equal terms.

    Parameters
    ----------
    name
        Part of the file names of its records.
    method, lora, variant, bits, pooling, head, only
        As for `Experiment`; the method may also be ``"probe"``.
    rates
        The learning rates that its search begins with; by default `RATES` of its method.
    changes
        Fields of the grid's recipe to replace for this arm.
    shots
        Where a language model is not trained at all (``"probe"``): examples to put in front of its prompt.
    """

    name: str
    method: str
    lora: LoraConfig = TUTORIAL_LORA
    variant: str = "lora"
    bits: int | None = None
    pooling: str = "first"
    head: str = "tutorial"
    rates: tuple[float, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    shots: int = 0
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, PROBE):
            known = ", ".join((*METHODS, PROBE))
            raise ValueError(f"Arm {self.name!r}: method must be one of {known}; got {self.method!r}.")
        if not self.rates and self.method != PROBE:
            object.__setattr__(self, "rates", RATES[self.method])
        if len(set(self.rates)) < len(self.rates) or any(not rate > 0 for rate in self.rates):
            raise ValueError(f"Arm {self.name!r}: rates={self.rates!r} must be above 0, and each once.")
        if self.shots and (self.method != PROBE or self.shots < 0):
            raise ValueError(f"Arm {self.name!r}: shots={self.shots!r} is for method {PROBE!r}, from 0 up.")


@dataclass(frozen=True)
class Search:
    """How each arm's learning rate is found, the same way for all.

    Parameters
    ----------
    held_out
        Share of the training rows that choose the rate, and stop training where the recipe has ``patience``.
    factor
        Between neighbouring rates that are added where the best one is at an end.
    most
        Rates an arm may try on a task.
    """

    held_out: float = 0.1
    factor: float = 2.0
    most: int = 9

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"search: held_out={self.held_out!r} is not a share between 0 and 1.")
        if not self.factor > 1 or self.most < 1:
            raise ValueError(
                f"search: factor={self.factor!r} must be above 1, most={self.most!r} at least 1."
            )


@dataclass(frozen=True)
class Grid:
    """What to run.

    Parameters
    ----------
    tasks, arms, seeds
        Every arm on every task. With a search, the first seed tries every rate, and the others take the best.
    encoder, source
        As for ``load_encoder`` and ``load_task``.
    recipe, changes
        A recipe's name, and fields of it to replace. ``start_from`` names the task whose run, of the same arm
        and seed, a run begins with.
    search
        Without one, every seed takes the recipe's rate, and all training rows train.
    of_task
        For some tasks, other ``seeds``, or other fields of the recipe.
    similarity
        Validation rows of STS-B, which must be at hand, on which each record says what became of the
        encoder's skill at `sentence_similarity`; 0 for none.
    scored
        At most so many rows of each validation and test set are scored, the same for all runs; 0 for all.

    Raises
    ------
    ValueError
        For an empty or repeated entry, an unknown name, or a bad value.
    """

    tasks: tuple[str, ...]
    arms: tuple[Arm, ...] = tuple(Arm(method, method) for method in METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    encoder: str = "minilm"
    source: str = "auto"
    recipe: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)
    search: Search | None = None
    of_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    similarity: int = 0
    scored: int = 0

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.tasks), ("seeds", self.seeds), ("arms", self.names)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values!r}: give at least one, and each once.")
        for task in self.of_task:
            if task not in self.tasks:
                raise ValueError(f"of_task names {task!r}, which is not among the tasks {self.tasks!r}.")
        if len({get_task(task).generative for task in self.tasks}) > 1:
            raise ValueError(f"tasks={self.tasks!r}: a language model and an encoder need a grid each.")
        for task in self.tasks:
            for arm in self.arms:
                first = self.recipe_for(task, arm).start_from
                if first is not None and first not in self.tasks[: self.tasks.index(task)]:
                    raise ValueError(
                        f"{task} starts from {first}, which is not before it in tasks: put it there, or set "
                        "start_from to none."
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The arms' names."""
        return tuple(arm.name for arm in self.arms)

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The seeds of a task's runs, the searching one first."""
        return tuple(self.of_task.get(task, {}).get("seeds", self.seeds))

    def recipe_for(self, task: str, arm: Arm) -> Recipe:
        """A task's recipe for an arm; no task starts from itself."""
        own = {key: value for key, value in self.of_task.get(task, {}).items() if key != "seeds"}
        recipe = load_recipe(self.recipe, task, **{**self.changes, **own, **arm.changes})
        return dataclasses.replace(recipe, start_from=None) if recipe.start_from == task else recipe


class Job(NamedTuple):
    """One run: its name, which is its record's, its arm, what it is, and the run that it begins with."""

    name: str
    arm: Arm
    experiment: Experiment
    start: Job | None = None

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.experiment.recipe.learning_rate


def read_grid(path: Path) -> Grid:
    """Read a grid from a TOML file, as in ``benchmarks/grids``.

    Its keys are the fields of `Grid`, with ``[[arm]]`` tables for `Arm`, in which ``lora`` is a table of
    `LoraConfig`'s fields; ``[recipe]`` has a ``name`` and the fields to replace.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is not TOML, or an entry is unknown or bad; the message says which.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no grid file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error
    try:
        return _grid_of(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _grid_of(values: dict[str, Any]) -> Grid:
    arms = [_arm_of(arm) for arm in values.pop("arm", ())]
    recipe = dict(values.pop("recipe", {}))
    given: dict[str, Any] = {"arms": tuple(arms)} if arms else {}
    given |= {"recipe": recipe.pop("name", "cpu"), "changes": recipe}
    if "search" in values:
        given["search"] = _made(Search, values.pop("search"), "search")
    for key in ("tasks", "seeds"):
        if key in values:
            given[key] = tuple(values.pop(key))
    return _made(Grid, {**values, **given}, "grid")


def _arm_of(values: dict[str, Any]) -> Arm:
    values = dict(values)
    if "lora" in values:
        values["lora"] = LoraConfig.from_dict(values["lora"])
    values |= {key: tuple(values[key]) for key in ("rates", "only") if isinstance(values.get(key), list)}
    return _made(Arm, values, f"arm {values.get('name')!r}")


def _made(kind: type, values: dict[str, Any], what: str) -> Any:
    names = [item.name for item in dataclasses.fields(kind)]
    if unknown := sorted(values.keys() - set(names)):
        raise ValueError(f"{what} has no entry {', '.join(unknown)}; it has {', '.join(names)}.")
    needed = [
        f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{what} lacks {', '.join(missing)}.")
    return kind(**values)


def parse_list(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """``"0,1,2"`` as values of one kind; ``ValueError`` names what cannot be read."""
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name}={text!r}: give {kind.__name__} values with commas between.") from None


class Engine(NamedTuple):
    """Who carries a grid's runs out: the kind, how many at a time (``None``: the kind decides), settings."""

    kind: str
    workers: int | None = None
    settings: Mapping[str, Any] = {}


def read_engine(text: str) -> Engine:
    """Read ``"local:4"``, ``"slurm"``, or ``"slurm:partition=gpu,timeout_min=600,gpus_per_node=1"``.

    What follows ``slurm:`` are parameters of submitit's executor, as in its documentation; without
    ``timeout_min`` a job has a day.

    Raises
    ------
    ValueError
        For another engine, or a setting that cannot be read.
    RuntimeError
        If submitit is not installed, or this machine cannot submit to Slurm.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in ("local", "slurm"):
        raise ValueError(f"--engine {text} is unknown; give local:N (N processes of this machine) or slurm.")
    if kind == "local" and not (rest.isascii() and rest.isdecimal() and int(rest)):
        raise ValueError(f"--engine {text}: after local: give how many runs go on at a time, as in local:4.")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",") if kind == "slurm" else ()):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ValueError(
                f"--engine {text}: {part!r} is no setting; write name=value, as in partition=gpu."
            )
        shared = name in SHARED or name.startswith("slurm_")
        settings[name if shared else f"slurm_{name}"] = int(value) if value.isdecimal() else value
    if find_spec("submitit") is None:
        raise RuntimeError(
            "--engine needs submitit, which is not installed: pip install 'lora-tutorial[cluster]'."
        )
    if kind == "slurm" and shutil.which("sbatch") is None:
        raise RuntimeError(
            "--engine slurm needs sbatch, and this machine has none: give the command on a cluster's login "
            "node, or take local:N."
        )
    return Engine(kind, int(rest) if kind == "local" else None, settings)


def plan(grid: Grid, work: Path, records: Records) -> list[Job]:
    """Every run that the records so far call for, in order; a search's next runs follow from its last.

    ``records`` has the record of each finished run by name. `plan` is called again after every run: it then
    names the rates by which a search is widened, and at last the runs at the best rate.
    """
    return [job for task in grid.tasks for arm in grid.arms for job in _runs(grid, task, arm, work, records)]


def _runs(grid: Grid, task: str, arm: Arm, work: Path, records: Records) -> list[Job]:
    seeds, starts = grid.seeds_of(task), _starts(grid, task, arm, work, records)
    if starts is None:
        return []

    def job(rate: float | None, seed: int) -> Job:
        return _job(
            grid, task, arm, rate, seed, work / starts[seed].name if starts else None, starts.get(seed)
        )

    if arm.method == PROBE:
        return [job(None, seeds[0])]
    if grid.search is None:
        return [job(None, seed) for seed in seeds]
    jobs = [job(rate, seeds[0]) for rate in arm.rates]
    while all(records.get(j.name) is not None for j in jobs):
        scores = search_scores(jobs, records)
        best = best_rate(scores)
        if best is None:
            return jobs
        ends = min(scores), max(scores)
        if best not in ends or len(scores) >= grid.search.most:
            return jobs + [job(best, seed) for seed in seeds[1:]]
        beyond = best / grid.search.factor if best == ends[0] else best * grid.search.factor
        jobs.append(job(float(f"{beyond:.6g}"), seeds[0]))
    return jobs


def _starts(grid: Grid, task: str, arm: Arm, work: Path, records: Records) -> dict[int, Job] | None:
    """The run that each seed begins with, by the same arm on the task named; ``None`` until all are done."""
    first = grid.recipe_for(task, arm).start_from
    if first is None or arm.method == PROBE:
        return {}
    found = _runs(grid, first, arm, work, records)
    if any(records.get(job.name) is None for job in found):
        return None
    if grid.search is None:
        return {job.experiment.seed: job for job in found}
    rate = best_rate(
        search_scores([j for j in found if j.experiment.seed == grid.seeds_of(first)[0]], records)
    )
    chosen = {job.experiment.seed: job for job in found if job.rate == rate}
    return chosen if chosen.keys() >= set(grid.seeds_of(task)) else None


def search_scores(jobs: Sequence[Job], records: Records) -> dict[float, float]:
    """Each rate's score on the held-out rows, lowest rate first; minus infinity where training diverged."""
    scores = {}
    for job in jobs:
        record = records[job.name]
        assert record is not None
        scores[job.rate] = held_out_score(record)
    return dict(sorted(scores.items()))


def time_to_go(jobs: Iterable[Job], records: Records) -> float | None:
    """Seconds for the jobs without a record, or ``None`` while nothing has finished.

    Each is taken to last as long as the mean run of its task and arm, else of its arm, else of all. A search
    may still call for more.
    """
    jobs = list(jobs)
    times: dict[tuple[str | None, str | None], list[float]] = {}
    for job in jobs:
        record = records.get(job.name)
        if record is not None and record.wall_seconds:
            task, arm = job.experiment.task, job.arm.name
            for key in ((task, arm), (None, arm), (None, None)):
                times.setdefault(key, []).append(record.wall_seconds)
    if not times:
        return None
    total = 0.0
    for job in jobs:
        if records.get(job.name) is None:
            task, arm = job.experiment.task, job.arm.name
            known = next(times[k] for k in ((task, arm), (None, arm), (None, None)) if k in times)
            total += sum(known) / len(known)
    return total


def _job(
    grid: Grid, task: str, arm: Arm, rate: float | None, seed: int, folder: Path | None, start: Job | None
) -> Job:
    recipe = grid.recipe_for(task, arm)
    first = recipe.start_from if start else None
    name = f"{task}-from-{first}-{arm.name}" if first else f"{task}-{arm.name}"
    if rate is not None:
        name += f"-lr{rate:g}"
    experiment = Experiment(
        dataclasses.replace(recipe, learning_rate=rate or recipe.learning_rate, start_from=first),
        task,
        grid.encoder,
        "head" if arm.method == PROBE else arm.method,
        grid.source,
        seed,
        arm.lora,
        arm.variant,
        arm.bits,
        arm.pooling,
        arm.head,
        folder if start else None,
        grid.search.held_out if grid.search else 0.0,
        arm.name,
        arm.only,
        grid.scored,
    )
    return Job(f"{name}-seed{seed}", arm, experiment, start)
