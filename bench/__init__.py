"""Measuring: runs, their records and reports, trainings, servers under load."""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


# python -m bench.COMMAND imports this first: before bench.command takes over, and after it, nothing is half done.
if sys.argv[:1] == ["-m"]:
    for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(_number) is _usual:
            signal.signal(_number, _leave)
