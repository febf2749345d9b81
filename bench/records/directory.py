"""The run directory: run.json, then one line per question and repeat, on disk before the next question starts."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, Self

import orjson

from bench.files import make_folder, replace_file, replace_text
from bench.records.identity import change, config_hash
from bench.records.lines import Place, Turn, choice_of, key_of, measured_row
from methods.errors import UserError, reading

SCHEMA_VERSION = 1
DEEPEST = 50  # levels of run.json; what reads it goes down level by level
# What run.json may hold; null wherever something was not there.
KINDS = {
    **dict.fromkeys(("model", "method", "dtype", "engine", "started", "command", "commit", "questions_sha256"), str),
    **dict.fromkeys(("cpu", "gpu", "driver", "cuda", "platform", "python", "questions_file"), str),
    **dict.fromkeys(("cores", "threads", "memory_bytes", "extra_parameters", "datastore_bytes", "weight_bytes"), int),
    **dict.fromkeys(("config", "git", "packages", "checkpoint_sha256", "chat_sha256", "files", "card"), dict),
    **dict.fromkeys(("layers", "step_bytes", "head_bytes", "kv_bytes_per_token", "read_bytes_per_s"), int),
    "demonstration": bool,
    **dict.fromkeys(("unpinned", "attention"), list),
    **dict.fromkeys(("config.repeats", "config.limit", "config.max_new_tokens", "config.seed"), int),
    **dict.fromkeys(("config.shard", "config.baseline", "config.method_name"), str),
    **dict.fromkeys(("config.model", "config.method"), dict),
}
WORDS = {str: "text", int: "an integer", dict: "an object", list: "a list", bool: "true or false"}


class Directory:
    """A folder of one configuration's records, held by one process. Use `open`; leave with `close`.

    Where it lies below the results, and which of its files grow line by line, a kind of directory says.
    """

    below: ClassVar[str]
    lines: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, notice: str | None) -> None:
        self.folder, self.notice = folder, notice
        make_folder(str(folder))
        self._lock = _held(folder)
        for name in self.lines:
            _cut_torn_line(folder / name)

    @classmethod
    def known(cls, root: Path, config: Mapping[str, Any]) -> bool:
        """Whether this configuration has run before, on whatever machine."""
        return any(read_info(folder) for folder in _existing(*cls._place(root, config)))

    @classmethod
    def open(cls, root: Path, config: Mapping[str, Any], info: Mapping[str, Any], *, resume: bool) -> Self:
        """The newest folder that continues this configuration on this machine, else a new one beside it.

        info: what run.json is to say of the machine, the files and the code. Raises UserError when another process has
        the folder.
        """
        parent, name = cls._place(root, config)
        notice = None
        existing = _existing(parent, name)
        for folder in existing:
            difference = _difference(folder, info)
            if resume and difference is None:
                return cls(folder, None)
            left = f"not continuing {folder}: {difference}" if resume else f"resume=false: {folder} is left as it is"
            notice = notice or left
        number = 1 + max((_number(folder) for folder in existing), default=0)
        return cls(parent / (name if number == 1 else f"{name}-{number}"), notice)

    @classmethod
    def _place(cls, root: Path, config: Mapping[str, Any]) -> tuple[Path, str]:
        """Where a configuration's folders lie, and how their names begin."""
        return root / cls.below / config["model"]["name"] / str(config["method_name"]), config_hash(config)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write run.json, once, before the first question."""
        file = self.folder / "run.json"
        if not file.exists():
            replace_text(file, json.dumps({"schema_version": SCHEMA_VERSION, **info}, indent=2) + "\n", "results_dir")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json anew."""
        replace_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n", "results_dir")

    def close(self) -> None:
        """Let other processes have the folder; one in which nothing was recorded goes."""
        with suppress(OSError):  # a folder that someone deleted: what was lost by it has been said
            if [file.name for file in self.folder.iterdir()] == [".lock"]:
                (self.folder / ".lock").unlink()
                for folder in (self.folder, *self.folder.parents[:3]):  # <hash>, method, model, runs: as far as empty
                    folder.rmdir()
        self._lock.close()


class RunDirectory(Directory):
    """One run's folder. `done` has the (question id, repeat) pairs that need not be asked again."""

    below = "runs"
    lines = ("answers.jsonl", "baseline.jsonl", "failures.jsonl")

    def __init__(self, folder: Path, notice: str | None) -> None:
        super().__init__(folder, notice)
        self.answers, self.baseline, self.failures = (folder / name for name in self.lines)
        answered = {key for key, _ in _lines(self.answers)}
        _cut_orphans(self.baseline, answered)
        self.done = answered | {key for key, _ in _lines(self.failures)}

    def write(self, place: Place, envelope: Mapping[str, Any], answer: list[Turn], baseline: list[Turn] | None) -> None:
        """Record one question on both sides. The answer comes last: a baseline line without one is cut on resume."""
        for file, turns in ((self.baseline, baseline), (self.answers, answer)):
            if turns is not None:
                choice = choice_of([measured_row(place, number, turn) for number, turn in enumerate(turns)])
                append(file, {**place.head, **envelope, "choices": [choice]})
        self.done.add(place.key)

    def write_failure(self, place: Place, envelope: Mapping[str, Any], turn: int, status: str, error: str) -> None:
        """Record that a question's turn failed or was skipped; the question is out of both sides."""
        append(self.failures, {**place.head, **envelope, "turn": turn, "status": status, "error": error})
        self.done.add(place.key)


def read_info(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder; None where a run was stopped before it was written. Raises UserError for a broken one."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        info = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if not isinstance(info, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(info).__name__}")
    for key, kind in KINDS.items():
        section, _, name = key.rpartition(".")
        value = ((info.get(section) or {}) if section else info).get(name)
        if value is not None and type(value) is not kind:
            raise UserError(f"{file}: {key} is {type(value).__name__}, expected {WORDS[kind]}")
    level: list[Any] = [info]
    for _ in range(DEEPEST):
        below = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list)))
        level = [part for parts in below for part in parts]
    if level:
        raise UserError(f"{file}: nested deeper than {DEEPEST} levels")
    return info


def run_folders(root: Path, unread: list[str]) -> list[Path]:
    """Every folder with a run.json below a root, in order, each once however many links lead to it.

    Of one that may not be looked into, `unread` gets a line.
    """

    def note(error: OSError) -> None:
        unread.append(f"left out: {error.filename}: cannot be read ({error.strerror})")

    found, seen = list[Path](), set[str]()
    for folder, below, files in os.walk(root, onerror=note, followlinks=True) if os.path.isdir(root) else ():
        below.sort()
        if (real := os.path.realpath(folder)) in seen:  # a link may lead back up
            below.clear()
        elif "run.json" in files:
            found.append(Path(folder))
        seen.add(real)
    return sorted(found)


def _existing(parent: Path, name: str) -> list[Path]:
    """Folders of one configuration, the latest start first; those in which none has started last."""

    def age(folder: Path) -> tuple[bool, str, int]:
        info = read_info(folder)
        return info is not None, (info or {}).get("started") or "", _number(folder)

    found = [folder for folder in parent.glob(f"{name}*") if folder.is_dir() and _number(folder)]
    return sorted(found, key=age, reverse=True)


def _number(folder: Path) -> int:
    """1 for <hash>, n for <hash>-n, 0 for anything else."""
    _, dash, number = folder.name.partition("-")
    return 1 if not dash else int(number) if number.isdecimal() else 0


def _difference(folder: Path, now: Mapping[str, Any]) -> str | None:
    """Why a folder cannot be continued; None when it can, as one in which nothing was recorded."""
    info = read_info(folder)
    if info is None:
        recorded = [file.name for file in sorted(folder.glob("*.jsonl"))]
        return f"it has {recorded[0]} but no run.json" if recorded else None
    return change(info, now)


def _held(folder: Path) -> IO[str]:
    """The folder's lock, ours until it is closed. Raises UserError when another process has it."""
    with _written(folder / ".lock"):
        lock = os.fdopen(_no_link(str(folder / ".lock"), os.O_RDWR | os.O_CREAT), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UserError(
            f"results_dir: another process is writing {folder}; wait for it, or give another results_dir"
        ) from error
    return lock


def append(file: Path, record: Mapping[str, Any]) -> None:
    """A line more, on the disk. Raises UserError when the disk does not take it."""
    with _written(file), appending(file) as opened:
        opened.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def _no_link(path: str, flags: int) -> int:
    """For `open`: nothing is written through a link, which may lead anywhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def appending(file: Path) -> BinaryIO:
    """A file, open to write behind its last line. Raises UserError where it cannot be."""
    with _written(file):
        return open(file, "ab", opener=_no_link)


@contextmanager
def _written(file: Path) -> Iterator[None]:
    """Raises UserError when the disk does not take it. A line that was begun is cut off when the run goes on."""
    try:
        yield
    except OSError as error:
        after = "what was recorded before is whole, and the same command continues behind it"
        gone = "its folder was deleted; the same command starts anew"
        raise UserError(
            f"results_dir: {file} cannot be written ({error.strerror}); {after if file.parent.is_dir() else gone}"
        ) from error


def _cut_torn_line(file: Path) -> None:
    """Cut off a last line that a killed process never finished."""
    content = _content(file)
    if content and not content.endswith(b"\n"):
        with _written(file), open(file, "r+b", opener=_no_link) as opened:
            opened.truncate(content.rfind(b"\n") + 1)


def _cut_orphans(baseline: Path, answered: set[tuple[int | str, int]]) -> None:
    """Cut out baseline lines whose answer was never written, or has been deleted since."""
    lines = _lines(baseline)
    kept = [line for key, line in lines if key in answered]
    if len(kept) < len(lines):
        replace_file(baseline, lambda file: file.write_bytes(b"".join(kept)), "results_dir")


def _lines(file: Path) -> list[tuple[tuple[int | str, int], bytes]]:
    """Question id and repeat of each line, and the line. Raises UserError when one is no record."""
    found = []
    for number, line in enumerate(_content(file).splitlines(keepends=True), 1):
        if not line.strip():
            continue
        try:
            found.append((key_of(orjson.loads(line)), line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} line {number}: not a record of a run; resume=false starts anew") from error
    return found


def _content(file: Path) -> bytes:
    """Lines that were recorded, if any were. Raises UserError where nobody can tell."""
    with reading(file, "records of a run", "; resume=false starts anew"):
        return file.read_bytes() if file.exists() else b""
