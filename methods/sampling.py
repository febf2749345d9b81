"""Acceptance: which path of a draft the target agrees with, and the tokens a step emits.

Above temperature 0 the token of position t is argmax(logits / T + g), with Gumbel noise g that follows from the seed
and from t alone. Its law is softmax(logits / T) (Maddison et al., arXiv 1411.0030), and a method that is verified with
the same noise gives the tokens that vanilla samples, whatever it drafts (drafter-invariant speculative decoding, Daliri
et al., arXiv 2408.07978). So one walk does for both, and what is lossless shows token for token at any temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.digest import sha256
from methods.draft import Draft
from methods.errors import NonFiniteLogits


@dataclass(frozen=True)
class Acceptance:
    """Outcome of one verification."""

    path: tuple[int, ...]  # accepted rows, the pending token's row 0 first
    tokens: tuple[int, ...]  # emitted tokens: the accepted candidates and the bonus token
    extra: tuple[int, ...] = ()  # with extra rows: what row 0 and each of them say


def accept(logits: Tensor, predicted: Tensor, draft: Draft) -> Acceptance:
    """Deepest path on which every candidate is the target's choice; its choice after it is the bonus token.

    logits [rows, vocab] of the pending token and the candidates, predicted [rows + extra rows] what `Sampler.choose`
    makes of them. Costs one transfer to the host, which takes along what the extra rows say. Raises NonFiniteLogits
    when a row of the path has no finite maximum.
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
    """What row 0 and the extra rows say, where there are any."""
    return () if draft.extra is None else (predicted[:1], predicted[draft.tree.size + 1 :])


class Sampler:
    """How one sequence chooses its tokens: temperature 0 is greedy, above it `seed` decides the noise.

    Noise is drawn on the device, once for a position as long as it lies ahead.
    """

    def __init__(self, temperature: float, seed: int, vocab: int, device: torch.device) -> None:
        self.temperature, self.seed, self.vocab, self.device = temperature, seed, vocab, device
        self.generator = torch.Generator(device)
        self._drawn: dict[int, Tensor] = {}

    def choose(self, logits: Tensor, first: int, draft: Draft | None = None) -> Tensor:
        """The token that each row of logits [rows, vocab] says, [rows].

        first: position of the token that row 0 says; without a draft, of all rows. Extra rows say their argmax. Without
        a draft, vocab may be smaller than the target's: a drafter that says its own tokens with the same noise.
        """
        if self.temperature == 0 or draft is None or draft.extra is None:
            return self.scores(logits, first, draft).argmax(-1)
        rows = draft.tree.size + 1
        return torch.cat((self.scores(logits[:rows], first, draft).argmax(-1), logits[rows:].argmax(-1)))

    def scores(self, logits: Tensor, first: int, draft: Draft | None = None) -> Tensor:
        """What the argmax is taken of, [rows, vocab]: the logits, or logits / T + noise, as in `choose`."""
        if self.temperature == 0:
            return logits
        scaled = logits.float() / self.temperature
        if draft is None:
            return scaled + self._noise(first)[: logits.shape[-1]]
        self._drawn = {position: noise for position, noise in self._drawn.items() if position >= first}
        if draft.tree.size == 0:
            return scaled + self._noise(first)
        ahead = torch.stack([self._noise(first + depth) for depth in range(draft.tree.paths.shape[1])])
        return scaled + ahead[draft.tree.depths]

    def _noise(self, position: int) -> Tensor:
        """Standard Gumbel noise [vocab] of a position."""
        if position not in self._drawn:
            seed = int(sha256(f"{self.seed} {position}")[:15], 16)  # neighbours, too, are far apart
            self.generator.manual_seed(seed)
            waits = torch.empty(self.vocab, device=self.device).exponential_(generator=self.generator)
            self._drawn[position] = waits.log_().neg_()
        return self._drawn[position]
