"""Grids carried out by submitit: the records of one process, through kill -9 of worker and controller."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lora_tutorial.experiments import bench, grid
from lora_tutorial.experiments.bench import Worker, Workers, run_grid
from lora_tutorial.experiments.grid import Engine, read_engine, read_grid
from lora_tutorial.experiments.grid import plan as planned
from lora_tutorial.training.records import RunRecord, load_record

pytest_plugins = ["bench_fixtures"]

#: Read by every Python that a job starts: each checkpoint leaves a line, and one of them is not survived.
WATCHED = """
import os, signal
_replace, here = os.replace, os.environ["WATCHED"]

def replace(source, target, **options):
    run, step = os.path.basename(os.path.dirname(os.path.dirname(str(target)))), os.path.basename(str(target))
    if step.startswith("step-"):
        if (run, step) == ("sst2-a-lr0.001-seed0", "step-00000005") and not os.path.exists(f"{here}/died"):
            open(f"{here}/died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(f"{here}/steps", "a") as log:
            log.write(f"{run} {step} {os.getpid()}\\n")
    _replace(source, target, **options)

os.replace = replace
"""
CONTROLLER = """
from pathlib import Path
from lora_tutorial.experiments.bench import run_grid
from lora_tutorial.experiments.grid import read_grid
options = {"progress": False, "cpu": True, "checkpoint_every": 1}
run_grid(read_grid(Path("grid.toml")), Path("r"), Path("w"), lambda line: print(line, flush=True), "local:4",
         **options)
"""


def results(folder):
    """Everything of a grid's records that does not depend on the clock or the machine."""
    kept = {}
    for path in folder.iterdir():
        record = load_record(path)
        extra = {key: record.extra.get(key) for key in ("splits", "trained_sha256", "adapter_sha256")}
        losses = [epoch["train_loss"] for epoch in record.epochs]
        kept[path.name] = record.status, extra, losses, record.recipe, record.config, record.identity
    return kept


@pytest.mark.slow
def test_four_workers_leave_what_one_process_does_through_kill_9(tmp_path, data, encoder, monkeypatch):
    """A worker dies inside its fifth checkpoint; once that is noticed, the controller dies too."""
    (tmp_path / "grid.toml").write_text(
        f"tasks = ['sst2']\nseeds = [0, 1]\nencoder = '{encoder}'\nsource = '{data}'\n"
        "[recipe]\nname = 'cpu'\nepochs = 2\nbatch_size = 8\n[search]\nheld_out = 0.2\nmost = 2\n"
        "[[arm]]\nname = 'a'\nmethod = 'lora'\nrates = [1e-3, 1e-2]\n[[arm]]\nname = 'b'\nmethod = 'head'\n"
        "rates = [1e-3, 1e-2]\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCHED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("WATCHED", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", CONTROLLER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
        for line in controller.stdout:
            if "is lost" in line:
                break
        assert line.startswith("sst2-a-lr0.001-seed0: worker 1 of 3 is lost, it goes on from its last"), line
        controller.send_signal(signal.SIGKILL)
    told, options = [], {"progress": False, "cpu": True, "checkpoint_every": 1}
    small = read_grid(tmp_path / "grid.toml")
    done = run_grid(small, Path("r"), Path("w"), told.append, "local:4", **options)
    assert len(done) == 6 and {record.status for record in done} == {"finished"}, told
    run_grid(small, Path("alone/r"), Path("alone/w"), lambda line: None, **options)
    assert results(tmp_path / "r") == results(tmp_path / "alone" / "r")
    steps = [line.split() for line in (tmp_path / "steps").read_text().splitlines()]
    assert len(steps) == len({(run, step) for run, step, _ in steps}) == 6 * 8, "no step was done twice"
    workers = [worker for run, _, worker in steps if run == "sst2-a-lr0.001-seed0"]
    assert workers[3] != workers[4] and len(set(workers)) == 2, "another worker went on with the fifth"
    assert str(os.getpid()) not in {worker for _, _, worker in steps}


def _has_slurm():
    try:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%a"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and "up" in asked.stdout


@pytest.mark.slow
@pytest.mark.skipif(not _has_slurm(), reason="no Slurm answers here (sinfo)")
def test_slurm_leaves_what_one_process_does(plan, tmp_path):
    """Two jobs of one array; each asks for one core, and the machines must see this folder."""
    options = {"progress": False, "cpu": True, "checkpoint_every": 1}
    two = plan(seeds=(0, 1))
    engine = "slurm:timeout_min=10,cpus_per_task=1"
    run_grid(two, tmp_path / "r", tmp_path / "w", lambda line: None, engine, **options)
    run_grid(two, tmp_path / "alone/r", tmp_path / "alone/w", lambda line: None, **options)
    assert len(results(tmp_path / "r")) == 2 and list((tmp_path / "w").rglob("*_submission.sh"))
    assert results(tmp_path / "r") == results(tmp_path / "alone" / "r")


@pytest.mark.slow
def test_a_run_that_loses_every_worker_is_recorded_as_failed(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TRIES", 2)
    monkeypatch.setattr(Worker, "__call__", lambda self, job: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0, raising=False)
    lines = []
    # a job's function is pickled whole where its module cannot be imported: here it must be this one
    import cloudpickle

    cloudpickle.register_pickle_by_value(bench)
    try:
        run_grid(plan(), tmp_path / "r", tmp_path / "w", lines.append, "local:1", cpu=True)
    finally:
        cloudpickle.unregister_pickle_by_value(bench)
    (record,) = [load_record(path) for path in (tmp_path / "r").iterdir()]
    assert (
        record.status == "failed" and record.error == "WorkerLost: 2 times, at last: killed, or out of memory"
    )
    assert str(tmp_path) not in (tmp_path / "r" / "sst2-lora-seed0.json").read_text()
    assert sum("is lost" in line for line in lines) == 2 and "it counts as failed" in lines[1]


def test_a_preempted_run_is_queued_again_as_it_was(plan, tmp_path):
    made = bench.Bench(plan(), tmp_path / "r", tmp_path / "w", {})
    (job,) = planned(made.grid, made.work, {})
    worker = Worker(made, {"cpu": True}, 1)
    again = worker.__submitit_checkpoint__(job)
    assert again.function is worker and again.args == (job,)


class Handle:
    """A job of submitit's that is done when told so."""

    def __init__(self, job):
        self.job, self.ended, self.paths = job, False, self

    def done(self):
        return self.ended

    def result(self):
        return RunRecord({}, {}, 0, status="finished")


def test_no_more_jobs_run_than_there_are_workers_and_what_others_hold_counts(plan, tmp_path, monkeypatch):
    made = bench.Bench(plan(("head", "lora", "full"), seeds=(0, 1)), tmp_path / "r", tmp_path / "w", {})
    workers = Workers(made, Engine("local", 2), {"cpu": True}, print)
    handles = []
    monkeypatch.setattr(
        workers, "submit", lambda jobs: handles.extend(map(Handle, jobs)) or handles[-len(jobs) :]
    )
    todo = planned(made.grid, made.work, {})
    with bench.folder_lock(made.lock_of(todo[0])):
        assert workers.step(todo) == [] and [handle.job for handle in handles] == todo[1:2]
    assert workers.step(todo) == [] and [handle.job for handle in handles] == [todo[1], todo[0]]
    handles[0].ended = True
    [(job, record)] = workers.step(todo)
    assert job is todo[1] and record.status == "finished"
    assert [handle.job for handle in handles] == [todo[1], todo[0], todo[2]]
    everything = Workers(made, Engine("local", None), {"cpu": True}, print)
    monkeypatch.setattr(everything, "submit", lambda jobs: [Handle(job) for job in jobs])
    everything.step(todo)
    assert len(everything.running) == len(todo), "a cluster decides for itself how many run"


def test_an_engines_words(monkeypatch, tmp_path):
    assert read_engine("local:4") == Engine("local", 4, {})
    monkeypatch.setattr(grid.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs sbatch, and this machine has none"):
        read_engine("slurm")
    monkeypatch.setattr(grid.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = read_engine("slurm:partition=gpu, timeout_min=600,gpus_per_node=1,slurm_qos=low")
    settings = {"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1, "slurm_qos": "low"}
    assert found == Engine("slurm", None, settings)
    monkeypatch.setattr(grid, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"submitit, which is not installed: pip install 'lora-tutorial\[cluster\]'"
    ):
        read_engine("local:2")


SBATCH = r"""#!/bin/sh
echo "$1" >> {here}/submitted
cp "$1" {here}/job.sh
echo "Submitted batch job 7"
export SLURM_JOB_ID=7 SUBMITIT_EXECUTOR=slurm SLURM_ARRAY_JOB_ID=7
for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")); do
    SLURM_ARRAY_TASK_ID=$task setsid bash "$1" >> {here}/log 2>&1 &
done
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
SLURM_NTASKS=1 SLURM_PROCID=0 exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for task in 0 1; do echo "7_$task|RUNNING|here"; done
"""


@pytest.mark.slow
def test_slurm_gets_an_array_of_runs_with_the_settings(plan, tmp_path, monkeypatch):
    """With commands of the same names as Slurm's, of which sbatch starts the file at once."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH.replace("{here}", str(tmp_path))), ("srun", SRUN), ("sacct", SACCT)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    engine, both = "slurm:partition=short,timeout_min=90,cpus_per_task=2", plan(("head",), seeds=(0, 1))
    run_grid(both, tmp_path / "r", tmp_path / "w", print, engine, cpu=True)
    run_grid(both, tmp_path / "r1", tmp_path / "w1", print, progress=False, cpu=True)
    assert results(tmp_path / "r") == results(tmp_path / "r1") and len(results(tmp_path / "r")) == 2
    text = (tmp_path / "job.sh").read_text()
    for line in ("--partition=short", "--time=90", "--cpus-per-task=2", "--array=0-1%2"):
        assert f"#SBATCH {line}" in text
    assert len((tmp_path / "submitted").read_text().splitlines()) == 1
