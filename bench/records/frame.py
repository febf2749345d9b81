"""Run directories read back: one data frame with a row per turn, and what run.json says of machine and config.

Missing values are NaN or None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from bench.questions import SUBTASKS, subtask_of
from bench.records.identity import differences, environment
from methods.errors import UserError

CTAR_POSITIONS = range(1, 7)
FAILURE_COLUMNS = ["question_id", "subtask", "repeat", "turn", "status", "error"]


@dataclass(frozen=True)
class Run:
    """One configuration's records. `answers` and `baseline` hold one row per turn, see `TurnColumns`."""

    folders: tuple[Path, ...]
    info: dict[str, Any]
    answers: pd.DataFrame
    baseline: pd.DataFrame | None
    failures: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return str(self.info.get("model") or "unknown")

    @property
    def method(self) -> str:
        return str(self.info.get("method") or "unknown")

    @property
    def config(self) -> dict[str, Any]:
        return self.info.get("config") or {}


@dataclass
class TurnColumns:
    """Columns of a turn table while a file is read.

    lengths: emitted tokens of each step, an int array; NaN times were not recorded.
    """

    question_id: list[Any] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    subtask: list[str] = field(default_factory=list)
    repeat: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    drafted: list[float] = field(default_factory=list)
    emitted: list[float] = field(default_factory=list)
    over_1: list[float] = field(default_factory=list)
    over_2: list[float] = field(default_factory=list)
    over_3: list[float] = field(default_factory=list)
    over_4: list[float] = field(default_factory=list)
    over_5: list[float] = field(default_factory=list)
    over_6: list[float] = field(default_factory=list)
    peak_memory_bytes: list[float] = field(default_factory=list)
    verdict: list[str | None] = field(default_factory=list)
    position: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    prompt_sha256: list[str | None] = field(default_factory=list)
    token_ids: list[Any] = field(default_factory=list)
    lengths: list[Any] = field(default_factory=list)

    def add_steps(self, lengths: np.ndarray | None, drafted: float) -> None:
        """Steps of one turn: emitted tokens per step, and drafted tokens in total (None and NaN: not known)."""
        self.lengths.append(lengths)
        self.drafted.append(drafted)
        self.steps.append(len(lengths) if lengths is not None else np.nan)
        self.emitted.append(int(lengths.sum()) if lengths is not None else np.nan)
        beyond = np.bincount(lengths, minlength=8)[::-1].cumsum()[::-1].tolist() if lengths is not None else []
        for w in CTAR_POSITIONS:
            getattr(self, f"over_{w}").append(beyond[w + 1] if beyond else np.nan)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(vars(self))


def ordered_subtasks(names: Sequence[str]) -> list[str]:
    """Spec-Bench's order first, then any other name alphabetically."""
    present = set(names)
    return [s for s in SUBTASKS if s in present] + sorted(present - set(SUBTASKS))


def json_lines(path: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file. A last line that was never finished is left out and noted.

    Raises UserError naming file and line when any other line is broken.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if not line.endswith(b"\n"):
                    notes.append(f"{path.name}: line {number} was cut off (a killed run) and is left out")
                    return
                raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f"{path} line {number}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def read_turns(path: Path, notes: list[str]) -> pd.DataFrame:
    """Turn table of an answers.jsonl or baseline.jsonl. Raises UserError naming file and line."""
    columns = TurnColumns()
    seen: dict[tuple[Any, int], int] = {}
    for number, record in json_lines(path, notes):
        try:
            key = (record["question_id"], int(record.get("repeat", 0)))
            if key in seen:
                raise ValueError(f"question {key[0]} repeat {key[1]} stands already in line {seen[key]}")
            seen[key] = number
            _add_line(columns, record)
        except KeyError as error:
            raise UserError(f"{path} line {number}: the key {error} is missing") from None
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path} line {number}: {error}") from None
    return columns.frame()


def _add_line(columns: TurnColumns, record: Mapping[str, Any]) -> None:
    choice = record["choices"][0]
    turns = len(choice["wall_time"])
    prompt, peak = choice.get("prompt_tokens"), choice.get("peak_memory_bytes")
    phases = {name: choice.get(name) for name in ("prefill_s", "draft_s", "verify_s")}
    fidelity, ids, hashes = (choice.get(name) for name in ("fidelity", "token_ids", "prompt_sha256"))
    subtask = record.get("subtask") or subtask_of(record["category"])
    for turn in range(turns):
        # several times as fast as np.asarray on lists of pairs
        drafted, emitted = np.fromiter(chain.from_iterable(choice["steps"][turn]), dtype=np.int64).reshape(-1, 2).T
        new_tokens, wall_s = choice["new_tokens"][turn], choice["wall_time"][turn]
        if not wall_s > 0:
            raise ValueError(f"turn {turn}: wall_time is {wall_s}, not a positive number of seconds")
        if int(emitted.sum()) + 1 != new_tokens:
            raise ValueError(f"turn {turn}: steps emit {int(emitted.sum())} + 1 tokens, new_tokens is {new_tokens}")
        columns.question_id.append(record["question_id"])
        columns.category.append(record["category"])
        columns.subtask.append(subtask)
        columns.repeat.append(int(record.get("repeat", 0)))
        columns.turn.append(turn)
        columns.new_tokens.append(new_tokens)
        columns.wall_s.append(wall_s)
        columns.prompt_tokens.append(prompt[turn] if prompt else np.nan)
        columns.peak_memory_bytes.append(_number(peak[turn]) if peak else np.nan)
        for name, values in phases.items():
            getattr(columns, name).append(_number(values[turn]) if values else np.nan)
        columns.text.append(choice["turns"][turn])
        columns.prompt_sha256.append(hashes[turn] if hashes else None)
        columns.token_ids.append(np.asarray(ids[turn], dtype=np.int32) if ids else None)
        columns.add_steps(emitted.astype(np.int16), int(drafted.sum()))
        verdict = (fidelity[turn] if fidelity else None) or {}
        columns.verdict.append(verdict.get("verdict"))
        columns.position.append(_number(verdict.get("position")))
        columns.margin.append(_number(verdict.get("margin")))


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def read_failures(path: Path, notes: list[str]) -> pd.DataFrame:
    """Failed and skipped turns, one row each: question_id, subtask, repeat, turn, status, error."""
    rows = []
    if path.exists():
        for _, record in json_lines(path, notes):
            category = str(record.get("category", "unknown"))
            rows.append(
                {
                    "question_id": record.get("question_id"),
                    "subtask": record.get("subtask") or subtask_of(category),
                    "repeat": record.get("repeat", 0),
                    "turn": record.get("turn"),
                    "status": record.get("status", "failed"),
                    "error": record.get("error", ""),
                }
            )
    return pd.DataFrame(rows, columns=FAILURE_COLUMNS)


def read_run(folder: Path) -> Run:
    """Read one run directory. Raises UserError for a missing run.json or answers.jsonl, or a broken line."""
    info_file, answers_file, baseline_file = (folder / n for n in ("run.json", "answers.jsonl", "baseline.jsonl"))
    if not info_file.exists():
        raise UserError(f"{folder}: no run.json in it, so it is not a run directory")
    try:
        info = json.loads(info_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{info_file}: not valid JSON ({error})") from None
    if not isinstance(info, dict):
        raise UserError(f"{info_file}: expected a JSON object, found {type(info).__name__}")
    notes: list[str] = []
    answers = read_turns(answers_file, notes) if answers_file.exists() else TurnColumns().frame()
    baseline = read_turns(baseline_file, notes) if baseline_file.exists() else None
    failures = read_failures(folder / "failures.jsonl", notes)
    return Run(
        (folder,), info, answers, baseline if baseline is not None and len(baseline) else None, failures, tuple(notes)
    )


def asked_otherwise(runs: Sequence[Run]) -> int:
    """Questions whose first prompt was not the same in all runs: another question file, or another chat template."""
    asked = pd.concat([run.answers.loc[run.answers.turn == 0, ["question_id", "prompt_sha256"]] for run in runs])
    return int((asked.dropna().drop_duplicates().question_id.value_counts() > 1).sum())


def require_same_environment(a: Run, b: Run, action: str) -> None:
    """Raises UserError naming the first key of hardware, dtype or versions on which two runs differ."""
    for key, left, right in differences(environment(a.info), environment(b.info)):
        raise UserError(
            f"cannot {action} {a.folders[0]} and {b.folders[0]}: {key} is {left!r} in one, {right!r} in "
            "the other; only runs of one machine, dtype and set of versions go together"
        )


def merge(runs: Sequence[Run]) -> Run:
    """Shards of one configuration as one run. Raises UserError if environments differ or questions overlap."""
    first = runs[0]
    for other in runs[1:]:
        require_same_environment(first, other, "merge")
        if (first.model, first.method) != (other.model, other.method):
            raise UserError(
                f"cannot merge {first.folders[0]} and {other.folders[0]}: model/method is {first.model}/"
                f"{first.method} in one, {other.model}/{other.method} in the other"
            )
        if (first.baseline is None) != (other.baseline is None):
            raise UserError(f"cannot merge {first.folders[0]} and {other.folders[0]}: only one has a baseline")
    if len(runs) == 1:
        return first
    answers = pd.concat([run.answers for run in runs], ignore_index=True)
    again = answers.duplicated(["question_id", "repeat", "turn"])
    if again.any():
        raise UserError(
            f"cannot merge {', '.join(str(r.folders[0]) for r in runs)}: question "
            f"{answers.question_id[again].iloc[0]} stands in more than one"
        )
    baselines = [run.baseline for run in runs if run.baseline is not None]
    return Run(
        folders=tuple(folder for run in runs for folder in run.folders),
        info=first.info,
        answers=answers,
        baseline=pd.concat(baselines, ignore_index=True) if baselines else None,
        failures=pd.concat([run.failures for run in runs], ignore_index=True),
        notes=tuple(note for run in runs for note in run.notes),
    )
