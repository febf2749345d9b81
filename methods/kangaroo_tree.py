"""Kangaroo with a dynamic tree: EAGLE-2's beam (methods.beam) grown by Kangaroo's self-draft model.

Liu et al. (arXiv 2404.18911) report tree decoding with ten nodes a level and eta = 0.4, and have published no code of
it. Stopping rule, number of nodes and levels are our reading: a level is the last when the confidence of its best node,
by itself, is below eta, so that with one node a level this is Kangaroo's chain.

Unlike EAGLE-2's tree this one waits for the device at every level, as the rule asks for its confidence. The same read
says how many of the nodes kept have been run: all that the host needs to know of the tree's shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.adapters import Variant
from methods.beam import Beam, Level, expand
from methods.decoder import Prefill, Verification
from methods.draft import Draft, Resumed, Tree, upload
from methods.engine.llama import Llama
from methods.engine.unit import Rows, Unit
from methods.errors import check_sizes
from methods.kangaroo import AdapterFolder, Kangaroo, SelfDraft


class KangarooTree(Kangaroo):
    """Drafts a tree of the `nodes` - 1 best of all candidates; gamma: most levels.

    width: nodes of a level that go on, and children of each. nodes: rows of the target pass, the pending token's
    included. The rest as in Kangaroo. Raises UserError for values out of range.
    """

    def __init__(
        self,
        target: Llama,
        *,
        exit_layer: int,
        gamma: int,
        eta: float,
        variant: Variant,
        checkpoint: AdapterFolder,
        width: int,
        nodes: int,
    ) -> None:
        check_sizes(width=width)
        check_sizes(2, nodes=nodes)
        super().__init__(target, exit_layer=exit_layer, gamma=gamma, eta=eta, variant=variant, checkpoint=checkpoint)
        self.width, self.nodes = width, nodes
        self.level = Unit(self._level, (id(self), "level"), self.layers, "whole")
        # The first layers hold every node that was run before the best are chosen: the cache needs places for them.
        self.max_rows = max(nodes, 1 + width * (gamma - 1))

    def start(self, prompt: list[int], prefill: Prefill) -> TreeDraft:
        """Run the adapter over the exit-layer states of the whole prompt."""
        return TreeDraft(self, prefill)

    def read(self, logits: Tensor, scores: Tensor | None = None) -> Level:
        """Logits [f, draft vocab] behind nodes of these scores [f] -> their children."""
        return expand(logits, scores, self.width, self.adapter.vocabulary)

    def _level(self, tokens: Tensor, scores: Tensor, own: Rows, early: Rows) -> tuple[Tensor, ...]:
        """Nodes [f] and their scores -> their states after the exit layer [f, hidden], and their children."""
        states = self.early(tokens, early)
        return states, *self.read(self.head(self.adapter(states, self.rope, own)), scores)


class TreeDraft(SelfDraft):
    """The same draft model on one sequence, a level of the tree at a time."""

    method: KangarooTree

    def __init__(self, method: KangarooTree, prefill: Prefill) -> None:
        super().__init__(method, prefill)
        self.rows = method.positions[:0]  # [1 + held] where the adapter has the draft's first rows, behind the base

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Grow levels until the best node's confidence is below eta, or gamma of them, or the context is full."""
        method, base = self.method, len(tokens) - 1
        first, *level = self._behind_unseen(torch.full((1,), tokens[-1], device=self.target.device), base)
        beam = Beam(Level(*level))
        exits, ran = [first], beam.frontier[:0]
        while True:
            kept = beam.kept(method.nodes - 1)
            rows = passes(kept, ran, beam.size)
            held = (rows <= len(ran)).sum()
            sure, count = torch.stack((beam.level.certainty[0].exp(), held.float())).tolist()  # the host waits
            if not sure >= method.eta or beam.levels == min(method.gamma, room):  # nor if it is no number
                break
            ran = torch.cat((ran, beam.frontier))
            positions = torch.full((len(beam.frontier),), base + beam.levels, device=first.device)
            mask = torch.cat((beam.sees.new_ones(len(beam.frontier), base + 1), beam.sees), 1)
            inputs, caches = (beam.level.tokens, beam.level.scores), (self.own, self.cache)
            states, *level = self.target.through(method.level, inputs, positions, caches, mask)
            exits.append(states)
            beam.grow(Level(*level))
        self.base = base
        rows, order = rows.sort(stable=True)
        self.rows = torch.cat((rows.new_zeros(1), rows[: int(count)]))
        return self._packed(beam, kept[order], torch.cat(exits), math.isnan(sure))

    def _packed(self, beam: Beam, numbers: Tensor, exits: Tensor, doubtful: bool) -> Draft:
        """Candidates [n], those that were run first: their rows of the first layers move together.

        exits [1 + r, hidden]: states of the pending token and of all that were run. The other candidates, which have
        no children, run the first layers now.
        """
        method, base = self.method, self.base
        drafted, parents = beam.chosen(numbers)
        chain = method.width == 1
        tree = Tree.chain(len(drafted), exits.device) if chain else Tree.on_device(parents, beam.levels)
        self.cache.keep_rows(base, self.rows, method.layers[1])
        states = [exits[self.rows]]
        if late := len(drafted) + 1 - len(self.rows):
            seen = tree.mask[-late:]
            mask = torch.cat((seen.new_ones(late, base), seen), 1)
            states.append(self._early(drafted[-late:], base + tree.depths[-late:], mask))
        hidden = Resumed(torch.cat(states), method.exit_layer)
        return Draft(tokens=drafted, tree=tree, hidden=hidden, doubtful=doubtful)

    def observe(self, verification: Verification) -> None:
        """Keep the accepted rows that the adapter has run; note the accepted states that it has not."""
        (exits,) = verification.tapped
        path = upload(verification.path, self.target.device)
        known = sum(place < len(self.rows) for place in verification.path)  # a path ascends
        if known:  # else another method drafted
            self.own.keep_rows(self.base, self.rows[path[:known]], self.method.layers[0])
        self._note(exits[path[known:]])
        self.rows = self.rows[:0]


def passes(kept: Tensor, ran: Tensor, size: int) -> Tensor:
    """Candidates [n] of `size` -> the row of the draft's passes that each was run in, 1 + r for those that were not.

    ran [r]: candidates in the order of the passes, of which the first row is the pending token's.
    """
    rows = torch.full((size,), len(ran) + 1, device=ran.device)
    rows[ran] = torch.arange(1, len(ran) + 1, device=ran.device)
    return rows[kept]
