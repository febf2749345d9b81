"""Token Recycling (Luo et al., arXiv 2408.08696): what the target said once after a token is drafted after it again.

A matrix holds, for every token of the vocabulary, the best successors that the target last gave it. Nothing is trained,
and no model drafts: a tree of fixed shape is filled by looking up the matrix level by level.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import Draft, upload
from methods.engine.llama import Llama
from methods.trees import RECYCLING_2_2_2, by_depth

WIDTH = 8  # successors kept of a token, as many as the tree has branches at the most
ROWS_AT_ONCE = 128  # of the prompt, so that their logits take little memory


class Successors:
    """The matrix [vocabulary + 1, 8]; its last row stands for what is not known yet, and leads to itself.

    Of rows that begin with the same token the last one counts, whatever the order of writing. Of equal logits topk
    decides, always alike on one device.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self.unknown = vocabulary
        self.matrix = torch.full((vocabulary + 1, WIDTH), vocabulary, device=device)

    def learn(self, tokens: Tensor, logits: Tensor, counts: Tensor | None = None) -> None:
        """The best successors after tokens [n] by logits [n, vocabulary]; counts [n]: the rows to be looked at.

        A row that does not count must have the token of one that does.
        """
        order = torch.arange(len(tokens), device=tokens.device)
        seen = order if counts is None else torch.where(counts, order, -1)
        last = torch.where(tokens[:, None] == tokens, seen, -1).amax(1)
        self.matrix[tokens] = logits.topk(WIDTH).indices[last]


class Recycling:
    """Drafts the published tree of 80 nodes: a node of rank r is the r-th successor of its parent's token.

    memory: sequence forgets everything with each sequence; run keeps the matrix, as the authors' code does, so that the
    order of the questions changes what is drafted (but for a sequence's last pass, which teaches nothing here). prompt:
    whether the target's logits over the whole prompt fill the matrix; else those after its last token do, as in the
    authors' code, where that token's pass is a step.

    A pass always has 81 rows. A node below a token whose successors are not known is left out of the tree and rides
    along (`Tree.only`): it can never be accepted, and the host need not wait to learn how many there are. The authors'
    matrix holds zeros instead, so that their unknown entries draft token 0, and teach its successors.
    """

    extra_parameters = 0

    def __init__(self, target: Llama, *, memory: Literal["sequence", "run"], prompt: bool) -> None:
        self.target, self.prompt = target, prompt
        self.taps = (target.config.num_layers,) if prompt else ()
        self.carries_over = "method.memory=run" if memory == "run" else None
        self.kept = self._empty() if memory == "run" else None
        depths = range(1, 1 + max(map(len, RECYCLING_2_2_2)))
        levels = [[node for node in RECYCLING_2_2_2 if len(node) == depth] for depth in depths]
        # Where the tokens of a level stand among the successors [nodes above, 8] of the level above.
        self.places = [
            upload([WIDTH * above.index(node[:-1]) + node[-1] for node in level], target.device)
            for above, level in pairwise(levels)
        ]
        self.trees = [tree.shape for tree in by_depth(RECYCLING_2_2_2, WIDTH, target.device)]
        self.max_rows = len(RECYCLING_2_2_2) + 1

    def start(self, prompt: list[int], prefill: Prefill) -> Recycled:
        """An empty matrix, or the one that is kept; and what the target said in the prompt, or at its end."""
        successors, tokens = self.kept or self._empty(), upload(prompt, self.target.device)
        if not self.prompt:
            successors.learn(tokens[-1:], self.target.lm_head(prefill.final))
        else:
            for rows, states in zip(tokens.split(ROWS_AT_ONCE), prefill.tapped[0].split(ROWS_AT_ONCE), strict=True):
                successors.learn(rows, self.target.head(states))
        return Recycled(self, successors)

    def _empty(self) -> Successors:
        return Successors(self.target.config.vocab_size, self.target.device)


class Recycled:
    """Token Recycling on one sequence."""

    def __init__(self, method: Recycling, successors: Successors) -> None:
        self.method, self.successors = method, successors
        self.known: Tensor | None = None  # [81] rows of this draft that count; None: the pass was another drafter's

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The tree under the pending token, cut to the depth that the context has room for."""
        method, matrix = self.method, self.successors.matrix
        depth = min(room, len(method.trees))
        pending = matrix.new_full((1,), tokens[-1])
        levels = [pending, matrix[tokens[-1]]]
        for places in method.places[: depth - 1]:
            levels.append(matrix.index_select(0, levels[-1]).take(places))
        rows = torch.cat(levels)
        self.known = rows < self.successors.unknown
        rows = torch.where(self.known, rows, pending)
        return Draft(tokens=rows[1:], tree=method.trees[depth - 1].only(self.known))

    def observe(self, verification: Verification) -> None:
        """Every row, accepted or not, tells the successors of its token; what only rode along tells nothing."""
        self.successors.learn(verification.rows, verification.logits, self.known)
        self.known = None
