"""Drafting with the target's features: what EAGLE-1, EAGLE-2 and EAGLE-3 have in common (Li et al., arXiv 2401.15077).

Pair i is the target's feature of token i, and token i + 1. From the pairs up to i a draft model makes an output that
stands for the feature of token i + 1: with the token that is read from it, it is the next pair.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import upload
from methods.engine.llama import Llama, ModelConfig
from methods.engine.unit import Rows, Unit


class DraftModel(Protocol):
    """What drafts from the target's features; EAGLE-1 and EAGLE-3 have one each. It keeps nothing of a sequence."""

    taps: tuple[int, ...]  # layers of the target whose input states `features` takes
    vocabulary: Tensor | None  # [draft vocab] int64: the target's id of each token of `logits`; None: the same
    extra_parameters: int
    target: Llama
    config: ModelConfig  # of its layer

    def features(self, tapped: tuple[Tensor, ...]) -> Tensor:
        """The target's states [n, hidden] of every tap -> features [n, hidden]."""

    def run(self, tokens: Tensor, features: Tensor, rows: Rows) -> Tensor:
        """Pairs of features [n, hidden] and the tokens [n] behind them -> outputs [n, hidden], features one deeper.

        The positions are the features' own.
        """

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs [n, hidden] -> logits [n, draft vocab] of the tokens that follow."""


def reading(model: DraftModel, read: Callable[..., tuple[Tensor, ...]], key: Hashable, *, level: bool) -> Unit:
    """Pairs in; the outputs [f, hidden] and what is read from their logits [f, draft vocab] out.

    Of a level's pairs, all of them, and further inputs go to `read`; else of the last of pairs that follow each other.
    """

    def run(tokens: Tensor, features: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *others, rows = others  # type: ignore[assignment]
        outputs = model.run(tokens, features, rows)
        outputs = outputs if level else rows.last(outputs)
        return outputs, *read(model.logits(outputs), *others)

    return Unit(run, key, (range(1),), "whole" if level else "last")


class Follower:
    """A draft model on one sequence: its cache holds the pairs it has seen, and while it drafts a tree behind them.

    nodes: most of a tree that the model runs on. deepest: most levels of a tree. The prompt's pairs are seen from the
    start, but for the last, which needs the pending token.
    """

    def __init__(self, model: DraftModel, prompt: list[int], prefill: Prefill, *, nodes: int, deepest: int) -> None:
        self.model = model
        capacity = prefill.cache.capacity + nodes
        self.cache = model.target.new_cache(capacity, rows=deepest + 1, config=model.config)
        self.unseen = model.features(prefill.tapped)  # of pairs behind those in the cache
        self.pairs = 0
        if len(prompt) > 1:
            inputs, positions = self._unseen(prompt)
            model.run(*inputs, Rows.of(positions, self.cache))

    def catch_up(self, unit: Unit, tokens: list[int]) -> tuple[Tensor, ...]:
        """Run the pairs that are not seen yet, up to the one with the pending token: what the unit gives for it."""
        inputs, positions = self._unseen(tokens)
        return self.model.target.through(unit, inputs, positions, (self.cache,))

    def level(self, unit: Unit, inputs: Sequence[Tensor], sees: Tensor, depth: int) -> tuple[Tensor, ...]:
        """Run nodes [f] of the tree, all of one depth (1: behind the pending token): what the unit gives for them.

        inputs: tokens [f], their parents' outputs [f, hidden], what the unit takes besides. sees [f, nodes run since
        the pairs, these included] bool: a node's ancestors and itself.
        """
        positions = torch.full((len(sees),), self.pairs - 1 + depth, device=sees.device)
        mask = torch.cat((sees.new_ones(len(sees), self.pairs), sees), 1)
        return self.model.target.through(unit, inputs, positions, (self.cache,), mask)

    def end_tree(self) -> None:
        """Drop the tree from the cache."""
        self.cache.truncate(self.pairs)

    def observe(self, verification: Verification) -> None:
        """Note the features of the accepted rows, whoever drafted them."""
        path = upload(verification.path, self.unseen.device)
        accepted = self.model.features(tuple(states[path] for states in verification.tapped))
        self.unseen = torch.cat((self.unseen, accepted))

    def _unseen(self, tokens: list[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The pairs that these tokens make of what is unseen, which then counts as seen; their positions."""
        following, device = tokens[self.pairs + 1 :], self.unseen.device
        count, begin = len(following), self.pairs
        features, self.unseen = self.unseen[:count], self.unseen[count:]
        self.pairs += count
        return (upload(following, device), features), torch.arange(begin, self.pairs, device=device)
