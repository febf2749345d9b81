"""Speculative decoding with a small model (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

A model of the target's vocabulary, a fraction of its size, drafts a chain; it has a cache of its own. Above temperature
0 it draws each token with the target's noise of that position: the more alike the two distributions, the likelier both
say the same (methods.sampling). The schedules are those of transformers' assisted generation, whose version 4.37 is
what Spec-Bench's leaderboard runs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import Draft, Tree, upload
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama
from methods.engine.unit import Rows, Unit
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError
from methods.files import Checkpoint


class SmallModel:
    """Drafts with `drafter`: folder or hub id of any model that the engine runs and that has the target's tokenizer.

    gamma: tokens drafted a step. schedule: heuristic begins every sequence with gamma, adds 2 after a step that
    accepted the whole draft and takes 1 away after any other, between 1 and max_gamma; constant leaves it; confidence
    leaves it too, but stops behind a token whose probability is below `threshold`, and waits for each token to know.
    The others wait for nothing. A draft is not cut at the drafter's EOS: what stands behind it is never emitted, and a
    step that accepts it is the last. Raises UserError for values out of range and a drafter that does not fit.
    """

    taps: tuple[int, ...] = ()

    def __init__(
        self,
        target: Llama,
        *,
        drafter: Annotated[Path, Checkpoint("a small model with the target's tokenizer")],
        gamma: int,
        schedule: Literal["heuristic", "constant", "confidence"],
        threshold: float,
        max_gamma: int,
    ) -> None:
        if not 1 <= gamma <= max_gamma:
            raise UserError(f"method.gamma={gamma}: must be between 1 and method.max_gamma={max_gamma}")
        if not 0 <= threshold <= 1:
            raise UserError(f"method.threshold={threshold}: must be between 0 and 1")
        self.vocab_size, self.gamma, self.schedule = target.config.vocab_size, gamma, schedule
        self.threshold, self.max_gamma = threshold, max_gamma
        self.max_rows = 1 + (max_gamma if schedule == "heuristic" else gamma)
        self.drafter = _load(Path(drafter), target)
        self.extra_parameters = sum(tensor.numel() for tensor in self.drafter.weights.tensors())
        self.step = Unit(self._step, id(self), (range(self.drafter.config.num_layers),), "last")

    def start(self, prompt: list[int], prefill: Prefill) -> Assistant:
        """Run the drafter over the prompt."""
        return Assistant(self, prompt, prefill)

    def embed(self, tokens: Tensor) -> Tensor:
        """As the drafter does; the target may be padded further, and have said a token of its own."""
        known = self.drafter.config.vocab_size
        return self.drafter.embed(tokens.clamp(max=known - 1) if known < self.vocab_size else tokens)

    def _step(self, tokens: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        """Tokens [n] -> logits [1, vocab] behind the last, of tokens that the target knows; their best; how sure."""
        (states,) = self.drafter.layers(self.embed(tokens), rows, self.step.layers[0])
        logits = self.drafter.head(rows.last(states))[:, : self.vocab_size]
        if self.schedule != "confidence":
            return logits, logits.argmax(-1)
        confidence, token = torch.softmax(logits.float(), -1).max(-1)
        return logits, token, confidence


def _load(folder: Path, target: Llama) -> Llama:
    """The drafter in the target's dtype and on its device, with rotary positions for the target's whole context."""
    if target.folder is None:
        raise UserError(f"method.drafter={folder}: the target has no folder whose tokenizer could be compared")
    theirs, own = Vocabulary.read(folder), Vocabulary.read(target.folder)
    if theirs != own:
        raise UserError(f"method.drafter={folder}: has another tokenizer ({theirs}), {target.folder} has {own}")
    loaded = load_model(folder, dtype=str(target.dtype).removeprefix("torch."), device=target.device)
    context = max(loaded.config.context, target.config.context)
    drafter = target.alike(replace(loaded.config, context=context), loaded.weights, folder)
    if target.packed:
        drafter.pack()
    return drafter


class Assistant:
    """The drafter on one sequence. Its cache holds a beginning of the accepted tokens, never the pending one."""

    def __init__(self, method: SmallModel, prompt: list[int], prefill: Prefill) -> None:
        self.method, self.gamma, self.sampler = method, method.gamma, prefill.sampler
        self.cache = method.drafter.new_cache(prefill.cache.capacity, rows=method.max_rows)
        self.drafted = 0  # by the pass under way; 0: it is another drafter's
        states = method.embed(upload(prompt, method.drafter.device))
        method.drafter.run(states, self._positions(len(prompt)), self.cache, slice(0, None))

    def propose(self, tokens: list[int], room: int) -> Draft:
        """A chain, after what the cache lacks of the tokens: the pending one, and the last if it was drafted."""
        method, device = self.method, self.method.drafter.device
        rows = upload(tokens[self.cache.lengths[0] :], device)
        drafted: list[Tensor] = []
        self.base, sure = len(tokens) - 1, 1.0
        while len(drafted) < min(self.gamma, room):
            logits, rows, *certain = method.drafter.through(
                method.step, (rows,), self._positions(len(rows)), (self.cache,)
            )
            if self.sampler.temperature:  # noise is drawn outside of the unit
                rows = self.sampler.choose(logits, len(tokens) + len(drafted))
                certain = [torch.softmax(logits.float() / self.sampler.temperature, -1)[0, rows]] if certain else []
            drafted.append(rows)
            if certain:
                sure = certain[0].item()
                if not sure >= method.threshold:  # nor if it is no number
                    break
        self.drafted = len(drafted)
        tree = Tree.chain(self.drafted, device)
        return Draft(tokens=torch.cat(drafted), tree=tree, doubtful=math.isnan(sure))

    def observe(self, verification: Verification) -> None:
        """Cut the cache to what was accepted, and set the length of the next draft."""
        if not self.drafted:
            return
        accepted = len(verification.path)
        self.cache.truncate(self.base + accepted)
        if self.method.schedule == "heuristic":
            full = accepted - 1 == self.gamma
            self.gamma = min(self.gamma + 2, self.method.max_gamma) if full else max(self.gamma - 1, 1)
        self.drafted = 0

    def _positions(self, rows: int) -> Tensor:
        """Of so many rows behind those in the cache."""
        held = self.cache.lengths[0]
        return torch.arange(held, held + rows, device=self.method.drafter.device)
