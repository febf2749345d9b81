"""Answer files of Spec-Bench, and of the authors' Kangaroo, read as runs. What they cannot know stays empty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.questions import subtask_of
from bench.records.frame import FAILURE_COLUMNS, Run, TurnColumns, json_lines
from methods.errors import UserError

MODELS = ("vicuna-7b", "vicuna-13b", "vicuna-33b")
METHODS = {
    "kangaroo": "kangaroo", "medusa": "medusa", "lookahead": "lookahead", "lade": "lookahead", "rest": "rest",
    "eagle3": "eagle3", "eagle2": "eagle2", "eagle": "eagle", "hydra": "hydra", "sps": "sps", "pld": "pld",
    "samd": "samd_eagle2", "recycling": "recycling", "vanilla": "vanilla", "baseline": "vanilla",
}  # fmt: skip
UNKNOWN = (
    "imported: machine, settings, phases, token ids and the margins of differences are not in these files; whether its "
    "speed may stand beside another's, they do not tell"
)


def import_runs(files: Sequence[Path], baseline: Sequence[Path], *, model: str = "", method: str = "") -> list[Run]:
    """Runs from Spec-Bench answer files; files with one model_id are repeats of one run, in the order given.

    baseline: the plain decoding's answer files, one per repeat, or one for all repeats. model, method: names to use
    instead of those guessed from model_id and file name. Raises UserError naming file and line.
    """
    by_id: dict[str, list[tuple[Path, list[dict[str, Any]]]]] = {}
    for path in files:
        records = _records(path)
        by_id.setdefault(str(records[0].get("model_id", path.stem)), []).append((path, records))
    theirs = [_records(path) for path in baseline]
    return [_run(model_id, members, theirs, model, method) for model_id, members in by_id.items()]


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"import: {path}: no such file; give an answer file of Spec-Bench (JSON lines)")
    notes: list[str] = []
    records = []
    for number, record in json_lines(path, notes):
        try:
            choice = record["choices"][0]
            turns = {len(choice[key]) for key in ("turns", "new_tokens", "wall_time")}
            steps = choice.get("decoding_steps", choice.get("idxs"))
            if len(turns) != 1 or (steps is not None and len(steps) != len(choice["turns"])):
                raise ValueError("turns, new_tokens, wall_time and decoding_steps have different lengths")
            if any(
                not wall > 0 for wall, text in zip(choice["wall_time"], choice["turns"], strict=True) if text != "ERROR"
            ):
                raise ValueError("a wall_time is not a positive number of seconds")
            records.append({**record, "steps": steps, "question_id": record["question_id"], "cat": record["category"]})
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path} line {number}: not a Spec-Bench answer, {error} is missing") from None
        except ValueError as error:
            raise UserError(f"{path} line {number}: {error}") from None
    if not records:
        raise UserError(f"import: {path}: no answers in it")
    return records


def _run(model_id: str, members: list[tuple[Path, list[dict[str, Any]]]], theirs: list[list[dict[str, Any]]],
         model: str, method: str) -> Run:  # fmt: skip
    words = re.split(r"[^a-z0-9]+", f"{model_id} {members[0][0].parent.name} {members[0][0].stem}".lower())
    guess = next((METHODS[word] for word in words if word in METHODS), model_id)
    info = {
        "model": model or next((name for name in MODELS if name in model_id.lower()), model_id),
        "method": method or guess,
        "demonstration": False,
        "config": {"imported": ", ".join(str(path) for path, _ in members)},
    }
    if theirs and len(theirs) not in (1, len(members)):
        raise UserError(f"import: {len(members)} answer files of {model_id} and {len(theirs)} baseline files; give one "
                        "baseline file for all, or one for each")  # fmt: skip
    paired = [theirs[0] if len(theirs) == 1 else theirs[n] for n in range(len(members))] if theirs else []
    answers, notes = _turns([records for _, records in members])
    baseline = _turns(paired)[0] if paired else None
    errors = pd.concat([_errors([records for _, records in members]), _errors(paired)], ignore_index=True)
    notes = [UNKNOWN, *notes, *_different_texts(answers, baseline)]
    return Run(tuple(path for path, _ in members), info, answers, baseline, errors, tuple(notes))


def _turns(repeats: Sequence[list[dict[str, Any]]]) -> tuple[pd.DataFrame, list[str]]:
    columns, notes = TurnColumns(), list[str]()
    everything = [record for records in repeats for record in records]
    prefill_counted = all(map(_starts_with_prefill, everything))
    if prefill_counted and any(record["choices"][0].get("accept_lengths") for record in everything):
        notes.append("each turn's first accept_length, the token of the prefill, is no step and is left out")
    for repeat, records in enumerate(repeats):
        seen: set[Any] = set()
        for record in records:
            if record["question_id"] in seen:
                raise UserError(f"import: question {record['question_id']} stands twice in one answer file")
            seen.add(record["question_id"])
            _add(columns, record, repeat, prefill_counted)
    return columns.frame(), notes


def _starts_with_prefill(record: Mapping[str, Any]) -> bool:
    """Whether accept_lengths holds one entry more than steps in every turn, and that entry is 1."""
    lengths, steps = record["choices"][0].get("accept_lengths") or [], record["steps"]
    if steps is None or len(lengths) != sum(steps) + len(steps):
        return False
    starts = np.cumsum([0, *(count + 1 for count in steps[:-1])])
    return all(lengths[start] == 1 for start in starts)


def _add(columns: TurnColumns, record: Mapping[str, Any], repeat: int, prefill_counted: bool) -> None:
    choice = record["choices"][0]
    parts = _lengths_by_turn(choice.get("accept_lengths") or [], record["steps"], len(choice["turns"]), prefill_counted)
    for turn, text in enumerate(choice["turns"]):
        columns.question_id.append(record["question_id"])
        columns.category.append(record["cat"])
        columns.subtask.append(subtask_of(record["cat"]))
        columns.repeat.append(repeat)
        columns.turn.append(turn)
        columns.new_tokens.append(int(choice["new_tokens"][turn]))
        columns.wall_s.append(float(choice["wall_time"][turn]))
        for name in ("prompt_tokens", "prefill_s", "draft_s", "verify_s", "peak_memory_bytes", "position", "margin"):
            getattr(columns, name).append(np.nan)
        columns.verdict.append(None)
        columns.text.append(str(text))
        columns.prompt_sha256.append(None)
        columns.token_ids.append(None)
        columns.add_steps(parts[turn], np.nan)


def _lengths_by_turn(lengths: list[int], steps: list[int] | None, turns: int, prefill: bool) -> list[np.ndarray | None]:
    """Tokens per step of each turn. Where the file does not say which turn a step is of, the first turn has all."""
    if not lengths:
        return [None] * turns
    counts = None if steps is None else [count + prefill for count in steps]
    if counts is None or sum(counts) != len(lengths):
        counts, prefill = [len(lengths), *[0] * (turns - 1)], False
    ends = np.cumsum(counts)
    found = [np.asarray(lengths[end - count : end], dtype=np.int16) for end, count in zip(ends, counts, strict=True)]
    return [part[1:] if prefill else part for part in found]


def _errors(repeats: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    """Spec-Bench writes the text ERROR for a turn that failed, beside the numbers of the turn before."""
    rows = [
        {"question_id": record["question_id"], "subtask": subtask_of(record["cat"]), "repeat": repeat, "turn": turn,
         "status": "failed", "error": "the answer file says ERROR"}
        for repeat, records in enumerate(repeats)
        for record in records
        for turn, text in enumerate(record["choices"][0]["turns"])
        if text == "ERROR"
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=FAILURE_COLUMNS)


def _different_texts(answers: pd.DataFrame, baseline: pd.DataFrame | None) -> list[str]:
    if baseline is None:
        return []
    keys = ["question_id", "repeat", "turn"]
    texts = [turns.set_index(keys).text for turns in (answers, baseline)]
    both = pd.concat(texts, axis=1, join="inner", keys=["ours", "theirs"])
    different = int((both.ours != both.theirs).sum())
    return [f"{different} of {len(both)} turns have another text than the baseline's (near ties cannot be told)"]
