"""Files that a user gives: whether one can be read at all, its JSON records, and what is said in a conversation."""

from __future__ import annotations

import gzip
import json
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from methods.errors import UserError, first_line

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".txt")
WANTED = "a ShareGPT JSON list or JSONL is wanted"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Messages = list[dict[str, str]]


@contextmanager
def readable(path: Path, wanted: str = WANTED, key: str = "data.path") -> Iterator[None]:
    """Around all that opens and reads a file. Raises UserError, naming it, unless it is one that can be read.

    What is no file is not opened: a FIFO would wait for ever.
    """
    where = f"{key}={shown(path)}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{where}: not a file; {wanted}")
        yield
    except UserError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{where}: truncated, or not a gzip file; compress it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text; {wanted}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{where}: {reason}; {wanted}") from error


def shown(path: Path) -> str:
    """A path on one line."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def read(path: Path, wanted: str = WANTED, key: str = "data.path") -> Iterator[tuple[str, Any]]:
    """Records of a JSON list or JSONL file, or a .gz of one, with a name for each ("record 3", "line 7").

    A JSONL line that is not JSON yields its ValueError in place of a record. Raises UserError for a file that cannot
    be read, is empty, or is a JSON list that does not parse.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with readable(path, wanted, key), opened(path, "rt", encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if not first:
            raise UserError(f"{key}={shown(path)}: the file is empty; {wanted}")
        if first.lstrip().startswith("["):
            records = _parsed(file.read())
            if isinstance(records, ValueError):
                raise UserError(f"{key}={shown(path)}: not valid JSON ({records})") from records
            yield from ((f"record {number}", record) for number, record in enumerate(records))
            return
        if first.lstrip().startswith("{") and isinstance(_parsed(first), ValueError):  # one object on several lines?
            if not isinstance(whole := _parsed(file.read()), ValueError):
                yield "record 0", whole
                return
            file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(text: str) -> Any:
    """What JSON says, or the ValueError of what is none."""
    try:
        return json.loads(text)
    except ValueError as error:
        return error
    except RecursionError:
        return ValueError("nested too deep")


def said(turns: Sequence[Any]) -> Messages:
    """The turns of a conversation, ShareGPT's or OpenAI's, as chat messages. Raises ValueError for one that is none."""
    found = []
    for number, turn in enumerate(turns):
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in ROLES or not isinstance(text, str):
            raise ValueError(f"turn {number} has no known 'from' ({', '.join(ROLES)}) or no text under 'value'")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"turn {number} has half of a character")
        found.append({"role": ROLES[speaker], "content": text})
    return found
