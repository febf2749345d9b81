"""LayerSkip's self-speculative decoding (Elhoushi et al., arXiv 2404.16710, section 3.3): early exit, and no adapter.

The draft model is the target's first layers, its own final norm and its LM head; verification goes on from the states
that drafting left. A target that was not trained with early exits (layer dropout and a loss at every layer) drafts
little this way that it accepts itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import Draft, Resumed, Tree
from methods.engine.llama import Llama
from methods.engine.unit import Rows, Unit
from methods.errors import UserError, check_sizes


class LayerSkip:
    """Drafts a chain of gamma tokens, each the best by the states after `exit_layer` layers, whatever its probability.

    Nothing is waited for: the tokens stay on the device. Raises UserError for values out of range.
    """

    taps: tuple[int, ...] = ()
    extra_parameters = 0

    def __init__(self, target: Llama, *, exit_layer: int, gamma: int) -> None:
        layers = target.config.num_layers
        check_sizes(gamma=gamma)
        if not 1 <= exit_layer < layers:
            raise UserError(f"method.exit_layer={exit_layer}: must be between 1 and {layers - 1} of the model's layers")
        self.target, self.exit_layer, self.gamma, self.max_rows = target, exit_layer, gamma, gamma + 1
        self.step = Unit(self._step, id(self), (range(exit_layer),), "whole")

    def start(self, prompt: list[int], prefill: Prefill) -> EarlyExit:
        """Draft on the target's own cache, which has the prompt."""
        return EarlyExit(self, prefill)

    def _step(self, token: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Token [1] -> its state after the exit layer [1, hidden], and the token that the head reads from it [1]."""
        (state,) = self.target.layers(self.target.embed(token), rows, range(self.exit_layer))
        return state, self.target.head(state).argmax(-1)


class EarlyExit:
    """The draft model on one sequence. It keeps nothing: the decoder cuts the cache to what is accepted."""

    def __init__(self, method: LayerSkip, prefill: Prefill) -> None:
        self.method, self.target, self.cache = method, method.target, prefill.cache

    def propose(self, tokens: list[int], room: int) -> Draft:
        """gamma tokens, or as many as the context has room for, with their states after the exit layer."""
        device, count = self.target.device, min(self.method.gamma, room)
        *places, last = torch.arange(len(tokens) - 1, len(tokens) + count, device=device).split(1)
        rows = [torch.full((1,), tokens[-1], device=device)]
        states: list[Tensor] = []
        for place in places:
            state, token = self.target.through(self.method.step, (rows[-1],), place, (self.cache,))
            states.append(state)
            rows.append(token)
        # The last candidate is not drafted from, but its state is verified.
        states.append(self.target.run(self.target.embed(rows[-1]), last, self.cache, slice(0, self.method.exit_layer)))
        hidden = Resumed(torch.cat(states), self.method.exit_layer)
        return Draft(tokens=torch.cat(rows[1:]), tree=Tree.chain(count, device), hidden=hidden)

    def observe(self, verification: Verification) -> None:
        """Nothing to learn."""
