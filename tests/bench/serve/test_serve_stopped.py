"""Runs of bench.serve that are stopped: by a server that dies, a signal, or for good."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="bench.serve needs aiohttp")

from bench.serve.__main__ import main
from tests.bench.serve.pairs import arguments, folder_of, pair, write_model
from tests.bench.small_run import lines

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_model(folder)
    return folder


def test_a_server_that_dies_ends_the_run_and_the_same_command_goes_on(model: Path, tmp_path: Path, capsys: Any) -> None:
    ours, theirs = pair(fault="die", at=8)
    with theirs.running():
        with ours.running():
            command = arguments(model, tmp_path, ours.url, theirs.url, concurrency=1, block=2, warmup=False)
            assert main(command) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"server.url={ours.url}: nobody listens") and error.endswith("goes on behind them")
        file = folder_of(tmp_path) / "blocks.jsonl"
        before, ours.fault = lines(file), None
        with ours.running():
            assert main(command) == 0
    assert 0 < len(before) < 6 and lines(file)[: len(before)] == before and len(lines(file)) == 6


def test_a_killed_run_goes_on_behind_its_last_whole_block(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair(token_s=0.02)
    theirs.token_s = 0.02
    with ours.running(), theirs.running():
        command = arguments(model, tmp_path, ours.url, theirs.url, concurrency=1, block=2, warmup=False)
        process = subprocess.Popen([sys.executable, "-m", "bench.serve", *command], cwd=ROOT, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while not any(map(lines, tmp_path.glob("serve/*/*/*/blocks.jsonl"))) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        file = folder_of(tmp_path) / "blocks.jsonl"
        before = lines(file)
        assert before and len(before) < 6
        with file.open("a") as torn:
            torn.write('{"level": 1, "repe')
        ours.token_s = theirs.token_s = 0.0
        assert main(command) == 0
    after = lines(file)
    assert after[: len(before)] == before and len(after) == 6
    assert len({(one["block"], one["side"]) for one in after}) == 6


def test_sigterm_is_one_line(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair(token_s=0.05)
    with ours.running(), theirs.running():
        command = arguments(model, tmp_path, ours.url, theirs.url)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.serve", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 60
        while not ours.asked and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        _, error = process.communicate(timeout=30)
    assert process.returncode == 143, error
    assert error.strip().splitlines()[-1] == "interrupted; the same command continues where it stopped", error


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_launched_server_ends_with_a_killed_run(model: Path, tmp_path: Path) -> None:
    import psutil

    mark = str(tmp_path)
    launch = f"'{sys.executable} -m http.server --directory {mark} {{port}}'"
    command = arguments(model, tmp_path, "null", "null", server__launch=launch, server__baseline_launch=launch)
    process = subprocess.Popen([sys.executable, "-m", "bench.serve", *command], cwd=ROOT)

    def servers() -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline"])
        return [one for one in every if "http.server" in (one.info["cmdline"] or []) and mark in one.info["cmdline"]]

    until = time.monotonic() + 60
    while not servers() and time.monotonic() < until:
        time.sleep(0.05)
    found = servers()
    process.kill()
    process.wait()
    assert found and not psutil.wait_procs(found, timeout=10)[1]
