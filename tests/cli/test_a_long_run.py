"""A run from the outside: its bars, a second process on its folder, Ctrl-C, and going on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from bench_rows import BAD, GOOD
from command_line import call, environment, installed_script, unboxed
from tiny_checkpoint import make_checkpoint

pty = pytest.importorskip("pty")
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


def read_until(terminal, process, met):
    """What a process shows until ``met`` is true of it."""
    shown, end = "", time.monotonic() + PATIENCE
    while not met(shown):
        assert process.poll() is None and time.monotonic() < end, shown[-2000:]
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_bars_a_lock_and_ctrl_c(command, tmp_path):
    ours, theirs = pty.openpty()
    started = subprocess.Popen(
        [installed_script(), *command], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    try:
        record = tmp_path / "run" / "record.json"
        shown = read_until(ours, started, lambda shown: record.exists() and "step/s" in shown)
        assert "encoding" in shown and "scoring" in shown

        again = call(*command, "--resume", cwd=tmp_path)
        assert (again.returncode, again.stdout) == (2, b"")
        assert "Another process is working on the run" in unboxed(again.stderr.decode())

        started.send_signal(signal.SIGINT)
        told = ""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            told += part.decode(errors="replace")
        assert started.wait(PATIENCE) == 130
        assert "Stopped. The same command with --resume goes on from the last checkpoint in run." in told
        assert "Traceback" not in told
    finally:
        started.kill()
        started.wait()
        os.close(ours)
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    # the lock went with the process: the command goes on from where it was
    done = call(*command[:-6], "--epochs", "4999", "--out", "run", "--resume", cwd=tmp_path)
    assert "recipe.epochs is 5000 there, 4999 here" in unboxed(done.stderr.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_ctrl_c_before_the_first_step_keeps_nothing(command, tmp_path):
    started = subprocess.Popen(
        [installed_script(), *command],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert b"Fine-tuning" in started.stdout.readline()
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert "Stopped before the first step; nothing was kept." in told.decode() and b"Traceback" not in told
    assert not (tmp_path / "run").exists()
