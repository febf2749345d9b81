"""Speedup of decoding from recorded steps and the costs of their parts, and the best length of a chain.

A draft that is cut to its first g tokens verifies min(drafted, g) and emits min(emitted, g + 1): of that step this is
exact, for greedy and sampled chains alike. That the steps after it are as they were recorded is an approximation: they
would begin at other places. A tree records no order of its nodes, so only its own size is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.predict.costs import Array, Costs, Draft
from bench.records.lines import Row, json_lines, read_rows
from methods.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """A predicted decode speedup, and how the time of a step is divided."""

    speedup: float
    cr: float
    draft: float
    verify: float
    overhead: float


def read_side(folder: Path, side: str) -> list[Row]:
    """Recorded turns of "answers" or "baseline"; none where there is no such file. Raises UserError."""
    file = folder / f"{side}.jsonl"
    return [row for _, rows in json_lines(file, [], read_rows) for row in rows] if file.is_file() else []


def steps_of(rows: Sequence[Row]) -> tuple[Array, Array]:
    """(drafted, emitted) of every step. Raises UserError where there is none."""
    if not any(len(row.lengths) for row in rows):
        raise UserError("RUN: no steps recorded, nothing to predict from")
    return np.concatenate([row.drafted for row in rows]), np.concatenate([row.lengths for row in rows])


def predict(drafted: Array, emitted: Array, costs: Costs, draft: Draft) -> Prediction:
    """drafted, emitted [steps]."""
    verify = float(np.sum(costs.verify(draft.rows(drafted))))
    drafting = float(costs.draft_step * len(drafted) + costs.draft_token * drafted.sum())
    overhead = costs.overhead * len(drafted)
    whole, tokens = verify + drafting + overhead, float(emitted.sum())
    return Prediction(
        tokens * costs.vanilla / whole, tokens / len(drafted), drafting / whole, verify / whole, overhead / whole
    )


def by_length(drafted: Array, emitted: Array, costs: Costs, draft: Draft) -> dict[int, Prediction]:
    """The prediction for drafts cut to g tokens, for each g up to the longest recorded one; a tree has none."""
    lengths = range(1, int(drafted.max()) + 1) if draft.chain else ()
    return {g: predict(np.minimum(drafted, g), np.minimum(emitted, g + 1), costs, draft) for g in lengths}
