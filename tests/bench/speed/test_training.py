"""The training benchmark: both sides compute the same loss, and memory is what was promised."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_same_loss_in_at_most_half_the_memory() -> None:
    command = [sys.executable, "-m", "bench.speed.training", "--steps", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr  # losses that differ end it with 1
    difference = float(re.search(r"losses differ by at most (\S+)", done.stdout).group(1))
    ours, plain = (float(found) for found in re.findall(r"(\d+) MB", done.stdout))
    assert 0 < difference < 1e-3
    assert 0 < ours <= plain / 2
