"""Packing conversations into rows of at most `length` tokens, and the order in which training sees the rows.

Conversations stay whole and see only themselves, so a row needs no padding; short ones share a row.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.train.conversations import Encoded

WINDOW = 4096  # conversations packed together: enough choice for full rows, few enough to keep the order random


@dataclass(frozen=True)
class Row:
    """Conversations side by side; all tensors [n] on one device. lengths: tokens of each conversation."""

    tokens: Tensor  # int64
    positions: Tensor  # int64, from 0 in every conversation
    segments: Tensor  # int64, index of the conversation in the row
    assistant: Tensor  # bool
    lengths: tuple[int, ...]

    def predicting(self) -> Tensor:
        """Indices [m] of the rows whose next token is the assistant's: where a draft has to agree with the target."""
        follows = self.assistant[1:] & (self.segments[1:] == self.segments[:-1])
        return follows.nonzero()[:, 0]

    def to(self, device: torch.device) -> Row:
        """The same row elsewhere."""
        tensors = {name: t.to(device, non_blocking=True) for name, t in vars(self).items() if name != "lengths"}
        return replace(self, **tensors)


def build_row(conversations: Sequence[Encoded]) -> Row:
    """One row from whole conversations, on the CPU."""
    return Row(
        tokens=torch.cat([torch.from_numpy(c.tokens).long() for c in conversations]),
        positions=torch.cat([torch.arange(len(c.tokens)) for c in conversations]),
        segments=torch.cat([torch.full((len(c.tokens),), i) for i, c in enumerate(conversations)]),
        assistant=torch.cat([torch.from_numpy(c.assistant) for c in conversations]),
        lengths=tuple(len(c.tokens) for c in conversations),
    )


def learnable(conversation: Encoded) -> int:
    """Positions of a conversation that a loss is taken at."""
    return int(conversation.assistant[1:].sum())


def pack(lengths: Sequence[int], length: int, *, generator: np.random.Generator | None = None) -> list[list[int]]:
    """Indices of `lengths` grouped into rows of at most `length` tokens by best fit, longest first.

    With a generator the order of conversations and of rows is random.
    """
    order = np.arange(len(lengths)) if generator is None else generator.permutation(len(lengths))
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        rows += _pack_window(sorted(order[start : start + WINDOW].tolist(), key=lambda i: -lengths[i]), lengths, length)
    return rows if generator is None else [rows[i] for i in generator.permutation(len(rows))]


def _pack_window(order: list[int], lengths: Sequence[int], length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in order:
        need = lengths[index]
        fit = bisect.bisect_left(spaces, (need, -1))
        if fit < len(spaces):
            free, row = spaces.pop(fit)
        else:
            free, row = length, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(spaces, (free - need, row))
    return rows


def padding(rows: Sequence[Sequence[int]], lengths: Sequence[int], length: int) -> float:
    """Share of the rows' capacity that stays empty."""
    return 1 - sum(lengths[i] for row in rows for i in row) / (length * len(rows))


@dataclass(frozen=True)
class Plan:
    """Which conversations every optimiser step sees: it follows from the seed, so resuming needs only a step."""

    steps: tuple[tuple[tuple[int, ...], ...], ...]  # [step][row][conversation]
    padding: float

    def __len__(self) -> int:
        return len(self.steps)


def plan(lengths: Sequence[int], *, length: int, rows_per_step: int, epochs: float, seed: int) -> Plan:
    """Rows of `epochs` passes over the conversations, each pass shuffled and packed anew, cut into optimiser steps.

    Rows that fill no whole step are left out at the very end; with too few rows for one step, rows repeat in it.
    """
    rows: list[list[int]] = []
    done = 0.0
    while done < epochs:
        packed = pack(lengths, length, generator=np.random.default_rng((seed, int(done))))
        share = min(1.0, epochs - done)
        rows += packed[: max(1, round(share * len(packed)))]
        done += share
    empty = padding(rows, lengths, length)
    while len(rows) < rows_per_step:
        rows += rows[: rows_per_step - len(rows)]
    count = len(rows) // rows_per_step
    chunks = (rows[i * rows_per_step : (i + 1) * rows_per_step] for i in range(count))
    return Plan(tuple(tuple(tuple(row) for row in chunk) for chunk in chunks), empty)
