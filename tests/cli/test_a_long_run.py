"""A run from the outside: its bars, a second process on its folder, Ctrl-C, and going on."""

import functools
import os
import select
import signal
import subprocess
import sys
import time

import pytest
from bench_rows import BAD, GOOD
from command_line import ends, environment, installed_script
from tiny_checkpoint import make_checkpoint

pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
pytestmark = pytest.mark.slow
PATIENCE = 240  # seconds; importing everything takes ten on a busy machine


@pytest.fixture
def command(tmp_path):
    """Training that lasts until it is stopped."""
    rows = [
        (f"{text} {i}", kind)
        for i in range(20)
        for kind, texts in (("bad", BAD), ("good", GOOD))
        for text in texts
    ]
    (tmp_path / "films.csv").write_text("text,label\n" + "".join(f'"{t}",{k}\n' for t, k in rows))
    encoder = make_checkpoint(tmp_path / "tiny", GOOD + BAD)
    brief = ["--epochs", "5000", "--checkpoint-every", "5", "--out", "run"]
    return ["train", "films.csv", "--encoder", str(encoder), *brief]


def start(command, folder, **streams):
    """The installed script in a process that hears Ctrl-C, even where the tests run in the background."""
    hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [installed_script(), *command], cwd=folder, env=environment(), preexec_fn=hears, **streams
    )


def read(terminal, end):
    """What comes next, or ``""`` where the other end is closed; a failure where nothing comes in time."""
    ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
    assert ready, f"nothing was shown in {PATIENCE} s"
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # Linux says so where the other end is closed
        return ""


def read_until(terminal, process, met):
    """What a process shows until ``met`` is true of it."""
    shown, end = "", time.monotonic() + PATIENCE
    while not met(shown):
        assert process.poll() is None, shown[-2000:]
        shown += read(terminal, end)
    return shown


def read_to_the_end(terminal):
    """What a process shows before it ends."""
    shown, end = "", time.monotonic() + PATIENCE
    while part := read(terminal, end):
        shown += part
    return shown


def test_bars_a_lock_and_ctrl_c(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))  # without a size nothing is drawn
    started = start(command, tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        record = tmp_path / "run" / "record.json"
        bars = ("encoding", "step/s", "scoring")  # the baseline's, training's, and that of an epoch's end
        read_until(ours, started, lambda shown: all(bar in shown for bar in bars))
        assert record.exists()

        printed, said = ends(monkeypatch, capsys, *command, "--resume")
        assert printed == "" and "Another process is working on the run" in said

        started.send_signal(signal.SIGINT)
        told = read_to_the_end(ours)
        assert started.wait(PATIENCE) == 130
        assert "Stopped. The same command with --resume goes on from the last checkpoint in run." in told
        assert "Traceback" not in told
    finally:
        started.kill()
        started.wait()
        os.close(ours)
    *_, last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    # the lock went with the process: the command goes on from where it was
    printed, said = ends(monkeypatch, capsys, *command[:-6], "--epochs", 4999, "--out", "run", "--resume")
    assert f"Going on after step {int(last.name[5:]):,}, the last whole checkpoint" in printed
    assert "recipe.epochs is 5000 there, 4999 here" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_ctrl_c_before_the_first_step_keeps_nothing(command, tmp_path):
    started = start(command, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"Fine-tuning" in started.stdout.readline()
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert "Stopped before the first step; nothing was kept." in told.decode() and b"Traceback" not in told
    assert not (tmp_path / "run").exists()
