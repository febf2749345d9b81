"""EAGLE-2: the draft model's own confidence shapes the tree (Li et al., arXiv 2406.16858, section 4).

A node's score is the sum of the log-probabilities on its path. Level by level the best nodes go on; the best of all
are verified. Any DraftModel drafts so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from methods.beam import Beam, Level, expand
from methods.decoder import Prefill
from methods.draft import Draft, Tree
from methods.eagle import EagleModel
from methods.engine.llama import Llama
from methods.errors import MOST, UserError, check_sizes
from methods.files import Checkpoint
from methods.follower import DraftModel, Follower, reading


class DynamicMethod:
    """Drafts with a model that is there already; methods differ in how they load it.

    tree: dynamic, or chain (the best child each time, depth + 1 of them). top_k: nodes of a level that go on, and
    children of each. depth: levels behind the first. nodes: rows of a target pass, the pending token's included. Raises
    UserError for values out of range.
    """

    def __init__(
        self, model: DraftModel, *, tree: Literal["dynamic", "chain"], top_k: int, depth: int, nodes: int
    ) -> None:
        check_sizes(top_k=top_k)
        check_sizes(0, depth=depth)
        check_sizes(2, nodes=nodes)
        if top_k * depth > MOST:
            raise UserError(f"method.top_k={top_k}, method.depth={depth}: must be at most {MOST} nodes in all")
        if tree == "chain":
            top_k, nodes = 1, depth + 2
        self.model, self.top_k, self.depth, self.max_rows = model, top_k, depth, nodes
        self.taps, self.extra_parameters = model.taps, model.extra_parameters
        self.first, self.level = (reading(model, self.read, (id(self), level), level=level) for level in (False, True))

    def start(self, prompt: list[int], prefill: Prefill) -> DynamicDraft:
        """Run the draft model over the prompt."""
        return DynamicDraft(self, prompt, prefill)

    def read(self, logits: Tensor, scores: Tensor | None = None) -> Level:
        """Logits [f, draft vocab] behind nodes of these scores [f] -> their children."""
        return expand(logits, scores, self.top_k, self.model.vocabulary)


class DynamicDraft:
    """A dynamic tree over one sequence. Nothing is read by the host: a step waits for its verification alone."""

    def __init__(self, method: DynamicMethod, prompt: list[int], prefill: Prefill) -> None:
        self.method = method
        nodes, deepest = method.top_k * method.depth, method.depth + 1
        self.follower = Follower(method.model, prompt, prefill, nodes=nodes, deepest=deepest)
        self.observe = self.follower.observe

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Grow the tree by as many levels as there is room for, at most depth + 1, and keep its best nodes."""
        method, follower = self.method, self.follower
        outputs, *level = follower.catch_up(method.first, tokens)
        beam = Beam(Level(*level))
        for depth in range(1, min(method.depth + 1, room)):
            inputs = beam.level.tokens, outputs[beam.level.origin], beam.level.scores
            outputs, *level = follower.level(method.level, inputs, beam.sees, depth)
            beam.grow(Level(*level))
        follower.end_tree()
        drafted, tree = beam.rerank(method.max_rows - 1)
        chain = method.top_k == 1
        return Draft(tokens=drafted, tree=Tree.chain(len(drafted), drafted.device) if chain else tree)


class Eagle2(DynamicMethod):
    """EAGLE-1's draft model under a dynamic tree; checkpoint: its folder or hub id, the rest as DynamicMethod says."""

    def __init__(
        self,
        target: Llama,
        *,
        checkpoint: Annotated[Path, Checkpoint("an EAGLE draft model")],
        tree: Literal["dynamic", "chain"],
        top_k: int,
        depth: int,
        nodes: int,
    ) -> None:
        super().__init__(EagleModel.load(Path(checkpoint), target), tree=tree, top_k=top_k, depth=depth, nodes=nodes)
