"""Run a grid: one record a run, finished runs skipped, killed ones resumed, broken ones recorded.

The runs are carried out in this process, or by submitit as jobs of this machine or of a Slurm cluster. Either
way a grid's whole state is its files: records, checkpoints, and a lock for each run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from lora_tutorial.data.metrics import load_metric
from lora_tutorial.data.tasks import get_task
from lora_tutorial.experiments.baselines import linear_probe, sentence_similarity, similarity_pairs
from lora_tutorial.experiments.evaluate import Evaluation, prompt
from lora_tutorial.experiments.grid import (
    PROBE,
    Engine,
    Grid,
    Job,
    Records,
    plan,
    read_engine,
    search_scores,
    time_to_go,
)
from lora_tutorial.experiments.inputs import Prepared, make_loaders
from lora_tutorial.experiments.run import (
    TRAINED,
    base_hash,
    describe,
    prepare,
    run_experiment,
    save_run_adapter,
    trained_file,
)
from lora_tutorial.lm.evaluator import ResponseScorer
from lora_tutorial.lm.models import LanguageModel, load_lm
from lora_tutorial.lora.variants import VARIANTS
from lora_tutorial.models.encoders import Encoder, load_encoder, quiet
from lora_tutorial.storage.files import (
    FolderInUseError,
    atomic_write_bytes,
    folder_lock,
    lock_file,
    sha256_of,
)
from lora_tutorial.training.records import STEP_SERIES, RunRecord, best_rate, describe_hardware, load_record
from lora_tutorial.training.setup import check_identity, check_trackers, count_memory_anew

#: How a run says that its learning rate was too high; a search takes it as the lowest score.
DIVERGED = "NonFiniteLossError"
WAIT = 5.0  # seconds between looks at the records of another process
LOOK = 1.0  # seconds between looks at jobs of our own
TRIES = 3  # workers that a run may lose before it counts as failed


class Bench:
    """Everything that the runs of one grid share: the base model, each task's data, the folders."""

    def __init__(self, grid: Grid, folder: Path, work: Path, options: Mapping[str, Any]) -> None:
        self.grid, self.folder, self.work, self.options = grid, folder, work, dict(options)
        self.keep_steps = bool(self.options.pop("keep_steps", False))
        for arm in grid.arms:
            if arm.variant not in VARIANTS:
                known = ", ".join(VARIANTS)
                raise ValueError(f"Arm {arm.name!r}: variant must be one of {known}; got {arm.variant!r}.")
        load = load_lm if get_task(grid.tasks[0]).generative else load_encoder
        self.encoder: Encoder | LanguageModel = load(grid.encoder)
        self.base = {bits: base_hash(self.encoder.model, bits) for bits in {arm.bits for arm in grid.arms}}
        self._data: dict[str, Prepared] = {}
        self.pairs = similarity_pairs(grid.source, grid.similarity) if grid.similarity else None

    def data_of(self, job: Job) -> Prepared:
        """A task's rows and tokens, made when first trained on, and once."""
        e, recipe = job.experiment, job.experiment.recipe
        key = f"{e.task} {recipe.max_examples} {recipe.max_length} {e.held_out} {e.scored}"
        if key not in self._data:
            prepared = prepare(e)
            if "validation" not in prepared.loaded.data:
                raise ValueError(f"bench needs train and validation rows of {e.task!r}; take another source.")
            self._data[key] = prepared
        return self._data[key]

    def expected(self, job: Job) -> RunRecord:
        """What a record under the job's name must agree with."""
        e = job.experiment
        config = describe(e, self.data_of(job).data_sha256, self.base[e.bits])
        if job.arm.method == PROBE:
            config["method"] = PROBE
        return RunRecord(config, e.recipe.to_dict(), e.seed)

    def find(self, job: Job) -> RunRecord | None:
        """The record of a run that is done (one that diverged is), if it is of this job.

        Raises
        ------
        ValueError
            If the record under its name, here or unfinished in the work folder, is of another configuration.
        """
        found = None
        for path in (self.work / job.name / "record.json", self.folder / f"{job.name}.json"):
            if path.exists():
                found = load_record(path)
                check_identity(dataclasses.replace(found, identity={}), self.expected(job), path)
        if not (self.folder / f"{job.name}.json").exists() or found is None:
            return None
        return found if found.status == "finished" or diverged(found) else None

    def step(self, todo: Sequence[Job]) -> list[tuple[Job, RunRecord]]:
        """Run the first of these jobs that no other process has; nothing if others have them all."""
        for job in todo:
            if (record := self.take(job)) is not None:
                return [(job, record)]
        return []

    def take(self, job: Job) -> RunRecord | None:
        """The record of a job, which is run if need be; ``None`` while another process has it."""
        try:
            with folder_lock(self.lock_of(job), job.name):
                return self.find(job) or self.run(job)
        except FolderInUseError:
            return None

    def lock_of(self, job: Job) -> Path:
        """What a process holds while a job is its own."""
        return self.work / f"{job.name}.lock"

    def run(self, job: Job) -> RunRecord:
        """Run one job to its end or to its failure, and store its record."""
        record = self._train(job) if job.arm.method != PROBE else self._probe(job)
        record.save(self.folder / f"{job.name}.json")
        if record.status == "finished":
            shutil.rmtree(self.work / job.name / "checkpoints", ignore_errors=True)
        return record

    def _train(self, job: Job) -> RunRecord:
        count_memory_anew()
        folder, e = self.work / job.name, job.experiment
        try:
            if job.start is not None and not (self.work / job.start.name / TRAINED).is_file():
                self._train(
                    job.start
                )  # its record is there already, and its weights are not: make them again
            result = run_experiment(
                e,
                folder,
                prepared=self.data_of(job),
                every_split=True,
                keep_predictions=True,
                resume=True,
                **self.options,
            )
            record, file = result.record, trained_file(result.model, self.base[e.bits])
            record.extra |= {"trained_bytes": len(file), "trained_sha256": hashlib.sha256(file).hexdigest()}
            record.extra |= self._skill(result.model.model)
            atomic_write_bytes(folder / TRAINED, file)
            if e.method.startswith("lora") and e.bits is None and e.variant != "pissa":  # no base has these
                save_run_adapter(result, folder / "adapter")
                record.extra["adapter_sha256"] = sha256_of(folder / "adapter" / "adapter.safetensors")
        except Exception as error:  # whatever it is, the rest of the grid can still run
            path = folder / "record.json"
            record = load_record(path) if path.exists() else self.expected(job)
            record.status, record.error = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        if job.start is not None and (self.work / job.start.name / TRAINED).is_file():
            record.extra["start_sha256"] = sha256_of(self.work / job.start.name / TRAINED)
        if not self.keep_steps:
            record.steps = {name: [] for name in STEP_SERIES}  # the curves would outweigh all else
        return record

    def _probe(self, job: Job) -> RunRecord:
        """The record of the arm that trains nothing; its strength is chosen by cross-validation."""
        record, started, tokenizer = self.expected(job), time.monotonic(), cast(Any, self.encoder.tokenizer)
        if self.data_of(job).loaded.task.generative:
            prompted = prompt(self.encoder.model, tokenizer, self.data_of(job), job.arm.shots)
            record.extra, record.main_score = prompted, ResponseScorer.main_score
        else:
            record.extra, record.main_score = self._linear_probe(job, tokenizer)
            record.extra |= self._skill(self.encoder.model)
        record.status = "finished"
        record.total_parameters = sum(value.numel() for value in self.encoder.model.parameters())
        record.wall_seconds = time.monotonic() - started
        record.hardware = describe_hardware(torch.get_num_threads())
        return record

    def _skill(self, encoder: Any) -> dict[str, float]:
        """What is left of the encoder's own skill, where the grid asks for it."""
        if self.pairs is None:
            return {}
        return {"similarity": sentence_similarity(encoder, cast(Any, self.encoder.tokenizer), self.pairs)}

    def _linear_probe(self, job: Job, tokenizer: Any) -> tuple[dict[str, Any], str]:
        """What the record of a linear probe holds, and its main score."""
        loaded, tokens, _ = self.data_of(job)
        metric = load_metric(loaded.task.metric)
        loaders = make_loaders(loaded, tokenizer, job.experiment.recipe, 0, tokens)
        splits, regression = tuple(loaders.scored), loaded.task.regression
        probes = linear_probe(self.encoder.model, loaders, metric, regression, splits, job.arm.pooling)
        lengths = {split: [len(ids) for ids in tokens[split]["input_ids"]] for split in splits}
        evaluations = {
            split: Evaluation(
                probes[split].in_order(lengths[split]), probes[split].scores, list(tokens[split]["labels"])
            )
            for split in splits
        }
        final = "test" if "test" in splits else "validation"
        extra = {
            "scored_on": final,
            "scores": {"trained": probes[final].scores},
            "splits": {split: made.summary(True) for split, made in evaluations.items()},
            "strength": probes[final].strength,
        }
        return extra, metric.main_score


class Worker:
    """Carries out one run where submitit starts it. It is pickled, so it holds what a `Bench` is made of."""

    def __init__(self, bench: Bench, options: Mapping[str, Any], threads: int | None) -> None:
        self.parts = (bench.grid, bench.folder, bench.work, {**options, "progress": False})
        self.threads = threads

    def __call__(self, job: Job) -> RunRecord | None:
        """The job's record; ``None`` where another process has the job."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with quiet():
            return Bench(*self.parts).take(job)

    def __submitit_checkpoint__(self, job: Job) -> Any:
        """What submitit queues again when Slurm takes the machine away: the run goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Workers:
    """A grid's runs as jobs of submitit, which starts and watches them. `step` is that of `Bench`.

    On this machine a job is a process, and at most ``engine.workers`` run at a time. On Slurm all are
    queued at once, and Slurm decides. Jobs outlive the process that submitted them; another one that takes
    the grid up waits for the runs they hold.
    """

    def __init__(
        self, bench: Bench, engine: Engine, options: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        import submitit

        self.bench, self.engine, self.say = bench, engine, say
        self.gpus = 0 if options.get("cpu") or engine.kind != "local" else torch.cuda.device_count()
        # the same number of threads adds in the same order, and so leaves the same record
        threads = torch.get_num_threads() if engine.kind == "local" else None
        self.worker = Worker(bench, options, threads)
        self.running: dict[str, tuple[Job, submitit.Job]] = {}
        self.lost: Counter[str] = Counter()
        logs, limit = bench.work / "jobs", {"timeout_min": engine.settings.get("timeout_min", 24 * 60)}
        self.executor: submitit.Executor
        if engine.kind == "local":
            self.executor = submitit.LocalExecutor(logs)
        else:
            self.executor = submitit.AutoExecutor(logs, cluster="slurm")
        self.executor.update_parameters(**{**engine.settings, **limit})

    def step(self, todo: Sequence[Job]) -> list[tuple[Job, RunRecord]]:
        """Collect the jobs that have ended, then submit as many as there is room for."""
        ended = []
        for job, handle in list(self.running.values()):
            if handle.done():
                del self.running[job.name]
                if (record := self._outcome(job, handle)) is not None:
                    ended.append((job, record))
        told, others = {job.name for job, _ in ended}, 0
        new: list[Job] = []
        for job in todo:
            if job.name in self.running or job.name in told:
                continue
            if _is_held(self.bench.lock_of(job)):
                others += 1  # by a worker whose controller was stopped, or by another command
            elif (found := self.bench.find(job)) is not None:
                ended.append((job, found))
            elif self.engine.workers is None or len(self.running) + others + len(new) < self.engine.workers:
                new.append(job)
        for job, handle in zip(new, self.submit(new) if new else (), strict=True):
            self.running[job.name] = job, handle
        return ended

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Hand jobs to submitit; to Slurm as one array."""
        if self.engine.kind == "slurm":
            with self.executor.batch():
                return [self.executor.submit(self.worker, job) for job in jobs]
        handles = []
        for place, job in enumerate(jobs, start=len(self.running)):
            if self.gpus:  # submitit shows a local job no GPU unless told: one each, in turn
                self.executor.update_parameters(gpus_per_node=1, visible_gpus=(place % self.gpus,))
            handles.append(self.executor.submit(self.worker, job))
        return handles

    def _outcome(self, job: Job, handle: Any) -> RunRecord | None:
        """The record that a job returned; ``None`` where it is to be submitted again."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return handle.result()
        except UncompletedJobError as error:  # it was killed, or raised before the run began
            self.lost[job.name] += 1
            reason = "killed, or out of memory"
            if isinstance(error, FailedJobError):  # the traceback's last line
                reason = [line.strip() for line in str(error).splitlines() if line.strip("- ")][-1]
        again = self.lost[job.name] < TRIES
        next_ = "it goes on from its last checkpoint" if again else "it counts as failed"
        self.say(
            f"{job.name}: worker {self.lost[job.name]} of {TRIES} is lost, {next_} ({handle.paths.stderr})"
        )
        if again:
            return None
        record = self.bench.expected(job)
        record.status, record.error = "failed", f"WorkerLost: {TRIES} times, at last: {reason}"
        record.save(self.bench.folder / f"{job.name}.json")
        return record


def _is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; the file of one that was killed says nothing."""
    if not lock_file(folder.resolve()).exists():
        return False
    try:
        with folder_lock(folder):
            return False
    except FolderInUseError:
        return True


def run_grid(
    grid: Grid,
    folder: Path,
    work: Path,
    say: Callable[[str], None] = print,
    engine: str | None = None,
    **options: Any,
) -> list[RunRecord]:
    """Run what is not there yet, and return the record of every run.

    What can be found wrong beforehand (names, data, encoder, records of another configuration) is, before any
    training. A run that breaks is recorded as failed; the next call tries it again. Several processes may run
    one grid together: each takes a run that no other has.

    Parameters
    ----------
    grid
        What to run.
    folder
        Of the records.
    work
        For checkpoints, trackers' files and trained weights: one folder a run.
    say
        Gets a line for each run.
    engine
        Who carries the runs out: ``None`` this process, one after another; ``"local:4"`` four processes of
        this machine, ``"slurm"`` a cluster (see `read_engine`). The records are the same.
    **options
        Passed on to ``train``: ``progress``, ``checkpoint_every``, ``log_with``, ``cpu``; and ``keep_steps``,
        whether records keep loss, rate and gradient norm of every step.

    Raises
    ------
    ValueError
        For bad values, or a record under a run's name that is of another configuration.
    FileNotFoundError, HubUnreachableError, AssetError
        If data or encoder cannot be had.
    """
    check_trackers(options.get("log_with", ()))
    chosen = read_engine(engine) if engine is not None else None
    # a worker may begin in another folder
    folder, work = (
        (Path(folder), Path(work)) if chosen is None else (Path(folder).resolve(), Path(work).resolve())
    )
    bench = Bench(grid, folder, work, options)
    records: dict[str, RunRecord | None] = {}
    tried: set[str] = set()

    def jobs() -> list[Job]:
        """What there is to do by what is known now; a search's records call for more."""
        while True:
            planned = plan(grid, bench.work, records)
            new = [job for job in planned if records.get(job.name) is None and job.name not in tried]
            found = {job.name: bench.find(job) for job in new}
            records.update(found)
            if not any(found.values()):
                return planned

    for job in jobs():
        bench.data_of(job)  # a length the encoder does not take is found now, not by each run
    here = {name for name, record in records.items() if record is not None}
    for number, name in enumerate(sorted(here), start=1):
        say(f"[{number}] {name}: here already, {_told(records[name])}")
    by = bench if chosen is None else Workers(bench, chosen, options, say)
    while todo := [job for job in jobs() if records.get(job.name) is None and job.name not in tried]:
        ended = by.step(todo)
        for job, made in ended:
            records[job.name] = made
            if made.status != "finished":
                tried.add(job.name)
            left = time_to_go(plan(grid, bench.work, records), records)
            say(f"{job.name}: {_told(made)}{f'; {left / 60:.0f} min to go' if left else ''}")
        if not ended:
            time.sleep(WAIT if chosen is None else LOOK)  # others have them all
    _say_rates(grid, bench, records, say)
    planned = plan(grid, bench.work, records)
    return [record for job in planned if (record := records.get(job.name)) is not None]


def diverged(record: RunRecord) -> bool:
    """Whether the run failed because its learning rate was too high."""
    return record.status == "failed" and (record.error or "").startswith(DIVERGED)


def _told(record: RunRecord | None) -> str:
    assert record is not None
    if record.error is not None:
        return record.error
    scores = " ".join(
        f"{split} {about['scores'][record.main_score]:.3f}" for split, about in record.extra["splits"].items()
    )
    return f"{record.main_score} {scores}, {record.wall_seconds:.0f} s"


def _say_rates(grid: Grid, bench: Bench, records: Records, say: Callable[[str], None]) -> None:
    if grid.search is None:
        return
    searched: dict[tuple[str, str], list[Job]] = {}
    for job in plan(grid, bench.work, records):
        if job.arm.method != PROBE and job.experiment.seed == grid.seeds_of(job.experiment.task)[0]:
            searched.setdefault((job.experiment.task, job.arm.name), []).append(job)
    for (task, arm), jobs in searched.items():
        if all(records.get(job.name) is not None for job in jobs):
            scores = search_scores(jobs, records)
            told = ", ".join(f"{rate:g}: {score:.3f}" for rate, score in scores.items())
            best = best_rate(scores)
            edge = best in (min(scores), max(scores)) and len(scores) > 1
            say(f"{task} {arm}: best rate {best} of {told}{' (at the edge)' if edge else ''}")
