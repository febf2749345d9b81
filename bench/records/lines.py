"""The lines of answers.jsonl and baseline.jsonl: one per question and repeat, as Spec-Bench's evaluation reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.fidelity import Fidelity
from bench.questions import Question

if TYPE_CHECKING:
    from bench.measure import Timed


@dataclass(frozen=True)
class Turn:
    """One recorded turn of one side."""

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
    def key(self) -> tuple[int, int]:
        return self.question.question_id, self.repeat


def head(place: Place) -> dict[str, Any]:
    """What every line begins with."""
    question = place.question
    return {
        "question_id": question.question_id,
        "category": question.category,
        "subtask": question.subtask,
        "repeat": place.repeat,
    }


def line(place: Place, envelope: Mapping[str, Any], turns: list[Turn]) -> dict[str, Any]:
    """A line that Spec-Bench's own evaluation reads, with our per-turn lists in the same choice."""
    for turn in turns:
        emitted = sum(step.emitted for step in turn.timed.generation.steps)
        assert emitted + 1 == len(turn.timed.generation.tokens), "steps and tokens disagree"
    generations = [turn.timed.generation for turn in turns]
    choice: dict[str, Any] = {
        "index": 0,
        "turns": [turn.text for turn in turns],
        "decoding_steps": [len(generation.steps) for generation in generations],
        "new_tokens": [len(generation.tokens) for generation in generations],
        "wall_time": [turn.timed.wall_s for turn in turns],
        "accept_lengths": [step.emitted for generation in generations for step in generation.steps],
        "token_ids": [list(generation.tokens) for generation in generations],
        "prompt_tokens": [len(turn.prompt_ids) for turn in turns],
        "prompt_sha256": [prompt_hash(turn.prompt_ids) for turn in turns],
        "steps": [[[step.drafted, step.emitted] for step in generation.steps] for generation in generations],
        "stop": [generation.stop for generation in generations],
        "prefill_s": [turn.timed.prefill_s for turn in turns],
        "draft_s": [turn.timed.draft_s for turn in turns],
        "verify_s": [turn.timed.verify_s for turn in turns],
        "peak_memory_bytes": [turn.timed.peak_memory_bytes for turn in turns],
        "status": ["ok"] * len(turns),
    }
    if any(turn.fidelity for turn in turns):
        choice["fidelity"] = [asdict(turn.fidelity) if turn.fidelity else None for turn in turns]
    return {**head(place), **envelope, "choices": [choice]}


def prompt_hash(prompt_ids: tuple[int, ...]) -> str:
    """SHA-256 of prompt ids, as 32-bit little-endian integers."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in prompt_ids)).hexdigest()
