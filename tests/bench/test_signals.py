"""What a command makes of mistakes and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from bench.command import again, command
from methods.errors import UserError


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("raised", [None, RuntimeError, UserError])
def test_a_signal_is_one_line_whatever_an_import_makes_of_it(number, status, raised, capsys) -> None:
    @command(again)
    def main(arguments: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
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
