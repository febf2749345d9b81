"""The lines of answers.jsonl and baseline.jsonl in both directions: one per question and repeat.

Spec-Bench's own evaluation reads them; our per-turn lists stand in the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import orjson

from bench.fidelity import Fidelity
from bench.questions.formats import Question
from bench.questions.spec_bench import subtask_of
from methods.digest import sha256
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.measure import Timed

T = TypeVar("T")
LONGEST_S = 1e9  # a time beyond it was not measured


@dataclass(frozen=True)
class Turn:
    """One measured turn of one side."""

    prompt_ids: tuple[int, ...]
    text: str
    timed: Timed
    fidelity: Fidelity | None = None  # answers only; None: not checked


@dataclass(frozen=True)
class Place:
    """Which question and repeat a line belongs to."""

    question: Question
    repeat: int

    @property
    def key(self) -> tuple[int | str, int]:
        return self.question.question_id, self.repeat

    @property
    def head(self) -> dict[str, Any]:
        """What every line begins with."""
        question_id, repeat = self.key
        category, subtask = self.question.category, self.question.subtask
        return {"question_id": question_id, "category": category, "subtask": subtask, "repeat": repeat}


@dataclass(slots=True)
class Row:
    """One recorded turn: what its part of a line is written from and read into. None: not recorded."""

    question_id: int | str
    category: str
    subtask: str
    repeat: int
    turn: int
    text: str
    new_tokens: int
    wall_s: float
    lengths: Any  # int array [steps]: tokens that each step emitted
    drafted: Any = None  # int array [steps]: candidates that each step verified
    token_ids: Any = None  # int array [new_tokens]
    prompt_tokens: int | None = None
    prompt_sha256: str | None = None
    stop: str | None = None
    prefill_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    peak_memory_bytes: int | None = None  # of this side; this and the readings below see bench.measure.Timed
    energy_millijoules: int | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    throttled: str | None = None
    uncaptured_passes: int | None = None
    doubtful: int | None = None  # drafts with a confidence that is not a number
    fidelity: Fidelity | None = None


# What a device says of a turn. Peaks of older records have another name, are of both sides together, and are not read.
READINGS: dict[str, tuple[str, type]] = {
    "own_peak_memory_bytes": ("peak_memory_bytes", int),
    **{name: (name, int) for name in ("energy_millijoules", "sm_mhz", "memory_mhz", "temperature_c")},
    "throttled": ("throttled", str),
}
# Lists of a choice with one value a turn: the field of a row, and what it holds (float: seconds).
LISTS: dict[str, tuple[str, type]] = {
    "turns": ("text", str),
    "new_tokens": ("new_tokens", int),
    "wall_time": ("wall_s", float),
    "prompt_tokens": ("prompt_tokens", int),
    "prompt_sha256": ("prompt_sha256", str),
    "stop": ("stop", str),
    "prefill_s": ("prefill_s", float),
    "draft_s": ("draft_s", float),
    "verify_s": ("verify_s", float),
    "doubtful": ("doubtful", int),
    "uncaptured_passes": ("uncaptured_passes", int),
    **READINGS,
}
OPTIONAL = ("doubtful", "uncaptured_passes", "fidelity", *READINGS)  # written only where one turn has some
NEEDED = ("turns", "new_tokens", "wall_time")
WORDS = {str: "text", int: "an integer", float: "a number of seconds"}


def measured_row(place: Place, number: int, turn: Turn) -> Row:
    """What is recorded of a question's turn `number`, counting from 0."""
    generation = turn.timed.generation
    times = {name: value for name, value in vars(turn.timed).items() if name != "generation"}
    lengths = np.array([step.emitted for step in generation.steps], dtype=np.int64)
    assert lengths.sum() + 1 == len(generation.tokens), "steps and tokens disagree"
    return Row(
        **place.head,
        turn=number,
        text=turn.text,
        new_tokens=len(generation.tokens),
        **times,
        lengths=lengths,
        drafted=np.array([step.drafted for step in generation.steps], dtype=np.int64),
        token_ids=np.array(generation.tokens, dtype=np.int64),
        prompt_tokens=len(turn.prompt_ids),
        prompt_sha256=prompt_hash(turn.prompt_ids),
        stop=generation.stop,
        doubtful=generation.doubtful or None,
        fidelity=turn.fidelity,
    )


def prompt_hash(prompt_ids: Sequence[int]) -> str:
    """SHA-256 of prompt ids, as 32-bit little-endian integers."""
    return sha256(b"".join(token.to_bytes(4, "little") for token in prompt_ids))


def choice_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The one choice of a line, with one row for each of its turns."""
    choice: dict[str, Any] = {"index": 0} | {
        key: [getattr(row, name) for row in rows] for key, (name, _) in LISTS.items()
    }
    choice |= {
        "decoding_steps": [len(row.lengths) for row in rows],
        "accept_lengths": [length for row in rows for length in row.lengths.tolist()],
        "token_ids": [row.token_ids.tolist() for row in rows],
        "steps": [np.stack([row.drafted, row.lengths], axis=1).tolist() for row in rows],
        "status": ["ok"] * len(rows),
        "fidelity": [asdict(row.fidelity) if row.fidelity else None for row in rows],
    }
    return {key: value for key, value in choice.items() if key not in OPTIONAL or set(map(type, value)) - {NoneType}}


def key_of(record: Mapping[str, Any]) -> tuple[int | str, int]:
    """Question id and repeat of a line. Raises KeyError or ValueError where there is none."""
    question_id, repeat = record["question_id"], record.get("repeat", 0)
    if type(question_id) not in (int, str) or type(repeat) is not int:
        raise ValueError("question_id is not an integer or text, or repeat is not an integer")
    return question_id, repeat


def read_head(record: Mapping[str, Any]) -> dict[str, Any]:
    """What every line begins with (see `Place.head`). Raises KeyError, TypeError or ValueError where it does not."""
    (question_id, repeat), category = key_of(record), record["category"]
    subtask = record.get("subtask") or subtask_of(category)
    for name, value in (("category", category), ("subtask", subtask)):
        _check(name, value, str)
    return {"question_id": question_id, "category": category, "subtask": subtask, "repeat": repeat}


def read_rows(record: Mapping[str, Any]) -> list[Row]:
    """The turns of a line. Raises KeyError, TypeError, IndexError or ValueError where it is no record of ours."""
    head, choice = read_head(record), record["choices"][0]
    lists, ids, verdicts = read_lists(choice), choice.get("token_ids"), choice.get("fidelity")
    rows = []
    for turn, new_tokens in enumerate(lists["new_tokens"]):
        # several times as fast as arrays made of lists of pairs
        drafted, lengths = integers(list(chain.from_iterable(choice["steps"][turn]))).reshape(-1, 2).T
        if not lists["wall_s"][turn] > 0:
            raise ValueError(f"turn {turn}: wall_time is not a positive number of seconds")
        if int(lengths.sum()) + 1 != new_tokens:
            raise ValueError(f"turn {turn}: steps emit {int(lengths.sum())} + 1 tokens, new_tokens is {new_tokens}")
        row = Row(
            **{name: values[turn] for name, values in lists.items()},
            **head,
            turn=turn,
            lengths=lengths.astype(np.int16),
            drafted=drafted,
            token_ids=integers(ids[turn], 2**31).astype(np.int32) if ids else None,
            fidelity=_fidelity(verdicts[turn]) if verdicts else None,
        )
        rows.append(row)
    return rows


def read_lists(choice: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Each field of a row that LISTS names, by turn. Raises as `read_rows` does."""
    found, turns = {}, len(choice["turns"])
    for key, (name, kind) in LISTS.items():
        values = choice[key] if key in NEEDED else choice.get(key) or [None] * turns
        if not isinstance(values, list) or len(values) != turns:
            raise ValueError(f"{key} does not hold one value for each of {turns} turns")
        for turn, value in enumerate(values):
            if value is not None or key in NEEDED:
                _check(f"turn {turn}: {key}", value, kind)
        found[name] = values
    return found


def _check(name: str, value: Any, kind: type) -> None:
    right = type(value) in (int, float) and 0 <= value < LONGEST_S if kind is float else type(value) is kind
    if not right:
        raise ValueError(f"{name} is not {WORDS[kind]}")


def integers(values: Any, limit: int = 2**15) -> np.ndarray:
    """A list of integers from 0 to below `limit` as an array. Raises ValueError for anything else."""
    if not isinstance(values, list) or set(map(type, values)) - {int}:
        raise ValueError("a list of integers holds something else")
    if values and not 0 <= min(values) <= max(values) < limit:
        raise ValueError(f"a list of integers holds one that is not between 0 and {limit}")
    return np.fromiter(values, dtype=np.int64, count=len(values))


def _fidelity(value: Any) -> Fidelity | None:
    if value is None:
        return None
    found = Fidelity(value["verdict"], value.get("position"), value.get("margin"))
    for name, kind in (("verdict", str), ("position", int), ("margin", float)):
        if getattr(found, name) is not None:
            _check(name, getattr(found, name), kind)
    return found


def json_lines(
    path: Path, notes: list[str], read: Callable[[dict[str, Any]], T], missing: str = "the key {} is missing"
) -> Iterator[tuple[int, T]]:
    """(line number, what `read` makes of the object) of a JSON-lines file. missing: what to say of a KeyError.

    A last line that was never finished is left out and noted. Raises UserError naming the file, and the line when any
    other one is broken, or `read` raises KeyError, ValueError, TypeError or IndexError.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
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
        try:
            found = read(record)
        except KeyError as error:
            raise UserError(f"{path} line {number}: {missing.format(error)}") from None
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path} line {number}: {error}") from None
        yield number, found
