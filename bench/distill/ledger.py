"""The file of conversations and, beside it, how far it is: what a killed process left half written is written again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.files import make_folder, replace_text
from bench.records.identity import differences, flatten
from bench.types import settings_of
from methods.engine.config import read_json
from methods.errors import UserError

REMEDY = "give another output"


@dataclass
class Progress:
    """How far a distillation is, and all that its next batch depends on."""

    settings: dict[str, Any]  # what decides the content
    bytes: int = 0  # of the file that are whole
    kept: int = 0  # conversations in it
    tokens: int = 0  # written in them
    calls: int = 0  # of generate; each has a seed of its own
    taken: int = 0  # prompts of the file
    waiting: list[str] = field(default_factory=list)  # prompts that were drawn and not answered yet
    dropped: dict[str, int] = field(default_factory=dict)  # conversations by reason

    def drop(self, why: str) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + 1

    def __str__(self) -> str:
        lost = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
        return f"{self.kept} conversations, {self.tokens} tokens written" + (f"; dropped: {lost}" if lost else "")


@dataclass
class Ledger:
    """An output file that is held by this process."""

    path: Path
    file: IO[bytes]
    progress: Progress

    @classmethod
    @contextmanager
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Iterator[Ledger]:
        """Go on with a file, or begin it. Raises UserError for one that is not this distillation's, or is in use."""
        if not path.name:
            raise UserError(f"output={path}: a file is wanted")
        make_folder(str(path.parent), "output")
        if path.exists() and not _state(path).exists():
            raise UserError(f"output={path}: there is such a file, and no distillation wrote it; give another one")
        try:
            file = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise UserError(f"output={path}: {error.strerror}; valid: a file that can be written") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"output={path}: another process is writing it; wait for it") from error
            progress = _progress(path, os.fstat(file.fileno()).st_size, settings)
            if file.read(progress.bytes).count(b"\n") != progress.kept:
                raise UserError(f"{_state(path)}: says {progress.kept} conversations, its file has others; {REMEDY}")
            file.truncate(progress.bytes)
            file.seek(progress.bytes)
            ledger = cls(path, file, progress)
            ledger._note()
            yield ledger

    def write(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> None:
        """Append whole conversations, and note that they are there."""
        for turns in conversations:
            record = {"id": self.progress.kept, "conversations": list(turns)}
            self.file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self.progress.kept += 1
        self.file.flush()
        os.fsync(self.file.fileno())
        self.progress.bytes = self.file.tell()
        self._note()

    def prompts(self) -> set[str]:
        """The first turn of every conversation in the file."""
        with self.path.open(encoding="utf-8") as file:
            return {json.loads(line)["conversations"][0]["value"] for line in file}

    def _note(self) -> None:
        replace_text(_state(self.path), json.dumps(asdict(self.progress), indent=1) + "\n")


def _state(path: Path) -> Path:
    return path.with_name(f"{path.name}.state.json")


def _progress(path: Path, size: int, settings: Mapping[str, Any]) -> Progress:
    state, wanted = _state(path), json.loads(json.dumps(settings))
    if not state.exists():
        return Progress(wanted)
    try:
        progress = settings_of(Progress, read_json(state))
        changed = differences(flatten(progress.settings), flatten(wanted))
        missing = progress.bytes - size
        if progress.bytes < 0:
            raise UserError(f"bytes={progress.bytes}")
    except (UserError, TypeError, AttributeError) as error:
        raise UserError(f"{state}: not the state of a distillation ({error}); {REMEDY}") from error
    if changed:
        key, before, now = changed[0]
        raise UserError(f"output={path}: written with {key}={before}, now {now}; {REMEDY}")
    if missing > 0 and size:
        raise UserError(f"output={path}: {missing} bytes that were written are missing; {REMEDY}")
    return Progress(wanted) if missing > 0 else progress
