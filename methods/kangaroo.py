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

from methods.adapters import Adapter
from methods.decoder import Prefill, Verification
from methods.draft import Draft, Resumed, Tree, upload
from methods.engine.config import read_json
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama, Rope
from methods.errors import UserError
from methods.files import Checkpoint


class Kangaroo:
    """Drafts a chain of at most gamma tokens with the target's first layers and the adapter (section 3.2).

    exit_layer: number of target layers in the draft model (l in the paper; 0 puts the adapter on the embeddings).
    gamma: most tokens drafted a step. eta: confidence in [0, 1] below which drafting stops; the token that fell below
    is still verified. checkpoint: folder or hub id of the adapter; variant: which of adapters.VARIANTS it is. Raises
    UserError for values out of range.
    """

    def __init__(
        self,
        target: Llama,
        *,
        exit_layer: int,
        gamma: int,
        eta: float,
        variant: str,
        checkpoint: Annotated[Path, Checkpoint("a Kangaroo adapter")],
    ) -> None:
        layers = target.config.num_layers
        if gamma < 1:
            raise UserError(f"method.gamma={gamma}: must be at least 1")
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
        self.block = self.adapter.as_block(self.rope)
        self.positions = torch.arange(config.context, device=target.device)

    def start(self, prompt: list[int], prefill: Prefill) -> SelfDraft:
        """Run the adapter over the exit-layer states of the whole prompt."""
        return SelfDraft(self, prefill)

    def new_adapter_cache(self, capacity: int) -> KVCache:
        """The adapter's own keys and values, for one sequence."""
        return self.target.new_cache(capacity, rows=self.max_rows, config=self.adapter.config)


class SelfDraft:
    """Kangaroo's draft model on one sequence."""

    def __init__(self, method: Kangaroo, prefill: Prefill) -> None:
        self.method, self.target, self.cache = method, method.target, prefill.cache
        self.adapter_cache = method.new_adapter_cache(prefill.cache.capacity)
        self.seen = self.ahead = 0  # states of the sequence that the adapter has been run on, and of the draft
        (exits,) = prefill.tapped
        self._adapt(exits)
        self.unseen = exits[:0]  # states of accepted tokens behind those

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Draft until the confidence falls below eta, or gamma tokens, or the context is full."""
        method, base = self.method, len(tokens) - 1
        states = [self._exit_state(torch.full((1,), tokens[-1], device=self.target.device), base)]
        new_rows = torch.cat((self.unseen, states[0]))
        drafted: list[Tensor] = []
        sure = 1.0
        while len(drafted) < min(method.gamma, room):
            logits = method.head(self._adapt(new_rows)[-1:])
            confidence, token = torch.softmax(logits.float(), -1).max(-1)
            if method.adapter.vocabulary is not None:
                token = method.adapter.vocabulary[token]
            drafted.append(token)
            states.append(self._exit_state(token, base + len(drafted)))
            new_rows = states[-1]
            sure = confidence.item()
            if not sure >= method.eta:  # nor if it is no number
                break
        self.unseen = states[0][:0]
        self.ahead = self.seen - base  # rows of this draft, the pending token's included, that the adapter has seen
        tree = Tree.chain(len(drafted), self.target.device)
        hidden = Resumed(torch.cat(states), method.exit_layer)
        return Draft(tokens=torch.cat(drafted), tree=tree, hidden=hidden, doubtful=math.isnan(sure))

    def observe(self, verification: Verification) -> None:
        """Drop rejected rows from the adapter's cache; note the accepted states that it has not seen yet."""
        (exits,) = verification.tapped
        accepted = exits[upload(verification.path, self.target.device)]
        self.unseen = torch.cat((self.unseen, accepted[self.ahead :]))
        self.seen -= max(0, self.ahead - len(accepted))
        self.ahead = 0
        self.adapter_cache.truncate(self.seen)

    def _exit_state(self, token: Tensor, position: int) -> Tensor:
        """State [1, hidden] of token [1] after the exit layer."""
        return self._early(token, self.method.positions[position : position + 1])

    def _early(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [n] -> states [n, hidden] after the exit layer; mask as `Llama.run` takes it."""
        return self.target.run(self.target.embed(tokens), positions, self.cache, slice(0, self.method.exit_layer), mask)

    def _adapt(self, states: Tensor) -> Tensor:
        positions = self.method.positions[self.seen : self.seen + len(states)]
        self.seen += len(states)
        return self.target.through(self.method.block, states, positions, self.adapter_cache)[0]
