"""Run records put side by side: task by method, all seeds of a cell together, beside what others published.

Takes the records that `stored_records` returns and knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_tutorial.analysis.published import PUBLISHED_GLUE
from lora_tutorial.training.recipes import with_defaults

if TYPE_CHECKING:
    from lora_tutorial.training.records import RunRecord

__all__ = ["METHOD_ORDER", "Board", "Cell", "beside_published", "collect", "gap", "shared_facts"]

#: The order of methods in tables and figures, fewest trained parameters first.
METHOD_ORDER = ("head", "bitfit", "lora", "lora+bias+norm", "full")

# What may differ between the seeds of one cell; all other settings must agree.
_MUST_AGREE = ("task", "encoder", "method", "lora_rank", "lora_alpha", "head", "data_sha256", "base_sha256")


@dataclass(frozen=True)
class Cell:
    """The runs of one task by one method, one for each seed, in order of seed."""

    records: tuple[RunRecord, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(record.seed for record in self.records)

    @property
    def trainable(self) -> int:
        """Parameters that were trained, the head's included."""
        return self.records[0].trainable_parameters

    def scores(self, which: str = "last", name: str | None = None) -> list[float]:
        """One score a seed: of the ``"last"`` or the ``"best"`` epoch, by default the task's main score."""
        return [getattr(record, which)["scores"][name or record.main_score] for record in self.records]

    def mean(self, which: str = "last", name: str | None = None) -> float:
        """The mean over the seeds."""
        values = self.scores(which, name)
        return sum(values) / len(values)

    def spread(self, which: str = "last") -> float:
        """Highest minus lowest seed; 0 where there is one seed."""
        values = self.scores(which)
        return max(values) - min(values)

    def curve(self) -> list[tuple[int, list[float]]]:
        """For each epoch its number and the main score of every seed."""
        return [
            (number, [r.epochs[number - 1]["scores"][r.main_score] for r in self.records])
            for number in range(1, min(len(record.epochs) for record in self.records) + 1)
        ]


#: Task to method to cell, tasks in the order of ``tasks``, methods in that of ``METHOD_ORDER``.
Board = dict[str, dict[str, Cell]]


def collect(records: Iterable[RunRecord], tasks: Iterable[str]) -> Board:
    """Sort finished runs into cells.

    Parameters
    ----------
    records
        Runs in any order. Unfinished and failed ones, and those of other tasks, are left out.
    tasks
        Which tasks, in the order wanted; those without a run do not appear.

    Raises
    ------
    ValueError
        If two runs of one cell differ in anything but the seed, or share it; or if no run is left.
    """
    wanted = list(tasks)
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.status == "finished" and record.config["task"] in wanted:
            found.setdefault((record.config["task"], record.config["method"]), []).append(record)
    if not found:
        raise ValueError(f"No finished run of {', '.join(wanted)} among the records; give others.")
    for (task, method), runs in found.items():
        runs.sort(key=lambda record: record.seed)
        if len({_settings(record) for record in runs}) > 1:
            raise ValueError(
                f"The runs of {task} by {method} are of different configurations, so their seeds do not "
                "belong together; give the records of one."
            )
        if len({record.seed for record in runs}) < len(runs):
            raise ValueError(f"Two runs of {task} by {method} have the same seed; give each once.")
    return {
        task: {m: Cell(tuple(found[task, m])) for m in METHOD_ORDER if (task, m) in found}
        for task in wanted
        if any(key[0] == task for key in found)
    }


def _settings(record: RunRecord) -> str:
    recipe = sorted(with_defaults(record.recipe).items())
    return repr([record.config.get(name) for name in _MUST_AGREE] + recipe)


def beside_published(
    board: Board, published: Iterable[str] = ("paper LoRA", "paper full*", "tutorial")
) -> list[dict[str, Any]]:
    """The rows of a table in percent: our means by method, then the published figures of the same score.

    Each row has ``task``, ``score``, ``rows`` (trained on), ``seeds`` (how many of the cell with the fewest),
    one entry a method that any task has, and one a published row. What is missing is ``None``.
    """
    published = list(published)
    methods = [m for m in METHOD_ORDER if any(m in cells for cells in board.values())]
    rows = []
    for task, cells in board.items():
        main = next(iter(cells.values())).records[0].main_score
        row: dict[str, Any] = {"task": task, "score": main}
        row["rows"] = max(r.identity["examples"] for cell in cells.values() for r in cell.records)
        row["seeds"] = min(len(cell.records) for cell in cells.values())
        row |= {m: 100 * cells[m].mean() if m in cells else None for m in methods}
        row |= {name: PUBLISHED_GLUE[name].scores.get(task, {}).get(main or "") for name in published}
        rows.append(row)
    return rows


def gap(board: Board, method: str, other: str, leave_out: Iterable[str] = ()) -> dict[str, float]:
    """For each task with both methods, ``method`` minus ``other`` in points of the main score."""
    left_out = set(leave_out)
    return {
        task: 100 * (cells[method].mean() - cells[other].mean())
        for task, cells in board.items()
        if method in cells and other in cells and task not in left_out
    }


def shared_facts(board: Board) -> dict[str, str]:
    """What a reader must know of the runs, each as all the values that occur, with commas between."""
    runs = [r for cells in board.values() for cell in cells.values() for r in cell.records]

    def every(values: Iterable[Any]) -> str:
        distinct = {str(value): value for value in values}.values()
        return ", ".join(str(value) for value in sorted(distinct, key=lambda v: (str(type(v)), v)))

    return {
        "encoder": every(r.config["encoder"] for r in runs),
        "parameters in all (M)": every(round(r.total_parameters / 1e6, 1) for r in runs),
        "LoRA rank": every(r.config["lora_rank"] for r in runs),
        "epochs": every(r.recipe["epochs"] for r in runs),
        "batch": every(r.recipe["batch_size"] for r in runs),
        "training rows, at most": every(r.recipe["max_examples"] for r in runs),
        "tokens, at most": every(r.recipe["max_length"] for r in runs),
        "seeds": every(r.seed for r in runs),
        "device": every(f"{r.device}, {r.hardware['threads']} of {r.hardware['cores']} cores" for r in runs),
        "processor": every(r.hardware["cpu"] for r in runs),
        "torch": every(r.versions["torch"].partition("+")[0] for r in runs),
        "transformers": every(r.versions["transformers"] for r in runs),
    }
