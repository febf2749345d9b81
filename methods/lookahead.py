"""Lookahead decoding (Fu et al., arXiv 2402.02057): the target drafts for itself by Jacobi iteration.

Every target pass serves two branches. The window, rows of guessed tokens at the positions after the pending token,
yields new n-grams; the n-grams of earlier passes that begin with the pending token are verified. Nothing is trained.
"""

from __future__ import annotations

import random
from functools import lru_cache

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import Draft, Extra, Tree, upload
from methods.engine.llama import Llama
from methods.errors import UserError, check_sizes

NGram = tuple[int, ...]


class Pool:
    """N-grams by their first token: for each the `most` that were seen last, in the order they were seen."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_first: dict[int, dict[NGram, None]] = {}  # a dictionary keeps order and finds a repeated one at once

    def add(self, ngram: NGram) -> None:
        """Take in an n-gram as the newest; the oldest of its first token leaves when there are too many."""
        known = self.by_first.setdefault(ngram[0], {})
        known.pop(ngram, None)
        known[ngram] = None
        if len(known) > self.most:
            del known[next(iter(known))]

    def starting_with(self, token: int) -> list[NGram]:
        """Those that begin with `token`, oldest first."""
        return list(self.by_first.get(token, ()))


class Lookahead:
    """Drafts n-grams from a pool that the window fills.

    window: columns W. level: tokens N of an n-gram; the window has N - 1 rows. guesses: most n-grams G verified a step.
    max_accept: most tokens accepted a step, at most N - 1 (None: N - 1). `seed` draws the window's first row, from the
    prompt. Raises UserError for values out of range.

    Row j, column i of the window stands i + j places after the pending token, which is row 0, column 0. While rows are
    missing there are more columns: each pass adds a row and gives up a column. After that each pass gives up row 0. The
    authors' window is part of the prompt's pass already, and begins a pass earlier.
    """

    taps: tuple[int, ...] = ()
    extra_parameters = 0

    def __init__(
        self, target: Llama, *, window: int, level: int, guesses: int, max_accept: int | None, seed: int
    ) -> None:
        check_sizes(window=window, guesses=guesses)
        check_sizes(2, level=level)
        if max_accept is not None and not 1 <= max_accept < level:
            raise UserError(f"method.max_accept={max_accept}: must be between 1 and method.level - 1 = {level - 1}")
        self.window, self.level, self.guesses, self.seed = window, level, guesses, seed
        self.longest = level - 1 if max_accept is None else max_accept
        self.device = target.device
        largest = max(rows * (window + level - 1 - rows) for rows in range(1, level))
        self.max_rows = guesses * self.longest + largest  # the window's count has the pending token

    def start(self, prompt: list[int], prefill: Prefill) -> Window:
        """An empty pool, and the window's first row: random tokens of the prompt behind the pending one."""
        return Window(self, prompt)


class Window:
    """Window and pool of one sequence."""

    def __init__(self, method: Lookahead, prompt: list[int]) -> None:
        self.method, self.pool = method, Pool(method.guesses)
        drawn = random.Random(method.seed).choices(prompt, k=method.window + method.level - 3)
        self.rows = [[-1, *drawn]]  # the first is the pending token, known when a pass begins

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The pool's n-grams after the pending token, and the window as extra rows.

        Where the context has no room for the window's farthest token, the window stays away and the pool as it is.
        """
        device = self.method.device
        self.rows[0][0] = tokens[-1]
        length = min(self.method.longest, room)
        ngrams = self.pool.starting_with(tokens[-1])
        candidates = [token for ngram in ngrams for token in ngram[1 : length + 1]]
        rows, columns = len(self.rows), len(self.rows[0])
        extra = None
        if rows + columns - 2 <= room:
            shown = [token for row in self.rows for token in row]
            offsets, mask = window_layout(rows, columns, len(candidates), device)
            extra = Extra(tokens=upload(shown[1:], device), offsets=offsets, mask=mask)
        return Draft(tokens=upload(candidates, device), tree=parallel_chains(len(ngrams), length, device), extra=extra)

    def observe(self, verification: Verification) -> None:
        """Advance the window by one row: what the target says after the last one, where the window was there."""
        if not verification.extra_predicted:
            return
        columns = len(self.rows[0])
        new = list(verification.extra_predicted[-columns:])  # the pending token is the window's first
        if len(self.rows) == self.method.level - 1:
            for ngram in zip(*self.rows, new, strict=True):
                self.pool.add(ngram)
            self.rows = [*self.rows[1:], new]
        else:
            self.rows = [row[1:] for row in (*self.rows, new)]


@lru_cache(maxsize=256)
def parallel_chains(count: int, length: int, device: torch.device) -> Tree:
    """`count` chains of `length` candidates side by side under the pending token."""
    return Tree.build([-1 if i % length == 0 else i - 1 for i in range(count * length)], device)


@lru_cache(maxsize=256)
def window_layout(rows: int, columns: int, candidates: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets [e] and mask [e, 1 + candidates + e] of a window, without its first token, which is the pending one.

    The token in row j, column i continues row 0 up to column i, and then its own column down to row j: it sees these,
    itself, and no candidate.
    """
    cell = torch.arange(rows * columns)
    row, column = cell // columns, cell % columns
    first_row = (row == 0) & (column <= column[:, None])
    own_column = (column == column[:, None]) & (row <= row[:, None])
    sees = first_row | own_column  # [cells, cells]
    hidden = torch.zeros(rows * columns - 1, candidates, dtype=torch.bool)
    mask = torch.cat((sees[1:, :1], hidden, sees[1:, 1:]), 1)
    return upload((row + column)[1:].numpy(), device), upload(mask.numpy(), device)
