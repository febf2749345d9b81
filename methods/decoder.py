"""The one decoding loop: prefill, then draft, verify and accept until the sequence ends."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.draft import Draft
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.sampling import Acceptance, greedy, speculative


@dataclass(frozen=True)
class Prefill:
    """What a method may use of the prompt's pass."""

    tapped: Tensor  # [n, hidden] states of the prompt after the method's tap layer
    final: Tensor  # [1, hidden] state of the last prompt token after the final norm
    cache: KVCache  # the target's, for methods that draft with the target's own first layers


@dataclass(frozen=True)
class Verification:
    """What a method may learn from one target pass over [pending, candidates, extra rows]."""

    path: tuple[int, ...]  # accepted rows, the pending token's row 0 first
    tokens: tuple[int, ...]  # the tokens they emit: accepted candidates and the bonus token
    final: Tensor  # [rows, hidden] states after the final norm
    predicted: Tensor  # [rows] the target's argmax after each row


@dataclass(frozen=True)
class Step:
    """One target pass after prefill."""

    drafted: int  # candidates verified
    emitted: int  # accepted candidates + 1, less what lay beyond the end of the sequence


@dataclass(frozen=True)
class Generation:
    """One generated sequence: the first token comes from prefill, so len(tokens) = 1 + sum of emitted."""

    tokens: tuple[int, ...]
    steps: tuple[Step, ...]
    stop: str  # "eos", "length" (max_new_tokens) or "context"


class Method(Protocol):
    """A way of drafting. The decoder asks nothing else of it."""

    tap_layer: int  # layers of the target whose states the method takes (0: the embeddings)
    max_rows: int  # most rows of one target pass: pending token, candidates and extra rows
    extra_parameters: int  # parameters beyond the target's

    def start(self, prompt: Tensor, prefill: Prefill) -> None:
        """Forget everything and begin a sequence with prompt [n]."""

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Candidates after `tokens`, whose last is pending; `room` is the deepest candidate the context can hold."""

    def observe(self, verification: Verification) -> None:
        """Take in the outcome of a pass; not called for the last pass of a sequence."""


class Phases(Protocol):
    """Where time is taken. bench passes one that has a clock; decoding itself has none."""

    def prefill(self) -> AbstractContextManager[None]: ...
    def draft(self) -> AbstractContextManager[None]: ...
    def verify(self) -> AbstractContextManager[None]: ...


class NoPhases:
    """Phases that measure nothing."""

    _nothing = nullcontext()

    def prefill(self) -> AbstractContextManager[None]:
        return self._nothing

    draft = verify = prefill


class Decoder:
    """Generates with one model and one method; the tokens are vanilla's, whatever the method.

    context: most tokens of prompt and output together, at most and by default the model's. temperature 0 is greedy;
    above it, `seed` starts the random numbers of every sequence anew. Raises UserError for values out of range.
    """

    def __init__(
        self, model: Llama, method: Method, *, context: int | None = None, temperature: float = 0.0, seed: int = 0
    ) -> None:
        self.context = model.config.context if context is None else context
        if not 2 <= self.context <= model.config.context:
            raise UserError(f"context={context}: must be between 2 and the model's {model.config.context}")
        if temperature < 0:
            raise UserError(f"temperature={temperature}: must be 0 (greedy) or above")
        self.model, self.method, self.temperature, self.seed = model, method, temperature, seed
        # A pass may hold more rows than the sequence has places left: the branches of a tree share positions.
        self.cache = model.new_cache(self.context + method.max_rows)
        self.positions = torch.arange(self.context, device=model.device)

    def generate(self, prompt: Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
        """Decode prompt [n] (int64, on the model's device) until EOS, max_new_tokens or a full context.

        Raises UserError when the prompt is empty or fills the context, NonFiniteLogits when no token can be chosen.
        """
        phases = phases or NoPhases()
        length = len(prompt)
        limit = min(max_new_tokens, self.context - length)
        if length == 0 or limit < 1:
            raise UserError(f"prompt of {length} tokens: must be 1 to {self.context - 1} to leave room in the context")
        self.random = torch.Generator().manual_seed(self.seed)
        with torch.inference_mode():
            with phases.prefill():
                first = self._prefill(prompt)
            tokens = [*prompt.tolist(), *self._cut(first, limit)]
            steps: list[Step] = []
            while not self._ended(tokens, length, limit):
                with phases.draft():
                    draft = self.method.propose(tokens, self.context - len(tokens))
                with phases.verify():
                    verification = self._verify(draft, tokens)
                emitted = self._cut(verification.tokens, length + limit - len(tokens))
                tokens.extend(emitted)
                steps.append(Step(drafted=draft.tree.size, emitted=len(emitted)))
                if not self._ended(tokens, length, limit):
                    with phases.draft():
                        self.method.observe(verification)
        stop = "eos" if tokens[-1] in self.model.config.eos_token_ids else "length"
        if stop == "length" and len(tokens) - length < max_new_tokens:
            stop = "context"
        return Generation(tokens=tuple(tokens[length:]), steps=tuple(steps), stop=stop)

    def _prefill(self, prompt: Tensor) -> tuple[int, ...]:
        """Run the prompt and return the first token."""
        model, tap, positions = self.model, self.method.tap_layer, self.positions[: len(prompt)]
        self.cache.reset()
        tapped = model.run(model.embed(prompt), positions, self.cache, slice(0, tap))
        final = model.norm(model.run(tapped, positions, self.cache, slice(tap, None))[-1:])
        logits = model.lm_head(final)
        self.method.start(prompt, Prefill(tapped=tapped, final=final, cache=self.cache))
        return self._accept(logits, logits.argmax(-1), Draft.empty(model.device)).tokens

    def _verify(self, draft: Draft, tokens: list[int]) -> Verification:
        """One target pass over [pending, candidates, extra rows]; the cache keeps what is accepted."""
        model, base, rows = self.model, len(tokens) - 1, draft.tree.size + 1
        if draft.tree.is_chain and draft.extra is None:
            positions, mask = self.positions[base : base + rows], None
        else:
            positions, mask = self._layout(draft, base)
        if draft.hidden is None:
            pending = torch.full((1,), tokens[-1], device=model.device)
            extra = () if draft.extra is None else (draft.extra.tokens,)
            hidden, first = model.embed(torch.cat((pending, draft.tokens, *extra))), 0
        else:
            hidden, first = draft.hidden, self.method.tap_layer
        final = model.norm(model.run(hidden, positions, self.cache, slice(first, None), mask))
        logits = model.lm_head(final)
        predicted = logits.argmax(-1)
        accepted = self._accept(logits[:rows], predicted[:rows], draft)
        self.cache.keep(base, accepted.path)
        return Verification(path=accepted.path, tokens=accepted.tokens, final=final, predicted=predicted)

    def _layout(self, draft: Draft, base: int) -> tuple[Tensor, Tensor]:
        """Positions [rows] and mask [rows, base + rows] of a pass that is not a plain chain."""
        offsets, extra = draft.tree.depths, draft.extra
        candidates = len(offsets)
        rows = candidates + (0 if extra is None else len(extra.tokens))
        mask = torch.ones(rows, base + rows, dtype=torch.bool, device=self.model.device)
        mask[:candidates, base : base + candidates] = draft.tree.mask
        if extra is not None:
            offsets = torch.cat((offsets, extra.offsets))
            mask[:candidates, base + candidates :] = False
            mask[candidates:, base:] = extra.mask
        return base + offsets, mask

    def _accept(self, logits: Tensor, predicted: Tensor, draft: Draft) -> Acceptance:
        if self.temperature > 0:
            return speculative(logits, draft, self.temperature, self.random)
        return greedy(logits, predicted, draft)

    def _cut(self, tokens: tuple[int, ...], room: int) -> tuple[int, ...]:
        """What is emitted of `tokens`: up to the first EOS (included), and no more than there is room for."""
        eos = self.model.config.eos_token_ids
        end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
        return tokens[: min(end, room)]

    def _ended(self, tokens: list[int], prompt_length: int, limit: int) -> bool:
        return len(tokens) - prompt_length == limit or tokens[-1] in self.model.config.eos_token_ids
