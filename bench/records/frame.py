"""Run directories read back: one data frame with a row per turn, and what run.json says of machine and config.

Missing values are NaN or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.questions.spec_bench import SUBTASKS, subtask_of
from bench.records.directory import read_info
from bench.records.identity import HASHES, differences, environment, facts
from bench.records.lines import Row, json_lines, key_of, read_rows
from methods.errors import UserError

CTAR_POSITIONS = range(1, 7)
COLUMNS = [
    *("question_id", "category", "subtask", "repeat", "turn", "new_tokens", "prompt_tokens"),
    *("wall_s", "prefill_s", "draft_s", "verify_s", "steps", "drafted", "emitted"),
    *(f"over_{w}" for w in CTAR_POSITIONS),
    *("peak_memory_bytes", "energy_millijoules", "sm_mhz", "temperature_c"),
    *("verdict", "position", "margin", "text", "prompt_sha256", "token_ids", "lengths", "candidates"),
    *("doubtful", "uncaptured_passes", "throttled"),
]
FAILURE_COLUMNS = ["question_id", "subtask", "repeat", "turn", "status", "error"]


@dataclass(frozen=True)
class Run:
    """One configuration's records. `answers` and `baseline` hold one row per turn, see `turn_frame`."""

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


def ordered_subtasks(names: Sequence[str]) -> list[str]:
    """Spec-Bench's order first, then any other name as it first appears."""
    present = dict.fromkeys(names)
    return [s for s in SUBTASKS if s in present] + [s for s in present if s not in SUBTASKS]


def turn_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line a turn. steps: their number; drafted, emitted: tokens in all; over_w: steps that emitted more than w.

    lengths, candidates: emitted and drafted tokens of each step, int arrays. Numbers that were not recorded are NaN.
    """
    return pd.DataFrame([_cells(row) for row in rows], columns=COLUMNS)


def _cells(row: Row) -> list[Any]:
    times = (_number(value) for value in (row.prompt_tokens, row.wall_s, row.prefill_s, row.draft_s, row.verify_s))
    readings = map(_number, (row.peak_memory_bytes, row.energy_millijoules, row.sm_mhz, row.temperature_c))
    steps = [np.nan] * 9
    if row.lengths is not None:
        drafted = np.nan if row.drafted is None else int(row.drafted.sum())
        beyond = np.bincount(row.lengths, minlength=8)[::-1].cumsum()[::-1]
        steps = [len(row.lengths), drafted, int(row.lengths.sum()), *beyond[2:8].tolist()]
    found = row.fidelity
    fidelity = [found.verdict, _number(found.position), _number(found.margin)] if found else [None, np.nan, np.nan]
    return [
        *(row.question_id, row.category, row.subtask, row.repeat, row.turn, row.new_tokens),
        *(*times, *steps, *readings, *fidelity),
        *(row.text, row.prompt_sha256, row.token_ids, row.lengths, row.drafted),
        *(row.doubtful or 0, row.uncaptured_passes or 0, row.throttled),
    ]


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def read_turns(path: Path, notes: list[str]) -> pd.DataFrame:
    """Turn table of an answers.jsonl or baseline.jsonl. Raises UserError naming file and line."""
    rows: list[Row] = []
    seen: dict[tuple[int | str, int], int] = {}

    def read(record: dict[str, Any]) -> tuple[tuple[int | str, int], list[Row]]:
        key = key_of(record)
        if key in seen:
            raise ValueError(f"question {key[0]} repeat {key[1]} stands already in line {seen[key]}")
        return key, read_rows(record)

    for number, (key, turns) in json_lines(path, notes, read):
        seen[key] = number
        rows += turns
    return turn_frame(rows)


def _failure(record: dict[str, Any]) -> tuple[Any, ...]:
    (question_id, repeat), turn = key_of(record), record.get("turn")
    if not (turn is None or type(turn) is int):
        raise ValueError("turn is not an integer")
    subtask = record.get("subtask") or subtask_of(str(record.get("category", "unknown")))
    status, error = (str(record.get(key, given)) for key, given in (("status", "failed"), ("error", "")))
    return question_id, str(subtask), repeat, turn, status, error


def read_run(folder: Path) -> Run:
    """Read one run directory. Raises UserError for a missing run.json or answers.jsonl, or a broken line."""
    info, notes = read_info(folder), list[str]()
    if info is None:
        raise UserError(f"{folder}: no run.json in it, so it is not a run directory")
    answers, baseline = (
        read_turns(file, notes) if (file := folder / f"{side}.jsonl").is_file() else turn_frame([])
        for side in ("answers", "baseline")
    )
    file = folder / "failures.jsonl"
    lines = json_lines(file, notes, _failure, "not a failure of a run, {} is missing") if file.is_file() else ()
    failures = pd.DataFrame([failure for _, failure in lines], columns=FAILURE_COLUMNS)
    return Run((folder,), info, answers, baseline if len(baseline) else None, failures, tuple(notes))


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
    """Shards of one configuration as one run.

    Raises UserError where machine, files or commit differ, or questions overlap.
    """
    first = runs[0]
    for other in runs[1:]:
        require_same_environment(first, other, "merge")
        for key, left, right in differences(facts(first.info), facts(other.info)):
            unlike = "is not the same in both" if key in HASHES else f"is {left} in one, {right} in the other"
            raise UserError(f"cannot merge {first.folders[0]} and {other.folders[0]}: {key} {unlike}")
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
