"""The run directory: run.json, then one line per question and repeat, on disk before the next question starts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.files import make_folder
from bench.records.identity import IDENTITY, config_hash
from bench.records.lines import Place, Turn, head, line
from methods.errors import UserError

SCHEMA_VERSION = 1


class RunDirectory:
    """One run's folder, held by one process.

    `done` has the (question id, repeat) pairs that need not be asked again. Use `open`; leave with `close`.
    """

    def __init__(self, folder: Path, notice: str | None) -> None:
        self.folder, self.notice = folder, notice
        make_folder(str(folder))
        self._lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"results_dir: another process is writing {folder}; wait for it, or give another results_dir"
            ) from error
        self.answers, self.baseline = folder / "answers.jsonl", folder / "baseline.jsonl"
        self.failures = folder / "failures.jsonl"
        for file in (self.answers, self.baseline, self.failures):
            _cut_torn_line(file)
        answered = _keys(self.answers)
        _cut_orphan(self.baseline, answered)
        self.done = answered | _keys(self.failures)

    @staticmethod
    def known(root: Path, config: Mapping[str, Any]) -> bool:
        """Whether this configuration has run before, on whatever machine."""
        return any(read_info(folder) for folder in _existing(*_place(root, config)))

    @classmethod
    def open(cls, root: Path, config: Mapping[str, Any], identity: Mapping[str, Any], *, resume: bool) -> RunDirectory:
        """The newest folder that continues this configuration on this machine, else a new one beside it.

        identity holds the keys of IDENTITY. Raises UserError when another process has the folder.
        """
        parent, name = _place(root, config)
        notice = None
        existing = _existing(parent, name)
        for folder in existing:
            difference = _difference(folder, identity)
            if resume and difference is None:
                return cls(folder, None)
            left = f"not continuing {folder}: {difference}" if resume else f"resume=false: {folder} is left as it is"
            notice = notice or left
        number = 1 + max((_number(folder) for folder in existing), default=0)
        return cls(parent / (name if number == 1 else f"{name}-{number}"), notice)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write run.json, once, before the first question."""
        file = self.folder / "run.json"
        if not file.exists():
            _replace(file, json.dumps({"schema_version": SCHEMA_VERSION, **info}, indent=2) + "\n")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json anew."""
        _replace(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def write(self, place: Place, envelope: Mapping[str, Any], answer: list[Turn], baseline: list[Turn] | None) -> None:
        """Record one question on both sides. The answer comes last: a baseline line without one is cut on resume."""
        if baseline is not None:
            _append(self.baseline, line(place, envelope, baseline))
        _append(self.answers, line(place, envelope, answer))
        self.done.add(place.key)

    def write_failure(self, place: Place, envelope: Mapping[str, Any], turn: int, status: str, error: str) -> None:
        """Record that a question's turn failed or was skipped; the question is out of both sides."""
        _append(self.failures, {**head(place), **envelope, "turn": turn, "status": status, "error": error})
        self.done.add(place.key)

    def close(self) -> None:
        """Let other processes have the folder; one in which nothing was recorded goes."""
        if [file.name for file in self.folder.iterdir()] == [".lock"]:
            (self.folder / ".lock").unlink()
            self.folder.rmdir()
        self._lock.close()


def method_name(config: Mapping[str, Any]) -> str:
    """The method's folder name: the name it was chosen by."""
    return str(config["method_name"])


def read_info(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder; None where a run was stopped before it was written."""
    file = folder / "run.json"
    if not file.exists():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a JSON object ({error}); without its folder the run starts anew") from error


def _place(root: Path, config: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a configuration's folders lie, and how their names begin."""
    return root / "runs" / config["model"]["name"] / method_name(config), config_hash(config)


def _existing(parent: Path, name: str) -> list[Path]:
    """Folders of one configuration, the newest first: the last number is, unless run.json knows of a later start."""
    found = [folder for folder in parent.glob(f"{name}*") if folder.is_dir() and _number(folder)]
    return sorted(found, key=lambda folder: (str((read_info(folder) or {}).get("started", "~")), _number(folder)))[::-1]


def _number(folder: Path) -> int:
    """1 for <hash>, n for <hash>-n, 0 for anything else."""
    _, dash, number = folder.name.partition("-")
    return 1 if not dash else int(number) if number.isdigit() else 0


def _difference(folder: Path, identity: Mapping[str, Any]) -> str | None:
    """Why a folder cannot be continued; None when it can, as one in which nothing was recorded."""
    info = read_info(folder)
    if info is None:
        recorded = [file.name for file in sorted(folder.glob("*.jsonl"))]
        return f"it has {recorded[0]} but no run.json" if recorded else None
    for key in IDENTITY:
        before, now = info.get(key), identity.get(key)
        if before != now:
            return f"{key} was {json.dumps(before)}, is {json.dumps(now)}"
    return None


def _append(file: Path, record: Mapping[str, Any]) -> None:
    with _written(file), file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(record, ensure_ascii=False) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    with _written(file):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)


@contextmanager
def _written(file: Path) -> Iterator[None]:
    """Raises UserError when the disk does not take it. A line that was begun is cut off when the run goes on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"results_dir: {file} cannot be written ({error.strerror}); what was recorded before is whole, and the "
            "same command continues behind it"
        ) from error


def _cut_torn_line(file: Path) -> None:
    """Cut off a last line that a killed process never finished."""
    if file.exists():
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)


def _cut_orphan(baseline: Path, answered: set[tuple[int, int]]) -> None:
    """Cut off a last baseline line whose answer was never written."""
    lines = _lines(baseline)
    if lines and _key(baseline, len(lines), lines[-1]) not in answered:
        os.truncate(baseline, sum(map(len, lines[:-1])))


def _keys(file: Path) -> set[tuple[int, int]]:
    return {_key(file, number, line) for number, line in enumerate(_lines(file), 1)}


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def _key(file: Path, number: int, line: bytes) -> tuple[int, int]:
    """Question id and repeat of a line. Raises UserError when it is no record."""
    try:
        record = json.loads(line)
        return record["question_id"], record["repeat"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} line {number}: not a record of a run; resume=false starts anew") from error
