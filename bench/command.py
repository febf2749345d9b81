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
            stops: list[KeyboardInterrupt] = []
            try:
                with stoppable(stops):
                    return work(arguments)
            except BaseException as error:
                # What is stopped while it is imported may raise something else of its own.
                stop = next((s for s in (error, *stops) if isinstance(s, KeyboardInterrupt)), None)
                if stop is None and not isinstance(error, UserError):
                    raise
                print(error if stop is None else f"interrupted; {advice(arguments)}", file=sys.stderr)
                return 2 if stop is None else 143 if isinstance(stop, Terminated) else 130

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
def stoppable(stops: list[KeyboardInterrupt]) -> Iterator[None]:
    """Inside, SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt, each kept in `stops` too.

    Only the main thread may say so; elsewhere nothing changes, nor for a Ctrl-C that is ignored.
    """

    def stop(number: int, frame: Any) -> None:
        stops.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise stops[-1]

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
