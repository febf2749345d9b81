"""Answer files of Spec-Bench, and of the authors' Kangaroo, read as runs. What they cannot know stays empty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.records.frame import FAILURE_COLUMNS, Run, turn_frame
from bench.records.lines import Row, integers, json_lines, read_head, read_lists
from methods.errors import UserError

MODELS = ("vicuna-7b", "vicuna-13b", "vicuna-33b")
METHODS = {
    "kangaroo": "kangaroo", "medusa": "medusa", "lookahead": "lookahead", "lade": "lookahead", "rest": "rest",
    "eagle3": "eagle3", "eagle2": "eagle2", "eagle": "eagle", "hydra": "hydra", "sps": "sps", "pld": "pld",
    "samd": "samd_eagle2", "recycling": "recycling", "vanilla": "vanilla", "baseline": "vanilla",
}  # fmt: skip
ERROR = "ERROR"  # what Spec-Bench writes for a turn that failed, beside the numbers of the turn before
UNKNOWN = (
    "imported: machine, settings, phases, token ids and the margins of differences are not in these files; whether its "
    "speed may stand beside another's, they do not tell"
)
LEFT_OUT = "each turn's first accept_length, the token of the prefill, is no step and is left out"
UNTOLD = (
    "the file does not tell whether the prompt's pass is among its steps, as in Spec-Bench's PLD; if it is, CR and "
    "CTAR count it"
)


@dataclass(frozen=True)
class _Answer:
    """One line: its turns as rows that lack their steps, and what the file says of these."""

    rows: list[Row]
    counts: list[int] | None  # steps of each turn
    lengths: np.ndarray  # emitted tokens of the steps of all turns; empty: not recorded
    model_id: str


_File = tuple[Path, list[_Answer]]


def import_runs(files: Sequence[Path], baseline: Sequence[Path], *, model: str = "", method: str = "") -> list[Run]:
    """Runs from Spec-Bench answer files; files with one model_id are repeats of one run, in the order given.

    baseline: the plain decoding's answer files, one per repeat, or one for all repeats. model, method: names to use
    instead of those guessed from model_id and file name. Raises UserError naming file and line.
    """
    ours, theirs = ([(path, _answers(path)) for path in listed] for listed in (files, baseline))
    _check_once(ours)
    by_id: dict[str, list[_File]] = {}
    for path, answers in ours:
        by_id.setdefault(answers[0].model_id, []).append((path, answers))
    return [_run(model_id, members, theirs, model, method) for model_id, members in by_id.items()]


def _check_once(files: Sequence[_File]) -> None:
    """Raises UserError for a file whose answers are all in another one, with the same times: what is measured again
    takes others.
    """
    timed = [
        (path, {(row.question_id, row.turn, row.wall_s) for answer in answers for row in answer.rows})
        for path, answers in files
    ]
    for (path, times), (other, more) in combinations(timed, 2):
        if times <= more or more <= times:
            raise UserError(f"import: {path} and {other} hold the same answers with the same times; give one of them")


def _answers(path: Path) -> list[_Answer]:
    if not path.is_file():
        raise UserError(f"import: {path}: no such file; give an answer file of Spec-Bench (JSON lines)")
    lines = json_lines(path, [], lambda record: _answer(record, path.stem), "not a Spec-Bench answer, {} is missing")
    found = [answer for _, answer in lines]
    if not found:
        raise UserError(f"import: {path}: no answers in it")
    ids = [answer.rows[0].question_id for answer in found]
    if len({*ids}) < len(ids):
        raise UserError(f"import: {path}: question {max(ids, key=ids.count)} stands twice in one answer file")
    return found


def _answer(record: Mapping[str, Any], name: str) -> _Answer:
    """Raises KeyError, IndexError, TypeError or ValueError for what is no answer. name: where model_id is missing."""
    head, choice = {**read_head(record), "repeat": 0}, record["choices"][0]
    lists, counts = read_lists(choice), choice.get("decoding_steps", choice.get("idxs"))
    if not lists["text"] or (counts is not None and len(integers(counts, 2**31)) != len(lists["text"])):
        raise ValueError("turns and decoding_steps have different lengths")
    if any(not wall > 0 for wall, text in zip(lists["wall_s"], lists["text"], strict=True) if text != ERROR):
        raise ValueError("a wall_time is not a positive number of seconds")
    measured = zip(lists["text"], lists["new_tokens"], lists["wall_s"], strict=True)
    rows = [Row(**head, turn=turn, text=text, new_tokens=tokens, wall_s=wall_s, lengths=None)
            for turn, (text, tokens, wall_s) in enumerate(measured)]  # fmt: skip
    lengths, model_id = integers(choice.get("accept_lengths") or []).astype(np.int16), record.get("model_id")
    return _Answer(rows, counts, lengths, model_id if isinstance(model_id, str) else name)


def _run(model_id: str, members: Sequence[_File], theirs: Sequence[_File], model: str, method: str) -> Run:
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
    rows, notes = _turns(members)
    notes += _unlike_repeats(model_id, rows)
    baseline = _turns(paired)[0]
    failed = [(row.question_id, row.subtask, row.repeat, row.turn, "failed", "the answer file says ERROR")
              for row in [*rows, *baseline] if row.text == ERROR]  # fmt: skip
    ours, vanilla = turn_frame(rows), turn_frame(baseline) if paired else None
    return Run(
        folders=tuple(path for path, _ in members),
        info=info,
        answers=ours,
        baseline=vanilla,
        failures=pd.DataFrame(failed, columns=FAILURE_COLUMNS),
        notes=(UNKNOWN, *notes, *_different_texts(ours, vanilla)),
    )


def _turns(repeats: Sequence[_File]) -> tuple[list[Row], list[str]]:
    """Whether a file's lengths count the prompt's pass, its questions without an error say, else the other files."""
    lengths = [path for path, answers in repeats if any(len(answer.lengths) for answer in answers)]
    told = {path: found for path, answers in repeats if (found := _counts_prefill(answers)) is not None}
    prefill = {path: told.get(path, bool(told) and all(told.values())) for path, _ in repeats}
    rows = [
        replace(row, repeat=repeat, lengths=of_turn)
        for repeat, (path, answers) in enumerate(repeats)
        for answer in answers
        for row, of_turn in zip(answer.rows, _lengths_by_turn(answer, prefill[path]), strict=True)
    ]
    untold = [path for path in lengths if not prefill[path]]
    which = f"{', '.join(map(str, untold))}: " if len(untold) < len(lengths) else ""
    return rows, [*([LEFT_OUT] if len(untold) < len(lengths) else []), *([f"{which}{UNTOLD}"] if untold else [])]


def _counts_prefill(answers: Sequence[_Answer]) -> bool | None:
    """What the answers without an error say; None where there is none."""
    telling = [one for one in answers if len(one.lengths) and all(row.text != ERROR for row in one.rows)]
    return all(map(_starts_with_prefill, telling)) if telling else None


def _starts_with_prefill(answer: _Answer) -> bool:
    """Whether accept_lengths holds one entry more than steps in every turn, and that entry is 1."""
    lengths, steps = answer.lengths, answer.counts
    if steps is None or len(lengths) != sum(steps) + len(steps):
        return False
    starts = np.cumsum([0, *(count + 1 for count in steps[:-1])])
    return all(lengths[start] == 1 for start in starts)


def _lengths_by_turn(answer: _Answer, prefill: bool) -> list[np.ndarray | None]:
    """Tokens per step of each turn. Where the file does not say which turn a step is of, the first turn has all."""
    lengths, turns = answer.lengths, len(answer.rows)
    if not len(lengths):
        return [None] * turns
    counts = None if answer.counts is None else [count + prefill for count in answer.counts]
    if counts is None or sum(counts) != len(lengths):
        counts, prefill = [len(lengths), *[0] * (turns - 1)], False
    ends = np.cumsum(counts)
    found = [lengths[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [part[1:] if prefill else part for part in found]


def _unlike_repeats(model_id: str, rows: Sequence[Row]) -> list[str]:
    """What is to say where greedy repeats would be the same."""
    tokens: dict[tuple[Any, int], set[int]] = {}
    for row in rows:
        tokens.setdefault((row.question_id, row.turn), set()).add(row.new_tokens)
    unlike = sum(len(found) > 1 for found in tokens.values())
    said = f"{unlike} of {len(tokens)} turns have other numbers of tokens in other files of {model_id}"
    return [f"{said}: files with one model_id are taken for repeats of one run; are they?"] if unlike else []


def _different_texts(answers: pd.DataFrame, baseline: pd.DataFrame | None) -> list[str]:
    if baseline is None:
        return []
    keys = ["question_id", "repeat", "turn"]
    texts = [turns.set_index(keys).text for turns in (answers, baseline)]
    both = pd.concat(texts, axis=1, join="inner", keys=["ours", "theirs"])
    different = int((both.ours != both.theirs).sum())
    return [f"{different} of {len(both)} turns have another text than the baseline's (near ties cannot be told)"]
