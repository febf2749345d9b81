"""What an engine does in one go, and the rows that go through it.

A method says what a unit makes of tensors. Whether that is done operation by operation, or captured once and then
replayed, is for the engine (`Llama.through`) to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.engine.attention import Mask, attention_mask
from methods.engine.kv_cache import KVCache, Places

Caches = Sequence[KVCache | None]


@dataclass(frozen=True)
class Rows:
    """The n rows of a pass over one cache: where they stand, and what they see."""

    positions: Tensor  # [n] int64
    cache: KVCache | None = None  # None: the rows see each other only
    past: int = 0  # slots that they see before their own
    sees: Mask | None = None  # [n, past + n], True = may attend; None = causal
    end: Tensor | None = None  # [1] int64: the last row, where rows are filled up behind it

    @classmethod
    def of(
        cls, positions: Tensor, cache: KVCache | None = None, mask: Mask | None = None, layers: range = range(1)
    ) -> Rows:
        """Rows behind what those layers of the cache hold."""
        return cls(positions, cache, cache.lengths[layers[0]] if cache and layers else 0, mask)

    def added(self, states: Tensor, groups: int) -> Mask | None:
        """What attention adds to the scores of the rows' states [n, hidden], when `groups` heads share a key head."""
        return attention_mask(self.sees, states, self.past, groups)

    def last(self, states: Tensor) -> Tensor:
        """The last row of [n, ...], as [1, ...]."""
        return states[-1:] if self.end is None else states[self.end]

    def with_last(self, states: Tensor, row: Tensor) -> Tensor:
        """States [n - 1, ...] of the rows before the last, and its own [1, ...]: [n, ...]."""
        if self.end is not None:
            return states.index_copy(0, self.end, row)
        return torch.cat((states, row)) if len(states) else row

    def only_last(self) -> Rows:
        """The last row alone, over a cache that has the others already."""
        if self.end is None and len(self.positions) == 1:
            return self
        position, sees = self.last(self.positions), self.last(self.sees) if isinstance(self.sees, Tensor) else None
        if self.end is None:
            return Rows(position, self.cache, self.past, sees)
        cache = self.cache.only(self.end) if isinstance(self.cache, Places) else None
        return Rows(position, cache, self.past + len(self.positions) - 1, sees)


@dataclass(frozen=True)
class Unit:
    """Work that rows go through in one pass: layers, and what is read from them.

    `run` takes the inputs, each with a row for every row of the pass or fewer, then Rows for each cache. It changes
    nothing but the caches, and keeps what it reads besides where it is. Where rows are filled up to fixed numbers, an
    input has as many, whatever it was given.
    """

    run: Callable[..., tuple[Tensor, ...]]
    key: Hashable  # units with the same key do the same
    layers: tuple[range, ...]  # of each cache, the ones that the rows are appended to
    # each: results have a row for every row. last: they are of the last row, in any shape. whole: of all rows, in any
    # shape, so none may be filled up; there is a capture for every number of rows that the warm-up met.
    results: Literal["each", "last", "whole"] = "each"
