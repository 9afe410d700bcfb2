"""Killed at any moment and started again, a run ends with the very same bits."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "scripts" / "killed_runs.py"


@pytest.mark.slow
def test_ten_kills_at_seeded_moments_end_in_the_same_bits(tmp_path):
    """kill -9 at any call at all, and inside a write: with half a tensor file, before an fsync or rename."""
    command = [sys.executable, str(SCRIPT), str(tmp_path), "10", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=SCRIPT.parents[3])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    whole, runs = told["whole"], told["runs"]
    assert whole["done"] == 24 and whole["status"] == "finished"
    assert len(runs) == 10 and {run["signal"] for run in runs} == {signal.SIGKILL}
    assert sum(any(name.startswith(".step-") for name in run["left"]) for run in runs) >= 3, (
        "none died in a write"
    )
    assert sum(0 < run["done"] < 24 for run in runs) >= 7
    for run in runs:
        end = run["end"]
        assert run["again"] == 0, run["plan"]
        for key in ("state", "steps", "scores", "status", "files"):
            assert end[key] == whole[key], (run["plan"], key)
        # A checkpoint every three steps: no more than these, and the one in progress, are done again.
        assert 0 <= end["done"] - 24 <= 3, run["plan"]
