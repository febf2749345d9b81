"""Cross-entropy of a draft head against the target, chunk by chunk.

A pair of [positions, vocab] logits is the largest thing training would hold, at 2048 x 32000 half a gigabyte in float32
and several times that with what autograd keeps. Here logits exist for one chunk of positions at a time: the gradient of
a cross-entropy is its own softmax minus the target's, so it is taken on the spot and nothing is kept or computed twice.
EAGLE-3's unrolled steps come to every position several times: for them what the target says of the draft's tokens is
kept (`Target.kept`), a quarter of a gigabyte at that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.train.packing import Row
from methods.engine.llama import Llama, Taps

LEAST = torch.finfo(torch.float32).tiny  # where the draft's tokens have no share at all, there is no loss to divide


def as_is(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast for weights that are in half precision already: it would copy all of them at every pass."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, enabled=False)


@torch.no_grad()
def final_states(target: Llama, row: Row, taps: Taps | None = None) -> Tensor:
    """What a frozen target has after its final norm, [n, hidden]; taps as in `Llama.run`."""
    with as_is(target.dtype, target.device):
        return target.norm(target.run(target.embed(row.tokens), row.positions, None, slice(None), row.lengths, taps))


@dataclass(frozen=True)
class Sums:
    """Sums over the positions of a row; means are taken over an optimiser step. Scalars on the device."""

    loss: Tensor  # cross-entropy in nats, differentiable
    agree: Tensor  # positions where draft and target have the same top token
    overlap: Tensor  # sum of min(p, q): the expected number of accepted tokens under speculative sampling
    positions: Tensor

    @classmethod
    def of_parts(cls, parts: Sequence[Sums], weights: Sequence[float]) -> Sums:
        """Of heads or steps: the losses weighted and summed, the mean of all else."""
        means = [torch.stack([vars(part)[name] for part in parts]).mean(0) for name in vars(parts[0])]
        total = torch.stack([weight * part.loss for weight, part in zip(weights, parts, strict=True)]).sum()
        return replace(cls(*means), loss=total)

    def detached(self) -> Tensor:
        """[4] float64: loss, agree, overlap, positions."""
        return torch.stack([t.detach().double() for t in vars(self).values()])


@dataclass(frozen=True)
class Wanted:
    """What the target says at n positions, of the tokens that the draft has."""

    chances: Tensor  # [n, draft vocab] float32; where the draft has a part of the tokens they sum to less than 1
    top: Tensor  # [n] place of the target's best among the draft's tokens; -1: it is not one of them
    whole: bool  # the draft has all of the target's tokens

    def at(self, rows: slice | Tensor) -> Wanted:
        """The same of some positions."""
        return Wanted(self.chances[rows], self.top[rows], self.whole)


@dataclass(frozen=True)
class Picked:
    """Some of kept positions, [n] int64; they are copied chunk by chunk."""

    kept: Wanted
    positions: Tensor

    def at(self, rows: slice) -> Wanted:
        """The same of some of them."""
        return self.kept.at(self.positions[rows])


@dataclass(frozen=True)
class Target:
    """Where `Wanted` comes from: states [n, hidden] (normalised), head [vocab, hidden], and the draft's tokens.

    vocabulary [draft vocab] int64: the target's id of each of them; None: the two are alike.
    """

    states: Tensor
    head: Tensor
    vocabulary: Tensor | None = None

    def at(self, rows: slice) -> Wanted:
        """Computed at every call, so that nothing is held but these rows."""
        with as_is(self.head.dtype, self.states.device):
            chances = F.linear(self.states[rows], self.head).float().softmax(-1)
        top = chances.argmax(-1)
        if self.vocabulary is None:
            return Wanted(chances, top, True)
        return Wanted(chances[:, self.vocabulary], self.places(top), False)

    def places(self, tokens: Tensor) -> Tensor:
        """Tokens [n] of the target -> their places among the draft's, -1 for those that it has not."""
        if self.vocabulary is None:
            return tokens
        places = self.vocabulary.new_full((len(self.head),), -1)
        places[self.vocabulary] = torch.arange(len(self.vocabulary), device=places.device)
        return places[tokens]

    @torch.no_grad()
    def kept(self, chunk: int) -> Wanted:
        """Of all positions, for a loss that comes to each several times: [n, draft vocab] in float32 stay."""
        count, size = len(self.states), len(self.head) if self.vocabulary is None else len(self.vocabulary)
        chances = self.states.new_empty((count, size), dtype=torch.float32)
        top = torch.empty(count, dtype=torch.int64, device=self.states.device)
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            said = self.at(rows)
            chances[rows], top[rows] = said.chances, said.top
        return Wanted(chances, top, self.vocabulary is None)


def cross_entropy(
    states: Tensor, head: Tensor, target: Target | Picked, *, labels: Tensor | None = None, chunk: int
) -> Sums:
    """Cross-entropy of softmax(states @ head.T) against the target's distribution, or against labels.

    states [n, hidden] (normalised, ready for the head); head [draft vocab, hidden]; labels [n] int64, places among the
    draft's tokens, or None: the loss is -sum p log q with the target's p. Where the draft has a part of the target's
    tokens, p is renormalised over it, and the loss is 0 where the label, or the target's top token, is not in it
    (EAGLE-3's training, Li et al., arXiv 2503.01840). Gradients flow to states and head where they require them, never
    to the target. At most `chunk` rows of logits exist at a time.
    """
    if not torch.is_grad_enabled():
        states, head = states.detach(), head.detach()  # else the function below would compute gradients for nobody
    loss, counts = _ChunkedCrossEntropy.apply(states, head, target, labels, chunk)
    return Sums(loss, counts[0], counts[1], torch.tensor(float(len(states)), device=states.device))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, target: Target | Picked, labels: Tensor | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        states_grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        head_grad = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), device=states.device)
        counts = torch.zeros(2, device=states.device)
        for start in range(0, len(states), chunk):
            rows = slice(start, start + chunk)
            wanted = target.at(rows)
            chances, top = wanted.chances, wanted.top
            label = None if labels is None else labels[rows]
            with as_is(head.dtype, states.device):
                logits = F.linear(states[rows].to(head.dtype), head).float()
            log_total = logits.logsumexp(-1, keepdim=True)
            counts[0] += (logits.argmax(-1) == top).sum()
            # whether a loss is taken, and the share of the target's distribution that the draft's tokens have
            known = ((top if label is None else label) >= 0)[:, None].float()
            mass = known.new_ones(known.shape) if wanted.whole else chances.sum(-1, keepdim=True).clamp(min=LEAST)
            if label is None:
                said = torch.linalg.vecdot(chances, logits)[:, None] / mass
            else:
                label = label.clamp(min=0)[:, None]
                said = logits.gather(1, label)
            loss += ((log_total - said) * known).sum()
            drafted = logits.sub_(log_total).exp_()
            counts[1] += torch.minimum(drafted, chances).sum()
            if states_grad is None and head_grad is None:
                continue
            if label is None:
                slope = drafted.sub_(chances if wanted.whole else chances / mass)
            else:
                slope = drafted.scatter_add_(1, label, -torch.ones_like(drafted[:, :1]))
            slope = (slope if wanted.whole else slope.mul_(known)).to(head.dtype)
            with as_is(head.dtype, states.device):
                if states_grad is not None:
                    states_grad[rows] = slope @ head
                if head_grad is not None:
                    head_grad += slope.t() @ states[rows].to(head.dtype)
        ctx.save_for_backward(states_grad, head_grad)
        ctx.mark_non_differentiable(counts)
        return loss, counts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states_grad, head_grad = ctx.saved_tensors
        scale = grads[0]
        scaled = [None if g is None else g.mul_(scale) for g in (states_grad, head_grad)]
        return scaled[0], scaled[1], None, None, None
