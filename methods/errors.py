"""Errors a user can act on. Entry points print a UserError as one line and exit with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake in configuration or input: one line naming the key, the value and what would be valid."""


class NonFiniteLogits(ArithmeticError):
    """The target produced NaN or infinite logits, so no token can be chosen from them."""


MOST = 1 << 14  # rows, levels or tokens of a step: more is a slip, and would take the memory of a machine


def check_sizes(least: int = 1, most: int = MOST, **sizes: int) -> None:
    """Raises UserError for a setting of a method, by name, that is out of range."""
    for name, value in sizes.items():
        if value < least:
            raise UserError(f"method.{name}={value}: must be at least {least}")
        if value > most:
            raise UserError(f"method.{name}={value}: must be at most {most}")


def nearest(name: object, valid: Iterable[str]) -> str:
    """Ending of an error line: the closest valid name, if one is close, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}valid: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an error says, as far as it fits on one line; its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """What went wrong, on one line; with the name of an error whose text alone says little, as a KeyError's."""
    line = getattr(error, "strerror", None) or first_line(error)
    return str(line) if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: {line}"


@contextmanager
def reading(file: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a broken file makes json, pickle, torch or safetensors raise into one line that names the file.

    What is no file is not opened: a FIFO would wait for ever. A flipped byte of a .bin file alone was seen to raise ten
    kinds of errors, AssertionError and BadZipFile among them.
    """
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: not readable as {what} (not a file){remedy}")
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: not readable as {what} ({reason(error)}){remedy}") from error
