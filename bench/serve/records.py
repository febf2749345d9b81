"""What was measured of two servers: a line for each request, and one for each block of them that is whole.

A block is what one server got between two turns of the other: so many questions, so many of them at a time. Requests of
a block that was never finished were made under another load; they are left out, and the block is asked again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bench.records.directory import Directory, append, appending, read_info
from bench.records.lines import Place, json_lines
from bench.serve.acceptance import Acceptance, Counters, of_counters
from bench.serve.client import Answer
from methods.errors import UserError

SIDES = ("speculative", "baseline")
TurnKey = tuple[int, int, int | str, int]  # level, repeat, question id, turn
Lines = list[dict[str, Any]]
BlockKey = tuple[int, int, int, str]  # level, repeat, number, side


@dataclass(frozen=True)
class Records:
    """All that a folder holds of finished blocks, as dictionaries."""

    folder: Path
    info: dict[str, Any]
    requests: Lines
    blocks: Lines
    verdicts: Lines
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Lines, all kinds together."""
        return len(self.requests) + len(self.blocks) + len(self.verdicts)


def turn_key(line: Mapping[str, Any]) -> TurnKey:
    """Which turn a line is of. Raises KeyError where it says none."""
    return line["level"], line["repeat"], line["question_id"], line["turn"]


def block_key(line: Mapping[str, Any]) -> BlockKey:
    """Which block a line is of."""
    return line["level"], line["repeat"], line["block"], line["side"]


def read_records(folder: Path) -> Records:
    """Read a folder. Raises UserError for a missing run.json or a broken line."""
    info, notes = read_info(folder), list[str]()
    if info is None:
        raise UserError(f"{folder}: no run.json in it, so it is not a run directory")
    return Records(folder, info, *_finished(folder, notes), tuple(notes))


def _finished(folder: Path, notes: list[str]) -> tuple[Lines, Lines, Lines]:
    """Requests of finished blocks, these blocks, and verdicts."""

    def lines(name: str, key: Any) -> Lines:
        def read(record: dict[str, Any]) -> dict[str, Any]:
            key(record)
            return record

        file = folder / name
        return [record for _, record in json_lines(file, notes, read)] if file.is_file() else []

    blocks = {block_key(line): line for line in lines("blocks.jsonl", block_key)}
    whole = {line["attempt"] for line in blocks.values()}
    requests = [line for line in lines("requests.jsonl", turn_key) if line["attempt"] in whole]
    verdicts = {turn_key(line): line for line in lines("fidelity.jsonl", turn_key)}
    return requests, [*blocks.values()], [*verdicts.values()]


@dataclass
class Writing:
    """A block under way."""

    key: BlockKey
    file: Any
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:22])
    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, place: Place, turn: int, facts: Mapping[str, Any]) -> None:
        """Record a turn, answered or failed. The disk may take it later, so that no answer waits for it."""
        level, _, block, side = self.key
        line = {**place.head, "turn": turn, "level": level, "block": block, "side": side, "attempt": self.attempt}
        self.lines.append({**line, **facts})
        self.file.write(orjson.dumps(self.lines[-1]) + b"\n")

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["status"] != "ok"]


class ServeDirectory(Directory):
    """One pair's folder. `done` has the blocks that need not be asked again, `answered` the turns of these by side."""

    below = "serve"
    lines = ("requests.jsonl", "blocks.jsonl", "fidelity.jsonl")

    def __init__(self, folder: Path, notice: str | None) -> None:
        super().__init__(folder, notice)
        requests, blocks, verdicts = _finished(folder, [])
        self.done = {block_key(line) for line in blocks}
        self.compared = {turn_key(line) for line in verdicts}
        self.answered: dict[str, dict[TurnKey, dict[str, Any]]] = {side: {} for side in SIDES}
        self.history: dict[tuple[int | str, int], str] = {}  # what was answered first, which later turns go on from
        self._remember(requests)

    def _remember(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["status"] == "ok":
                self.answered[line["side"]][turn_key(line)] = line
                self.history.setdefault((line["question_id"], line["turn"]), line["text"])

    @contextmanager
    def block(self, key: BlockKey) -> Iterator[Writing]:
        """A block to be asked. What is written counts once `finish` was called."""
        with appending(self.folder / "requests.jsonl") as file:
            yield Writing(key, file)

    def finish(self, writing: Writing, wall_s: float, facts: Mapping[str, Any]) -> None:
        """Everything of a block was asked."""
        writing.file.flush()
        level, repeat, number, side = writing.key
        line = {"level": level, "repeat": repeat, "block": number, "side": side, "attempt": writing.attempt}
        append(self.folder / "blocks.jsonl", {**line, "wall_s": wall_s, **facts})
        self.done.add(writing.key)
        self._remember(writing.lines)

    def judge(self, key: TurnKey, verdict: Mapping[str, Any]) -> None:
        """Record how a turn compares with the plain server's."""
        level, repeat, question_id, turn = key
        line = {"level": level, "repeat": repeat, "question_id": question_id, "turn": turn}
        append(self.folder / "fidelity.jsonl", {**line, **verdict})
        self.compared.add(key)


def answered(answer: Answer, prompt_sha256: str, start_s: float) -> dict[str, Any]:
    """What is recorded of an answer. start_s: when it was asked, from the beginning of its block."""
    return {
        "status": "ok",
        "prompt_sha256": prompt_sha256,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "new_tokens": answer.new_tokens,
        "miscounted": answer.miscounted,
        "stop": answer.stop,
        "start_s": round(start_s, 6),
        "ttft_s": round(answer.times_s[0], 6),
        "wall_s": round(answer.wall_s, 6),
        "times_s": [round(time, 6) for time in answer.times_s],
        "counts": answer.counts,
        "acceptance": asdict(answer.acceptance) if answer.acceptance else None,
        "token_ids": answer.token_ids,
        "text": answer.text,
    }


def read_acceptance(found: Mapping[str, Any] | None) -> Acceptance | None:
    """What `answered` wrote. Raises TypeError or ValueError where it is something else."""
    if found is None:
        return None
    deeper = found.get("deeper")
    return Acceptance(**{**found, "deeper": None if deeper is None else tuple(deeper)})


def counted(before: Counters, after: Counters) -> dict[str, Any]:
    """What a server's own counters say of a block; nothing where they could not be read on one side of it."""
    found = of_counters(before, after)
    grown = after["tokens"] - before["tokens"] if "tokens" in before and "tokens" in after else None
    return {"acceptance": asdict(found) if found else None, "counted_tokens": grown}
