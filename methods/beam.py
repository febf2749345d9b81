"""The dynamic tree of EAGLE-2 (Li et al., arXiv 2406.16858, section 4): expand the best frontier, then rerank all.

A node's score is the sum of the log-probabilities on its path. Everything stays on the device and has a shape that the
settings alone decide, so a tree costs the host no wait.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from methods.draft import Tree


class Level(NamedTuple):
    """The children [c] of a frontier, and the best of them, which are the next frontier [f]."""

    children: Tensor  # [c] tokens, those of a node side by side
    child_scores: Tensor  # [c]
    chosen: Tensor  # [f] places of the best among the children
    tokens: Tensor  # [f] of the best, best first
    scores: Tensor  # [f]
    origin: Tensor  # [f] place of each one's parent in the frontier before
    certainty: Tensor  # [f] log-probability of each by itself


def expand(logits: Tensor, scores: Tensor | None, width: int, vocabulary: Tensor | None = None) -> Level:
    """Logits [f, draft vocab] behind a frontier, and its scores [f] (None: 0) -> one more level.

    width: children of a node and nodes of a frontier. vocabulary [draft vocab] int64: the target's id of each drafted
    token, None for the same.
    """
    chances, choices = best(torch.log_softmax(logits.float(), -1), min(width, logits.shape[-1]))
    summed = (chances if scores is None else chances + scores[:, None]).flatten()
    children = choices.flatten() if vocabulary is None else vocabulary[choices.flatten()]
    best_scores, chosen = best(summed, min(width, len(summed)))
    origin = chosen // choices.shape[-1]
    return Level(children, summed, chosen, children[chosen], best_scores, origin, chances.flatten()[chosen])


class Beam:
    """Candidates of one draft, and the frontier that the draft model runs next.

    The draft model's rows are numbered in the order of its passes: the first frontier's nodes are rows 0, 1, ...

    level: what the draft model says after the pending token.
    """

    def __init__(self, level: Level) -> None:
        device = level.tokens.device
        self.levels = 0
        self.frontier = torch.full((1,), -1, device=device)  # [f] candidates that the next level's are children of
        self.sees = torch.zeros(1, 0, dtype=torch.bool, device=device)  # [f, rows so far] a node's ancestors and itself
        self._tokens: list[Tensor] = []  # of each level's candidates
        self._scores: list[Tensor] = []
        self._parents: list[Tensor] = []  # the candidate that each follows, -1: the pending token
        self.size = 0  # candidates so far
        self.grow(level)

    def grow(self, level: Level) -> None:
        """The children of the frontier; the best of them, `level`, are the next frontier."""
        self.level, count = level, len(level.children)
        self._tokens.append(level.children)
        self._scores.append(level.child_scores)
        self._parents.append(self.frontier.repeat_interleave(count // len(self.frontier)))
        self.frontier = self.size + level.chosen
        itself = torch.eye(len(level.chosen), dtype=torch.bool, device=level.chosen.device)
        self.sees = torch.cat((self.sees[level.origin], itself), 1)
        self.size += count
        self.levels += 1

    def rerank(self, nodes: int) -> tuple[Tensor, Tree]:
        """The tree of the `nodes` best candidates of all: tokens [n] and shape."""
        tokens, parents = self.chosen(self.kept(nodes))
        return tokens, Tree.on_device(parents, self.levels)

    def kept(self, nodes: int) -> Tensor:
        """Numbers [n] of the `nodes` best candidates, ascending.

        A child never scores above its parent and comes after it, so with ties broken by number no parent is left out.
        """
        return best(torch.cat(self._scores), min(nodes, self.size))[1].sort().values

    def chosen(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [n] of candidates, in any order, and the place of each one's parent among them (-1: pending)."""
        place = torch.full((self.size + 1,), -1, device=numbers.device)  # of a candidate in the tree; the last: pending
        place[numbers] = torch.arange(len(numbers), device=numbers.device)
        parents = place[torch.cat(self._parents)[numbers]]  # -1 reads the last place
        return torch.cat(self._tokens)[numbers], parents


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
