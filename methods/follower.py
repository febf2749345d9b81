"""Drafting with the target's features: what EAGLE-1, EAGLE-2 and EAGLE-3 have in common (Li et al., arXiv 2401.15077).

Pair i is the target's feature of token i, and token i + 1. From the pairs up to i a draft model makes an output that
stands for the feature of token i + 1: with the token that is read from it, it is the next pair.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import upload
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Mask


class DraftModel(Protocol):
    """What drafts from the target's features; EAGLE-1 and EAGLE-3 have one each. It keeps nothing of a sequence."""

    taps: tuple[int, ...]  # layers of the target whose input states `features` takes
    vocabulary: Tensor | None  # [draft vocab] int64: the target's id of each token of `logits`; None: the same
    extra_parameters: int

    def new_cache(self, capacity: int) -> KVCache:
        """For the keys and values of one sequence."""

    def features(self, tapped: tuple[Tensor, ...]) -> Tensor:
        """The target's states [n, hidden] of every tap -> features [n, hidden]."""

    def run(
        self, tokens: Tensor, features: Tensor, positions: Tensor, cache: KVCache | None, mask: Mask | None = None
    ) -> Tensor:
        """Pairs of features [n, hidden] and the tokens [n] behind them -> outputs [n, hidden], features one deeper.

        positions [n]: the features' own. The rows are appended to the cache and see all it holds; mask [n, held slots],
        None = causal. Without a cache they see each other only, as in `Llama.run`.
        """

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs [n, hidden] -> logits [n, draft vocab] of the tokens that follow."""


class Follower:
    """A draft model on one sequence: its cache holds the pairs it has seen, and while it drafts a tree behind them.

    rows: most nodes of a tree that the model runs on. The prompt's pairs are seen from the start, but for the last,
    which needs the pending token.
    """

    def __init__(self, model: DraftModel, prompt: list[int], prefill: Prefill, rows: int) -> None:
        self.model = model
        self.cache = model.new_cache(prefill.cache.capacity + rows)
        self.unseen = model.features(prefill.tapped)  # of pairs behind those in the cache
        self.pairs = 0
        if len(prompt) > 1:
            self._run(prompt[1:])

    def catch_up(self, tokens: list[int]) -> Tensor:
        """Run the pairs that are not seen yet, up to the one with the pending token: its output [1, hidden]."""
        return self._run(tokens[self.pairs + 1 :])[-1:]

    def level(self, tokens: Tensor, features: Tensor, sees: Tensor, depth: int) -> Tensor:
        """Run nodes [f] of the tree, all of one depth (1: behind the pending token): their outputs [f, hidden].

        features: their parents' outputs. sees [f, nodes run since the pairs, these included] bool: a node's ancestors
        and itself.
        """
        positions = torch.full((len(tokens),), self.pairs - 1 + depth, device=tokens.device)
        mask = torch.cat((sees.new_ones(len(tokens), self.pairs), sees), 1)
        return self.model.run(tokens, features, positions, self.cache, mask)

    def end_tree(self) -> None:
        """Drop the tree from the cache."""
        self.cache.truncate(self.pairs)

    def observe(self, verification: Verification) -> None:
        """Note the features of the accepted rows, whoever drafted them."""
        path = upload(verification.path, self.unseen.device)
        accepted = self.model.features(tuple(states[path] for states in verification.tapped))
        self.unseen = torch.cat((self.unseen, accepted))

    def _run(self, following: list[int]) -> Tensor:
        count, device = len(following), self.unseen.device
        positions = torch.arange(self.pairs, self.pairs + count, device=device)
        outputs = self.model.run(upload(following, device), self.unseen[:count], positions, self.cache)
        self.unseen = self.unseen[count:]
        self.pairs += count
        return outputs
