"""What all commands share: a mistake is one line and status 2, Ctrl-C one line and 130, SIGTERM one line and 143."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from methods.errors import UserError

Main = Callable[[Sequence[str]], int]


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a job that is preempted gets it: whatever handles Ctrl-C handles it too."""


def command(advice: Callable[[Sequence[str]], str]) -> Callable[[Main], Main]:
    """Make a function of arguments an entry point. advice: what follows "interrupted; " for these arguments."""

    def decorate(work: Main) -> Main:
        @wraps(work)
        def main(arguments: Sequence[str]) -> int:
            try:
                with terminable():
                    return work(arguments)
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            except KeyboardInterrupt as stop:
                print(f"interrupted; {advice(arguments)}", file=sys.stderr)
                return 143 if isinstance(stop, Terminated) else 130

        return main

    return decorate


def goes_on(arguments: Sequence[str]) -> str:
    """How an interrupted command continues; resume=false would begin yet another time."""
    given = [argument.lower() for argument in arguments if argument.lower().startswith("resume=")]
    same = "the same command without resume=false" if given[-1:] == ["resume=false"] else "the same command"
    return f"{same} continues where it stopped"


def again(arguments: Sequence[str]) -> str:
    """Of a command that keeps nothing half done."""
    return "the same command starts over"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated inside. Only the main thread may say so; elsewhere nothing changes."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
