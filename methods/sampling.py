"""Acceptance: which path of a draft the target agrees with, and the tokens a step emits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.draft import Draft
from methods.errors import NonFiniteLogits


@dataclass(frozen=True)
class Acceptance:
    """Outcome of one verification."""

    path: tuple[int, ...]  # accepted rows, the pending token's row 0 first
    tokens: tuple[int, ...]  # emitted tokens: the accepted candidates and the bonus token
    extra: tuple[int, ...] = ()  # with extra rows: the argmax of row 0 and of each of them


def greedy(logits: Tensor, predicted: Tensor, draft: Draft) -> Acceptance:
    """Deepest path on which every candidate is the target's argmax; the argmax after it is the bonus token.

    logits [rows, vocab] of the pending token and the candidates, predicted [rows + extra rows] the argmax. Costs one
    transfer to the host, which takes along the extra rows' argmax. Raises NonFiniteLogits when a row of the path has no
    finite maximum.
    """
    tree, rows = draft.tree, len(logits)
    beside, predicted = _beside(predicted, draft), predicted[:rows]
    if tree.size == 0:
        path, emitted, length = tree.paths[0], predicted, tree.depths
    else:
        match = torch.ones_like(predicted, dtype=torch.bool)
        torch.eq(draft.tokens, predicted[tree.parents[1:]], out=match[1:])
        accepted = (match | ~tree.mask).all(1)
        length, best = (accepted * tree.depths).max(0, keepdim=True)
        path = tree.paths.index_select(0, best)[0]  # indexing with a number on the device would wait for it
        emitted = predicted[path]
    finite = logits[path, emitted].isfinite().all()
    host = torch.cat((*beside, path, emitted, length, finite[None])).tolist()
    ahead = sum(map(len, beside))
    known, host = tuple(host[:ahead]), host[ahead:]
    if not host[-1]:
        raise NonFiniteLogits("the target's logits are NaN or infinite")
    accepted_rows, width = host[-2] + 1, len(path)
    return Acceptance(path=tuple(host[:accepted_rows]), tokens=tuple(host[width : width + accepted_rows]), extra=known)


def _beside(predicted: Tensor, draft: Draft) -> tuple[Tensor, ...]:
    """The argmax of row 0 and of the extra rows, where there are any."""
    return () if draft.extra is None else (predicted[:1], predicted[draft.tree.size + 1 :])


def speculative(
    logits: Tensor, predicted: Tensor, draft: Draft, temperature: float, generator: torch.Generator
) -> Acceptance:
    """Lossless sampling: emitted tokens are distributed as the target's softmax(logits / temperature).

    A candidate proposed with certainty has draft probability 1, so speculative sampling (Leviathan et al., arXiv
    2211.17192, section 2.3) accepts it with the target's probability p and otherwise removes it from p. Siblings are
    tried in turn against what is left (SpecInfer, arXiv 2305.09781, section 4.3). Raises NonFiniteLogits.
    """
    if not logits.isfinite().all():
        raise NonFiniteLogits("the target's logits are NaN or infinite")
    probabilities = torch.softmax(logits.float() / temperature, -1).cpu()
    tokens, parents = draft.tokens.tolist(), draft.tree.parents.tolist()
    known = tuple(token for part in _beside(predicted, draft) for token in part.tolist())
    path, emitted = [0], []
    while True:
        left = probabilities[path[-1]].clone()
        accepted = None
        for row in (r for r in range(path[-1] + 1, len(parents)) if parents[r] == path[-1]):
            token = tokens[row - 1]
            if torch.rand((), generator=generator) * left.sum() < left[token]:
                accepted = row
                break
            left[token] = 0
        if accepted is None:
            emitted.append(int(torch.multinomial(left, 1, generator=generator)))
            return Acceptance(path=tuple(path), tokens=tuple(emitted), extra=known)
        path.append(accepted)
        emitted.append(tokens[accepted - 1])
