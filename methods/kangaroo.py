"""Kangaroo: self-speculative decoding via double early exiting (Liu et al., arXiv 2404.18911).

The draft model is the target's first layers 0..exit_layer, one small attention adapter, and the target's LM head.
Drafting exits early a second time: it stops once the draft model's confidence falls below eta.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from methods.adapters import Adapter, Variant
from methods.decoder import Prefill, Verification
from methods.draft import Draft, Resumed, Tree, upload
from methods.engine.config import read_json
from methods.engine.llama import Llama, Rope
from methods.engine.unit import Rows, Unit
from methods.errors import UserError, check_sizes
from methods.files import Checkpoint

AdapterFolder = Annotated[Path, Checkpoint("a Kangaroo adapter")]


class Kangaroo:
    """Drafts a chain of at most gamma tokens with the target's first layers and the adapter (section 3.2).

    exit_layer: number of target layers in the draft model (l in the paper; 0 puts the adapter on the embeddings).
    gamma: most tokens drafted a step. eta: confidence in [0, 1] below which drafting stops; the token that fell below
    is still verified. checkpoint: folder or hub id of the adapter; variant: which of adapters.VARIANTS it is. Raises
    UserError for values out of range.
    """

    def __init__(
        self, target: Llama, *, exit_layer: int, gamma: int, eta: float, variant: Variant, checkpoint: AdapterFolder
    ) -> None:
        layers = target.config.num_layers
        check_sizes(gamma=gamma)
        if not 0 <= eta <= 1:
            raise UserError(f"method.eta={eta}: must be between 0 and 1")
        if not 0 <= exit_layer <= layers:
            raise UserError(f"method.exit_layer={exit_layer}: must be between 0 and the model's {layers} layers")
        self.target, self.gamma, self.eta, self.exit_layer = target, gamma, eta, exit_layer
        self.taps, self.max_rows = (exit_layer,), gamma + 1
        folder = Path(checkpoint)
        self.adapter = Adapter.load(folder, target, variant)
        trained = read_json(folder / "config.json").get("exit_layer", exit_layer)
        if trained != exit_layer:
            raise UserError(f"method.exit_layer={exit_layer}: the adapter in {folder} was trained for {trained}")
        self.head = self.adapter.head or target.weights.lm_head
        self.extra_parameters = sum(p.numel() for p in self.adapter.parameters())
        config = self.adapter.config
        self.rope = Rope(config, config.context, target.dtype, target.device)
        self.positions = torch.arange(config.context, device=target.device)
        self.layers = range(int(self.adapter.parts.attention)), range(exit_layer)  # of the two caches
        self.step = Unit(self._step, id(self), self.layers, "last")

    def start(self, prompt: list[int], prefill: Prefill) -> SelfDraft:
        """Run the adapter over the exit-layer states of the whole prompt."""
        return SelfDraft(self, prefill)

    def early(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Tokens [n] -> states [n, hidden] after the exit layer."""
        return self.target.layers(self.target.embed(tokens), rows, range(self.exit_layer))[0]

    def read(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits [1, draft vocab] -> the token drafted [1], and how sure the draft model is of it [1]."""
        confidence, token = torch.softmax(logits.float(), -1).max(-1)
        return token if self.adapter.vocabulary is None else self.adapter.vocabulary[token], confidence

    def _step(self, unseen: Tensor, token: Tensor, own: Rows, early: Rows) -> tuple[Tensor, ...]:
        """Token [1] behind exit-layer states that the adapter has not seen: its own [1, hidden], and what is read."""
        state = self.early(token[:1], early.only_last())
        adapted = self.adapter(own.with_last(unseen, state), self.rope, own)
        return state, *self.read(self.head(own.last(adapted)))


class SelfDraft:
    """Kangaroo's draft model on one sequence."""

    def __init__(self, method: Kangaroo, prefill: Prefill) -> None:
        self.method, self.target, self.cache = method, method.target, prefill.cache
        self.own = method.target.new_cache(prefill.cache.capacity, rows=method.max_rows, config=method.adapter.config)
        self.ahead = 0  # rows of the draft under way that the adapter has seen, the pending token's included
        (exits,) = prefill.tapped
        method.adapter(exits, method.rope, Rows.of(method.positions[: len(exits)], self.own))
        self.unseen = exits[:0]  # states of accepted tokens behind those that the adapter has seen

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Draft until the confidence falls below eta, or gamma tokens, or the context is full."""
        method, base = self.method, len(tokens) - 1
        rows, states, sure = [torch.full((1,), tokens[-1], device=self.target.device)], list[Tensor](), 1.0
        while len(states) < min(method.gamma, room) and sure >= method.eta:  # it is not if it is no number
            state, token, confidence = self._behind_unseen(rows[-1], base + len(states))
            states.append(state)
            rows.append(token)
            sure = confidence.item()
        states.append(self._early(rows[-1], method.positions[base + len(states) :][:1]))
        self.ahead = self.own.lengths[0] - base
        tree = Tree.chain(len(states) - 1, self.target.device)
        hidden = Resumed(torch.cat(states), method.exit_layer)
        return Draft(tokens=torch.cat(rows[1:]), tree=tree, hidden=hidden, doubtful=math.isnan(sure))

    def observe(self, verification: Verification) -> None:
        """Drop rejected rows from the adapter's cache; note the accepted states that it has not seen yet."""
        (exits,) = verification.tapped
        accepted = exits[upload(verification.path, self.target.device)]
        self._note(accepted[self.ahead :])
        self.own.truncate(self.own.lengths[0] - max(0, self.ahead - len(accepted)))
        self.ahead = 0

    def _note(self, states: Tensor) -> None:
        """States of accepted tokens that the adapter's next pass takes along; without attention it needs none."""
        if self.method.adapter.parts.attention:
            self.unseen = torch.cat((self.unseen, states))

    def _behind_unseen(self, token: Tensor, place: int) -> tuple[Tensor, ...]:
        """The method's step for the token [1] of a position."""
        positions = self.method.positions[place - len(self.unseen) : place + 1]
        caches, given = (self.own, self.cache), (self.unseen, token)
        self.unseen = self.unseen[:0]
        return self.target.through(self.method.step, given, positions, caches)

    def _early(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [n] -> states [n, hidden] after the exit layer; mask as `Llama.run` takes it."""
        return self.target.run(self.target.embed(tokens), positions, self.cache, slice(0, self.method.exit_layer), mask)
