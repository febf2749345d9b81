"""The one decoding loop: prefill, then draft, verify and accept until the sequence ends."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.draft import Draft
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama, Taps
from methods.errors import MOST, UserError
from methods.sampling import Sampler, accept


@dataclass(frozen=True)
class Prefill:
    """What a method may use of the prompt's pass."""

    tapped: tuple[Tensor, ...]  # for each of the method's taps, the prompt's states [n, hidden] before that layer
    final: Tensor  # [1, hidden] state of the last prompt token after the final norm
    cache: KVCache  # the target's, for methods that draft with the target's own first layers
    sampler: Sampler  # how the target chooses tokens, for methods that draw theirs with the same noise


@dataclass(frozen=True)
class Verification:
    """What a method may learn from one target pass over [pending, candidates, extra rows]."""

    path: tuple[int, ...]  # accepted rows, the pending token's row 0 first
    tokens: tuple[int, ...]  # the tokens they emit: accepted candidates and the bonus token
    rows: Tensor  # [rows] the tokens that went in
    tapped: tuple[Tensor, ...]  # [rows, hidden] as in Prefill, of the taps that the draft did not resume behind
    final: Tensor  # [rows, hidden] states after the final norm
    logits: Tensor  # [rows, vocab]
    predicted: Tensor  # [rows] the target's choice after each row
    extra_predicted: tuple[int, ...] = ()  # what row 0 and each extra row say, on the host


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
    doubtful: int = 0  # drafts with a confidence that is not a number: the draft's weights may be broken


class Drafter(Protocol):
    """Drafts for one sequence, and goes with it: nothing of one question can outlive it."""

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Candidates after `tokens`, whose last is pending; `room` is the deepest candidate the context can hold."""

    def observe(self, verification: Verification) -> None:
        """Take in a pass, also one that another drafter proposed; not called for the last pass of a sequence."""


class Method(Protocol):
    """A way of drafting: weights and settings. The decoder asks nothing else of it."""

    taps: tuple[int, ...]  # layers of the target before which the method wants states (0: embeddings; L: the last's)
    max_rows: int  # most rows of one target pass: pending token, candidates and extra rows
    extra_parameters: int  # parameters beyond the target's

    def start(self, prompt: list[int], prefill: Prefill) -> Drafter:
        """Begin a sequence."""


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
    above it, `seed` decides what every sequence draws (methods.sampling). Raises UserError for values out of range.
    """

    def __init__(
        self, model: Llama, method: Method, *, context: int | None = None, temperature: float = 0.0, seed: int = 0
    ) -> None:
        self.context = model.config.context if context is None else context
        if not 2 <= self.context <= model.config.context:
            raise UserError(f"context={context}: must be between 2 and the model's {model.config.context}")
        if temperature < 0:
            raise UserError(f"temperature={temperature}: must be 0 (greedy) or above")
        name, layers = type(method).__name__, model.config.num_layers
        if lacking := [part for part in ("taps", "max_rows", "extra_parameters", "start") if not hasattr(method, part)]:
            raise UserError(f"method: {name} lacks {', '.join(lacking)}")
        if method.max_rows > MOST:
            raise UserError(f"method: {name} says {method.max_rows} rows a step; must be at most {MOST}")
        if beyond := [tap for tap in method.taps if not 0 <= tap <= layers]:
            raise UserError(f"method: {name} taps layer {beyond[0]}, the model has 0 to {layers}")
        self.model, self.method, self.temperature, self.seed = model, method, temperature, seed
        self.positions = torch.arange(self.context, device=model.device)
        self.cache = self.new_cache()

    def new_cache(self) -> KVCache:
        """A cache for one sequence; a pass may hold more rows than there are places left: branches share them."""
        return self.model.new_cache(self.context + self.method.max_rows, rows=self.method.max_rows)

    def begin(
        self, prompt: Tensor, max_new_tokens: int, phases: Phases | None = None, cache: KVCache | None = None
    ) -> Sequence:
        """Prefill prompt [n] (int64, on the model's device); the sequence goes on by `step`.

        cache: from `new_cache`, for sequences that are under way side by side; by default the decoder's own, whose last
        sequence ends. Raises UserError when the prompt is empty or fills the context, NonFiniteLogits when no token can
        be chosen.
        """
        length = len(prompt)
        limit = min(max_new_tokens, self.context - length)
        if length == 0 or limit < 1:
            raise UserError(f"prompt of {length} tokens: must be 1 to {self.context - 1} to leave room in the context")
        return Sequence(self, prompt, limit, max_new_tokens, phases or NoPhases(), cache or self.cache)

    def generate(self, prompt: Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
        """Decode prompt [n] until EOS, max_new_tokens or a full context. Raises as `begin` does."""
        sequence = self.begin(prompt, max_new_tokens, phases)
        while not sequence.ended:
            sequence.step()
        return sequence.generation()


class Sequence:
    """One sequence under way: its tokens, cache, drafter and random numbers."""

    @torch.inference_mode()
    def __init__(
        self, decoder: Decoder, prompt: Tensor, limit: int, wanted: int, phases: Phases, cache: KVCache
    ) -> None:
        self.decoder, self.model, self.cache, self.phases = decoder, decoder.model, cache, phases
        self.eos = self.model.config.eos_token_ids
        vocab = self.model.config.vocab_size
        self.sampler = Sampler(decoder.temperature, decoder.seed, vocab, self.model.device)
        self.length, self.limit, self.wanted = len(prompt), limit, wanted
        self.steps: list[Step] = []
        self.doubtful = 0
        with phases.prefill():
            self.tokens, first = self._prefill(prompt)
        self.tokens += self._cut(first, limit)

    @property
    def ended(self) -> bool:
        """Whether the sequence has its last token."""
        return len(self.tokens) - self.length == self.limit or self.tokens[-1] in self.eos

    @torch.inference_mode()
    def step(self) -> None:
        """Draft, verify, accept. Raises RuntimeError when another sequence has begun in this one's cache."""
        if self.cache.sequences != self.number:
            raise RuntimeError("this sequence is over: another one has begun in its cache")
        tokens, phases = self.tokens, self.phases
        with phases.draft():
            draft = self.drafter.propose(tokens, self.decoder.context - len(tokens))
        with phases.verify():
            verification = self._verify(draft)
        emitted = self._cut(verification.tokens, self.length + self.limit - len(tokens))
        tokens.extend(emitted)
        self.steps.append(Step(drafted=draft.tree.size, emitted=len(emitted)))
        self.doubtful += draft.doubtful
        if not self.ended:
            with phases.draft():
                self.drafter.observe(verification)

    def generation(self) -> Generation:
        """What was generated so far."""
        stop = "eos" if self.tokens[-1] in self.eos else "length"
        if stop == "length" and len(self.tokens) - self.length < self.wanted:
            stop = "context"
        return Generation(tuple(self.tokens[self.length :]), tuple(self.steps), stop, self.doubtful)

    def _prefill(self, prompt: Tensor) -> tuple[list[int], tuple[int, ...]]:
        """Run the prompt; returns it as a list, and the first token."""
        model, taps = self.model, Taps(self.decoder.method.taps)
        self.cache.reset()
        self.number = self.cache.sequences
        positions = self.decoder.positions[: self.length]
        hidden = model.run(model.embed(prompt), positions, self.cache, slice(0, None), taps=taps)
        final = model.norm(hidden[-1:])
        logits = model.lm_head(final)
        tokens: list[int] = prompt.tolist()
        self.drafter = self.decoder.method.start(tokens, Prefill(taps.collected(), final, self.cache, self.sampler))
        if lacking := [part for part in ("propose", "observe") if not hasattr(self.drafter, part)]:
            raise UserError(f"method: {type(self.drafter).__name__}, its drafter, lacks {', '.join(lacking)}")
        return tokens, accept(logits, self.sampler.choose(logits, self.length), Draft.empty(model.device)).tokens

    def _verify(self, draft: Draft) -> Verification:
        """One target pass over [pending, candidates, extra rows]; the cache keeps what is accepted."""
        model, base, rows = self.model, len(self.tokens) - 1, draft.tree.size + 1
        if draft.tree.is_chain and draft.extra is None:
            positions, mask = self.decoder.positions[base : base + rows], None
        else:
            positions, mask = draft.layout(base)
        pending = torch.full((1,), self.tokens[-1], device=model.device)
        fed = torch.cat((pending, draft.tokens, *(() if draft.extra is None else (draft.extra.tokens,))))
        self._check(draft, len(fed))
        resumed = draft.hidden
        hidden, first = (model.embed(fed), 0) if resumed is None else (resumed.states, resumed.layer)
        taps = Taps(self.decoder.method.taps)
        final, logits = model.answer(hidden, positions, self.cache, first, mask, taps)
        predicted = self.sampler.choose(logits, base + 1, draft)
        accepted = accept(logits[:rows], predicted, draft)
        self.cache.keep(base, accepted.path)
        return Verification(
            path=accepted.path,
            tokens=accepted.tokens,
            rows=fed,
            tapped=taps.collected(),
            final=final,
            logits=logits,
            predicted=predicted,
            extra_predicted=accepted.extra,
        )

    def _check(self, draft: Draft, rows: int) -> None:
        """Raises AssertionError for what a drafter may not do, where the host can see it."""
        tree, room = draft.tree, self.decoder.context - len(self.tokens)
        assert len(draft.tokens) == tree.size, f"a draft of {len(draft.tokens)} tokens, and a tree of {tree.size}"
        assert rows <= self.decoder.method.max_rows, "a draft of more rows than the method said"
        assert tree.paths.shape[1] - 1 <= room, f"a draft {tree.paths.shape[1] - 1} deep, with room for {room}"
        assert draft.hidden is None or draft.extra is None, "a draft with states of its own and extra rows"

    def _cut(self, tokens: tuple[int, ...], room: int) -> tuple[int, ...]:
        """What is emitted of `tokens`: up to the first EOS (included), and no more than there is room for."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.eos), len(tokens))
        return tokens[: min(end, room)]
