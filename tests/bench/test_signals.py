"""What a command makes of mistakes and signals."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from bench.command import again, command
from methods.errors import UserError


def wait() -> None:
    """Until a signal is handled: another thread of the tests may have received it, which would wake no pause."""
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("raised", [None, RuntimeError, UserError])
def test_a_signal_is_one_line_whatever_an_import_makes_of_it(number, status, raised, capsys) -> None:
    @command(again)
    def main(arguments: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), number)
            wait()
        except KeyboardInterrupt as stop:
            raise (raised("of another kind") if raised else stop) from stop
        return 0

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert main([]) == status
    assert capsys.readouterr().err == "interrupted; the same command starts over\n"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_mistakes_are_one_line_and_errors_of_ours_are_seen(capsys) -> None:
    @command(again)
    def main(arguments: Sequence[str]) -> int:
        raise (UserError if arguments else ZeroDivisionError)("what is wrong")

    assert main(["x"]) == 2 and capsys.readouterr().err == "what is wrong\n"
    with pytest.raises(ZeroDivisionError):
        main([])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_import_ends_before_the_command_is_stopped(number, status, tmp_path, monkeypatch, capsys) -> None:
    done = tmp_path / "done"
    (tmp_path / f"stopped_by_{number}.py").write_text(
        f"import os, pathlib\nos.kill(os.getpid(), {number})\npathlib.Path({str(done)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    @command(again)
    def main(arguments: Sequence[str]) -> int:
        importlib.import_module(f"stopped_by_{number}")
        wait()
        return 0

    assert main([]) == status and done.exists()
    assert capsys.readouterr().err == "interrupted; the same command starts over\n"


EARLY = """\
import os, runpy, sys
sys.argv = ["-m"]
class Found:
    def find_spec(name, path, target=None):
        if name == "bench.predict":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Found)
import bench.predict
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_command_begins_is_one_line(number, status) -> None:
    ended = subprocess.run([sys.executable, "-c", EARLY.format(number=number)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, "interrupted\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_in_silence(unbuffered) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "bench.report", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
