"""What all commands share: a mistake is one line and status 2, Ctrl-C one line and 130, SIGTERM one line and 143.

A reader that leaves early (| head) ends a command in silence, with a shell's status for that: 141.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from string import Formatter
from types import FrameType
from typing import TYPE_CHECKING

from methods.errors import UserError, nearest

if TYPE_CHECKING:
    from bench.config import Conf

Main = Callable[[Sequence[str]], int]
HELP = {"-h", "--help"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a job that is preempted gets it: whatever handles Ctrl-C handles it too."""


def command(advice: Callable[[Sequence[str]], str], usage: str = "") -> Callable[[Main], Main]:
    """Make a function of arguments an entry point. advice: what follows "interrupted; " for these arguments.

    usage: what --help prints; without it the function does that by itself.
    """

    def decorate(work: Main) -> Main:
        @wraps(work)
        def main(arguments: Sequence[str]) -> int:
            stops: list[KeyboardInterrupt] = []
            try:
                with stoppable(stops):
                    for argument in arguments:  # a byte of the shell's that is no UTF-8 would be recorded
                        if "\0" in argument or argument.encode("utf-8", "replace").decode() != argument:
                            raise UserError(f"{argument!a}: not valid Unicode")
                    if usage and HELP & set(arguments):
                        print(usage)
                        status = 0
                    else:
                        status = work(arguments)
                    print(end="", flush=True)  # while a reader that has left can still be told from a mistake
                    return status
            except BaseException as error:
                # What is stopped while it is imported may raise something else of its own.
                stop = next((s for s in (error, *stops) if isinstance(s, KeyboardInterrupt)), None)
                if stop is None and isinstance(error, BrokenPipeError) and unread():
                    return 128 + signal.SIGPIPE
                if stop is None and not isinstance(error, UserError):
                    raise
                print(error if stop is None else f"interrupted; {advice(arguments)}", file=sys.stderr)
                return 2 if stop is None else 143 if isinstance(stop, Terminated) else 130

        return main

    return decorate


def configured(
    advice: Callable[[Sequence[str]], str], usage: str, **more: Callable[[Conf], Sequence[str]]
) -> Callable[[Callable[[Conf, list[str]], int]], Main]:
    """As `command`, for a function of the folders of configuration and the overrides.

    usage: {group} in it becomes the names that conf/group offers, and a name of `more` what that finds.
    """

    def decorate(work: Callable[[Conf, list[str]], int]) -> Main:
        @command(advice)
        @wraps(work)
        def main(arguments: Sequence[str]) -> int:
            from bench.config import Conf  # takes a moment, in which a signal is one line too

            conf, overrides = Conf.given(arguments)
            if HELP & set(overrides):
                names = {name for _, name, *_ in Formatter().parse(usage) if name}
                lists = {name: more[name](conf) if name in more else conf.choices(name) for name in names}
                print(usage.format(**{name: ", ".join(found) for name, found in lists.items()}))
                return 0
            return work(conf, overrides)

        return main

    return decorate


def key_values(arguments: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """key=value arguments, over their defaults. Raises UserError for an unknown key, or none, and for no value."""
    values = dict(defaults)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in values:
            raise UserError(f"{argument}: unknown argument; {nearest(key, values)}")
        if not value:
            raise UserError(f"{argument}: expected {key}=VALUE")
        values[key] = value
    return values


def numbers(arguments: Sequence[str], defaults: Mapping[str, int], least: int = 1) -> dict[str, int]:
    """As key_values, of whole numbers. Raises UserError for one below `least` too."""
    values = key_values(arguments, {key: str(number) for key, number in defaults.items()})
    for key, value in values.items():
        if not value.isdecimal() or len(value) > 18 or int(value) < least:
            raise UserError(f"{key}={value}: must be a number from {least:,}")
    return {key: int(value) for key, value in values.items()}


def goes_on(arguments: Sequence[str]) -> str:
    """How an interrupted command continues; resume=false would begin yet another time."""
    given = [argument.lower() for argument in arguments if argument.lower().startswith("resume=")]
    same = "the same command without resume=false" if given[-1:] == ["resume=false"] else "the same command"
    return f"{same} continues where it stopped"


def again(arguments: Sequence[str]) -> str:
    """Of a command that keeps nothing half done."""
    return "the same command starts over"


def unread() -> bool:
    """Whether nobody reads what this process prints. If so, what it has left to print goes nowhere."""
    outputs = select.poll()
    for number in (1, 2):
        outputs.register(number, 0)
    gone = [number for number, event in outputs.poll(0) if event & select.POLLERR]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(gone)


def importing(frame: FrameType | None) -> bool:
    """Whether an import is going on in this frame or in one that it was called from."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


@contextmanager
def stoppable(stops: list[KeyboardInterrupt]) -> Iterator[None]:
    """Inside, SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt, each kept in `stops` too.

    A few seconds at most are waited for the end of an import: torch aborts at what is raised while it is imported.
    Only the main thread may say so; elsewhere nothing changes, nor for a Ctrl-C that is ignored.
    """
    delays = iter([0.05] * 100)

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        if not importing(frame) or not (delay := next(delays, None)):
            raise stops[-1]
        later = threading.Timer(delay, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
