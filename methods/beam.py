"""The dynamic tree of EAGLE-2 (Li et al., arXiv 2406.16858, section 4): expand the best frontier, then rerank all.

A node's score is the sum of the log-probabilities on its path. Everything stays on the device and has a shape that the
settings alone decide, so a tree costs the host no wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.draft import Tree


class Beam:
    """Candidates of one draft, and the frontier that the draft model runs next.

    The draft model's rows are numbered in the order of its passes: the first frontier's nodes are rows 0, 1, ...

    logits [1, draft vocab]: what the draft model says after the pending token. width: children of a node and nodes of
    a frontier. vocabulary [draft vocab] int64: the target's id of each drafted token, None for the same.
    """

    def __init__(self, logits: Tensor, width: int, vocabulary: Tensor | None = None) -> None:
        self.width, self.vocabulary, device = width, vocabulary, logits.device
        self.levels = 0
        self.frontier = torch.full((1,), -1, device=device)  # [f] candidates that the next logits belong to
        self.scores = torch.zeros(1, device=device)  # [f] of the frontier
        self.sees = torch.zeros(1, 0, dtype=torch.bool, device=device)  # [f, rows so far] a node's ancestors and itself
        self._tokens: list[Tensor] = []  # of each level's candidates
        self._scores: list[Tensor] = []
        self._parents: list[Tensor] = []  # the candidate that each follows, -1: the pending token
        self.size = 0  # candidates so far
        self.grow(logits)

    def grow(self, logits: Tensor) -> None:
        """One level: logits [f, draft vocab] behind the frontier give its children, the best of them the next frontier.

        Then `tokens` [f] are the next frontier's, `origin` [f] the place of each one's parent in the frontier before,
        `certainty` [f] the log-probability of each by itself.
        """
        chances, choices = best(torch.log_softmax(logits.float(), -1), min(self.width, logits.shape[-1]))
        scores = (chances + self.scores[:, None]).flatten()
        tokens = choices.flatten() if self.vocabulary is None else self.vocabulary[choices.flatten()]
        self._tokens.append(tokens)
        self._scores.append(scores)
        self._parents.append(self.frontier.repeat_interleave(choices.shape[-1]))
        self.scores, chosen = best(scores, min(self.width, len(scores)))
        self.tokens, self.certainty = tokens[chosen], chances.flatten()[chosen]
        self.origin = chosen // choices.shape[-1]
        self.frontier = self.size + chosen
        itself = torch.eye(len(chosen), dtype=torch.bool, device=logits.device)
        self.sees = torch.cat((self.sees[self.origin], itself), 1)
        self.size += len(scores)
        self.levels += 1

    def rerank(self, nodes: int) -> tuple[Tensor, Tree, Tensor]:
        """The tree of the `nodes` best candidates of all: tokens [n], shape, and their numbers [n], ascending."""
        tokens, parents, kept = self.chosen(nodes)
        return tokens, Tree.on_device(parents, self.levels), kept

    def chosen(self, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same candidates: tokens [n], the place of each one's parent among them (-1: pending), numbers [n].

        A child never scores above its parent and comes after it, so with ties broken by number no parent is left out.
        """
        kept = best(torch.cat(self._scores), min(nodes, self.size))[1].sort().values
        place = torch.full((self.size + 1,), -1, device=kept.device)  # of a candidate in the tree; the last: pending
        place[kept] = torch.arange(len(kept), device=kept.device)
        parents = place[torch.cat(self._parents)[kept]]  # -1 reads the last place
        return torch.cat(self._tokens)[kept], parents, kept


def best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest float32 values of the last dimension, falling, and where they stand; equals by their place.

    `topk` promises no order among equals, so its keys here are the value's bits, which sort as the value does, and
    below them the place.
    """
    bits = (values + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    size = values.shape[-1]
    falling = torch.arange(size - 1, -1, -1, device=values.device)
    places = size - 1 - (ordered * 2**31 + falling).topk(count).values % 2**31
    return values.gather(-1, places), places
