"""Run records: what was run, on what, and what came out, as one JSON file each."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_tutorial.storage.files import atomic_write_bytes, bundled_folder

FORMAT = 1
STATUSES = ("running", "finished", "failed")
STEP_SERIES = ("loss", "learning_rate", "grad_norm")
#: The split of training rows that are kept apart, by which a search chooses its learning rate.
HELD_OUT = "held_out"
# fmt: off
PACKAGES = (
    "lora-tutorial", "torch", "transformers", "tokenizers", "datasets", "evaluate", "accelerate", "peft",
    "bitsandbytes", "safetensors", "numpy", "scipy", "scikit-learn", "torchmetrics",
)
# fmt: on


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; absent ones are left out."""
    return dict(_installed())


def describe_hardware(threads: int | None = None, accelerator: str | None = None) -> dict[str, Any]:
    """Processor model, logical cores and, where given, threads in use and the accelerator's name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the platform module's answer stands
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
    }


@dataclass
class RunRecord:
    """One run.

    Parameters
    ----------
    config
        What the caller says about the run: model, task, method, adapter settings.
    recipe
        The recipe's fields.
    seed
        The run's seed.
    identity
        What must agree, beside configuration, recipe and seed, before this run is continued.
    steps
        Per optimiser step: ``loss``, ``learning_rate``, ``grad_norm`` (before clipping), equally long.
        A ``grad_norm`` is ``None`` where fp16 overflowed and the step was skipped.
    epochs
        Per epoch: ``epoch`` (from 1), ``step``, ``train_loss`` (mean), ``scores``, ``seconds`` (that epoch
        and its evaluation; time lost to a kill is not in it).
    main_score
        The key of ``scores`` that decides :attr:`best`; every score counts as better when higher.
    trainable_parameters, total_parameters
        Counts.
    wall_seconds
        Time in training and evaluation, resumed parts included, without what a kill threw away.
    peak_memory_bytes
        Highest resident set of the main process, or the highest allocation on a CUDA device.
    device, processes, mixed_precision, versions, hardware
        Where it ran.
    extra
        Whatever a caller adds afterwards: adapter bytes, hash of the predictions, identity of the data.
    error
        Why a failed run stopped.
    """

    config: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    identity: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    steps: dict[str, list[float | None]] = field(default_factory=lambda: {name: [] for name in STEP_SERIES})
    epochs: list[dict[str, Any]] = field(default_factory=list)
    main_score: str | None = None
    trainable_parameters: int = 0
    total_parameters: int = 0
    wall_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    device: str = "cpu"
    processes: int = 1
    mixed_precision: str = "no"
    versions: dict[str, str] = field(default_factory=package_versions)
    hardware: dict[str, Any] = field(default_factory=describe_hardware)
    extra: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def last(self) -> dict[str, Any] | None:
        """Epoch, step and scores of the last evaluation; ``None`` before the first."""
        return _score_line(self.epochs[-1]) if self.epochs and self.epochs[-1]["scores"] else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The same for the best evaluation by ``main_score`` (the earliest of equals).

        Chosen on the very set that is reported, so it flatters: compare ``last`` with ``last``.
        """
        scored = [epoch for epoch in self.epochs if epoch["scores"]]
        if not scored:
            return None
        # max keeps the first of equals
        return _score_line(max(scored, key=lambda epoch: epoch["scores"][self.main_score]))

    @property
    def kept(self) -> dict[str, Any] | None:
        """The same for the weights the run ended with: ``best`` if the recipe keeps it, else ``last``."""
        return self.best if self.recipe.get("keep_best") else self.last

    def add_step(self, loss: float, learning_rate: float, grad_norm: float | None) -> None:
        """Append one optimiser step, to the seven digits that single precision holds."""
        for name, value in zip(STEP_SERIES, (loss, learning_rate, grad_norm), strict=True):
            self.steps[name].append(None if value is None else float(f"{value:.7g}"))

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values, with ``last`` and ``best`` written out."""
        return {"format": FORMAT, **dataclasses.asdict(self), "last": self.last, "best": self.best}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record whole or not at all; one line for each field keeps differences readable."""
        lines = [
            f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in self.to_dict().items()
        ]
        return atomic_write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunRecord:
        """Rebuild and check a record.

        Raises
        ------
        ValueError
            If it is of another format, has missing, unknown or inconsistent fields.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"Not a run record of format {FORMAT} (found {found!r}).")
        names = {item.name for item in dataclasses.fields(cls)}
        missing = sorted((names | {"last", "best"}) - set(values))
        unknown = sorted(set(values) - names - {"format", "last", "best"})
        if missing or unknown:
            raise ValueError(f"Run record with missing fields {missing} and unknown fields {unknown}.")
        record = cls(**{name: values[name] for name in names})
        record.check()
        for name in ("last", "best"):
            if values[name] != getattr(record, name):
                raise ValueError(f"Run record whose {name!r} does not follow from its epochs: it was edited.")
        return record

    def check(self) -> None:
        """Raise ``ValueError`` at the first field that contradicts another."""
        if self.status not in STATUSES:
            raise ValueError(
                f"Run record with status {self.status!r}: expected one of {', '.join(STATUSES)}."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"Run record with seed {self.seed!r}: expected a whole number.")
        lengths = {name: len(self.steps.get(name, ())) for name in STEP_SERIES}
        if set(self.steps) != set(STEP_SERIES) or len(set(lengths.values())) != 1:
            raise ValueError(f"Run record whose step series differ in length: {lengths}.")
        for position, epoch in enumerate(self.epochs, start=1):
            if epoch.get("epoch") != position or not isinstance(epoch.get("scores"), dict):
                raise ValueError(
                    f"Run record whose epoch {position} is missing, out of order or has no scores."
                )
            if epoch["scores"] and self.main_score not in epoch["scores"]:
                raise ValueError(
                    f"Run record whose main score {self.main_score!r} is not in epoch {position}."
                )


def _score_line(epoch: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": epoch["epoch"], "step": epoch["step"], "scores": dict(epoch["scores"])}


def score_of(record: RunRecord, split: str = "validation") -> float:
    """The main score that the record keeps for a split."""
    return record.extra["splits"][split]["scores"][record.main_score]


def held_out_score(record: RunRecord) -> float:
    """What a search goes by: the main score on the held-out rows; minus infinity of a run that failed."""
    if record.status != "finished":
        return float("-inf")
    return score_of(record, HELD_OUT)


def best_rate(scores: Mapping[float, float]) -> float | None:
    """The learning rate with the highest score, the lowest of equals; ``None`` where every run diverged."""
    if not scores or max(scores.values()) == float("-inf"):
        return None
    return min(scores, key=lambda rate: (-scores[rate], rate))


def load_record(path: str | os.PathLike[str]) -> RunRecord:
    """Read one record.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON or not a consistent record; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No run record at {path}.")
    try:
        return RunRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_back(path: str | os.PathLike[str], replaceable: bool) -> RunRecord | None:
    """The record of a run that is to go on, or ``None`` where there is none.

    Parameters
    ----------
    path
        Of ``record.json`` in the run's folder.
    replaceable
        Whether a complete checkpoint, which holds the record as well, is beside it: then a damaged file is
        passed over with a warning.

    Raises
    ------
    ValueError
        If the file is damaged and not replaceable.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return load_record(path)
    except (OSError, ValueError) as error:
        if not replaceable:
            raise ValueError(
                f"{error} The run has no complete checkpoint to go on from either: remove {path.parent} or "
                "choose another folder."
            ) from error
        warnings.warn(f"{error} Its checkpoint holds the record too; going on with that.", stacklevel=2)
        return None


def load_records(folder: str | os.PathLike[str]) -> list[RunRecord]:
    """Every ``*.json`` record directly in ``folder``, in order of file name."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"No folder of run records at {folder}.")
    return [load_record(path) for path in sorted(Path(folder).glob("*.json"))]


def stored_records(pattern: str) -> list[RunRecord]:
    """The records that come with the book and whose file names match ``pattern``, in order of name.

    They are in ``benchmarks/results`` of the repository; an installed package carries a copy.

    Raises
    ------
    FileNotFoundError
        If none matches.
    """
    paths = sorted(bundled_folder("records").glob(pattern))
    if not paths:
        raise FileNotFoundError(f"No stored record matches {pattern!r}; the repository has them all.")
    return [load_record(path) for path in paths]
