"""Run a grid: one record each, finished runs skipped, killed ones resumed, broken ones recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_tutorial.adapters.files import TENSORS
from lora_tutorial.experiments.evaluate import trained_file
from lora_tutorial.experiments.grid import Grid, Job, best_rate, plan_jobs
from lora_tutorial.experiments.run import describe, encoder_hash, run_experiment, save_run_adapter
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.storage.files import sha256_of
from lora_tutorial.training.checks import check_identity, check_trackers
from lora_tutorial.training.records import STEP_SERIES, RunRecord, load_record


def run_grid(
    grid: Grid,
    folder: Path,
    work: Path,
    sweep: bool = False,
    rates: Sequence[float] | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> list[RunRecord]:
    """Run what is not there yet, and return the record of every run.

    What can be found wrong beforehand (names, data, encoder, records of another configuration) is, before any
    training. A run that breaks is recorded as failed; the next call tries it again.

    Parameters
    ----------
    grid
        What to run.
    folder
        Of the records; a sweep's go into ``sweeps`` there.
    work
        For checkpoints, trackers' files and adapters: one folder a run.
    sweep
        Instead of the runs, try several learning rates on each task by each method. A part of the training
        rows is held out for their scores; validation rows are never read. The seeds play no part.
    rates
        To try for every method, instead of ``RATES``.
    say
        Gets a line for each run.
    **options
        Passed on to ``train``: ``progress``, ``checkpoint_every``, ``log_with``, ``cpu``.

    Raises
    ------
    ValueError
        For bad values, or a record under a run's name that is of another configuration.
    FileNotFoundError, HubUnreachableError, AssetError
        If data or encoder cannot be had.
    """
    check_trackers(options.get("log_with", ()))
    base = encoder_hash(load_encoder(grid.encoder).model)
    jobs = plan_jobs(grid, folder, work, sweep, rates)
    records = {job.name: _existing(job, base, work) for job in jobs}
    for job in jobs:
        if records[job.name] is None or records[job.name].status != "finished":
            job.data.prepared()  # a length the encoder does not take is found now, not by each run
    for number, job in enumerate(jobs, start=1):
        found = records[job.name]
        if found is not None and found.status == "finished":
            say(f"[{number}/{len(jobs)}] {job.name}: here already, {_score(found)}")
        else:
            records[job.name] = record = _run(job, base, work / job.name, options)
            ended = f"{_score(record)}, {record.wall_seconds:.0f} s" if record.error is None else record.error
            left = time_to_go(jobs[number:], records)
            say(f"[{number}/{len(jobs)}] {job.name}: {ended}{f'; {left / 60:.0f} min to go' if left else ''}")
        if records[job.name].status == "finished":
            shutil.rmtree(work / job.name / "checkpoints", ignore_errors=True)
    for stem in dict.fromkeys(job.name.rpartition("-lr")[0] for job in jobs if job.sweep):
        best, scores = best_rate(folder, stem)
        edge = len(scores) > 1 and best in (min(map(float, scores)), max(map(float, scores)))
        told = ", ".join(f"{rate}: {score:.3f}" for rate, score in scores.items()) or "none finished"
        say(f"{stem}: best rate {best} of {told}{' (at the edge; try rates beyond it)' if edge else ''}")
    return list(records.values())


def _existing(job: Job, base: str, work: Path) -> RunRecord | None:
    """The record under the job's name, here or unfinished in the work folder, if it is of this job."""
    expected = _blank(job, base)
    found = None
    for path in (work / job.name / "record.json", job.path):
        if path.exists():
            found = load_record(path)
            check_identity(dataclasses.replace(found, identity={}), expected, path)
    return found if job.path.exists() else None


def _blank(job: Job, base: str) -> RunRecord:
    e = job.experiment
    return RunRecord(describe(e, job.data.sha256, base), e.recipe.to_dict(), e.seed)


def _run(job: Job, base: str, folder: Path, options: Mapping[str, Any]) -> RunRecord:
    """Run one job to its end or to its failure, and store its record."""
    _count_memory_anew()
    try:
        finished = run_experiment(
            job.experiment, folder, prepared=job.data.prepared(), every_split=True, resume=True, **options
        )
        record, file = finished.record, trained_file(finished.model)
        record.extra |= {"adapter_bytes": len(file), "adapter_sha256": hashlib.sha256(file).hexdigest()}
        if job.experiment.method.startswith("lora"):
            save_run_adapter(finished, folder / "adapter")
    except Exception as error:  # whatever it is, the rest of the grid can still run
        path = folder / "record.json"
        record = load_record(path) if path.exists() else _blank(job, base)
        record.status, record.error = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
    record.extra |= job.extra
    if job.experiment.start is not None and (job.experiment.start / TENSORS).is_file():
        record.extra["start_sha256"] = sha256_of(job.experiment.start / TENSORS)
    if job.sweep:
        record.steps = {name: [] for name in STEP_SERIES}  # a sweep's curves would outweigh the runs' own
    record.save(job.path)
    return record


def _count_memory_anew() -> None:
    """Let the next peak be that of the next run: the process would otherwise report its highest so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets the peak resident set


def _score(record: RunRecord) -> str:
    return f"{record.main_score} {record.last['scores'][record.main_score]:.3f}"


def time_to_go(jobs: Iterable[Job], records: Mapping[str, RunRecord | None]) -> float | None:
    """Seconds for the jobs without a finished record, or ``None`` while nothing has finished.

    Each is taken to go at the mean pace of its task and method, else of its method, else of all.
    """
    paces: dict[tuple[str | None, str | None], list[float]] = {}
    for record in records.values():
        if record is not None and record.status == "finished":
            task, method = record.config["task"], record.config["method"]
            pace = record.wall_seconds / (record.identity["examples"] * record.recipe["epochs"])
            for key in ((task, method), (None, method), (None, None)):
                paces.setdefault(key, []).append(pace)
    if not paces:
        return None
    total = 0.0
    for job in jobs:
        found = records[job.name]
        if found is None or found.status != "finished":
            task, method = job.experiment.task, job.experiment.method
            known = next(paces[k] for k in ((task, method), (None, method), (None, None)) if k in paces)
            total += job.cost() * sum(known) / len(known)
    return total
