"""Cross-entropy of a draft head against the target, chunk by chunk.

A pair of [positions, vocab] logits is the largest thing training would hold, at 2048 x 32000 half a gigabyte in float32
and several times that with what autograd keeps. Here logits exist for one chunk of positions at a time: the gradient of
a cross-entropy is its own softmax minus the target's, so it is taken on the spot and nothing is kept or computed twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def as_is(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast for weights that are in half precision already: it would copy all of them at every pass."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Sums:
    """Sums over the positions of a row; means are taken over an optimiser step. Scalars on the device."""

    loss: Tensor  # cross-entropy in nats, differentiable
    agree: Tensor  # positions where draft and target have the same top token
    overlap: Tensor  # sum of min(p, q): the expected number of accepted tokens under speculative sampling
    positions: Tensor

    def detached(self) -> Tensor:
        """[4] float64: loss, agree, overlap, positions."""
        return torch.stack([t.detach().double() for t in vars(self).values()])


def cross_entropy(
    states: Tensor,
    head: Tensor,
    target_states: Tensor,
    target_head: Tensor,
    *,
    labels: Tensor | None = None,
    vocabulary: Tensor | None = None,
    chunk: int,
) -> Sums:
    """Cross-entropy of softmax(states @ head.T) against the target's distribution, or against labels.

    states, target_states [n, hidden] (normalised, ready for the head); head [draft vocab, hidden]; target_head [vocab,
    hidden]; labels [n] int64 or None: the loss is -sum p log q with p = softmax(target_states @ target_head.T).
    vocabulary [draft vocab] int64: the target's id of each row of head; None: the two are alike. Then p is renormalised
    over it, and the loss is 0 where the label, or the target's top token, is not in it (EAGLE-3's training, Li et al.,
    arXiv 2503.01840). Gradients flow to states and head where they require them, never to the target. At most `chunk`
    rows of logits exist at a time.
    """
    if not torch.is_grad_enabled():
        states, head = states.detach(), head.detach()  # else the function below would compute gradients for nobody
    loss, counts = _ChunkedCrossEntropy.apply(states, head, target_states, target_head, labels, vocabulary, chunk)
    return Sums(loss, counts[0], counts[1], torch.tensor(float(len(states)), device=states.device))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Tensor,
        target_states: Tensor,
        target_head: Tensor,
        labels: Tensor | None,
        vocabulary: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        states_grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        head_grad = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), device=states.device)
        counts = torch.zeros(2, device=states.device)
        row_of = None if vocabulary is None else _rows_of(vocabulary, len(target_head))
        for start in range(0, len(states), chunk):
            rows = slice(start, start + chunk)
            with as_is(target_head.dtype, states.device):
                wanted = F.linear(target_states[rows], target_head).float().softmax(-1)
            top, label = wanted.argmax(-1), None if labels is None else labels[rows]
            known = mass = torch.ones_like(
                wanted[:, :1]
            )  # whether a loss is taken; the target's share of the vocabulary
            if row_of is not None:
                top, label = row_of[top], None if label is None else row_of[label]
                known = ((top if label is None else label) >= 0)[:, None].float()
                wanted = wanted[:, vocabulary]
                mass = wanted.sum(-1, keepdim=True)
            with as_is(head.dtype, states.device):
                logits = F.linear(states[rows].to(head.dtype), head).float()
            log_total = logits.logsumexp(-1, keepdim=True)
            counts[0] += (logits.argmax(-1) == top).sum()
            if label is None:
                said = torch.linalg.vecdot(wanted, logits)[:, None] / mass
            else:
                label = label.clamp(min=0)[:, None]
                said = logits.gather(1, label)
            loss += ((log_total - said) * known).sum()
            drafted = logits.sub_(log_total).exp_()
            counts[1] += torch.minimum(drafted, wanted).sum()
            if states_grad is None and head_grad is None:
                continue
            if label is None:
                slope = drafted.sub_(wanted if row_of is None else wanted / mass)
            else:
                slope = drafted.scatter_add_(1, label, -torch.ones_like(drafted[:, :1]))
            slope = (slope if row_of is None else slope.mul_(known)).to(head.dtype)
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
        return scaled[0], scaled[1], None, None, None, None, None


def _rows_of(vocabulary: Tensor, size: int) -> Tensor:
    """[size]: where each of the target's tokens stands in vocabulary [draft vocab]; -1: nowhere."""
    rows = vocabulary.new_full((size,), -1)
    rows[vocabulary] = torch.arange(len(vocabulary), device=rows.device)
    return rows
