"""Is an output the baseline's output? Equal, different only where the baseline itself was undecided, or wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Logits of one position computed over one row and over several differ by rounding; a first difference where the
# baseline's best two logits are closer than this is put down to it. In units of logits.
NEAR_TIE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}


@dataclass(frozen=True)
class Fidelity:
    """Verdict on one turn; position and margin (logits) of the first difference, if there is one."""

    verdict: str  # "equal", "near_tie" or "mismatch"
    position: int | None = None
    margin: float | None = None


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens or characters two sequences have in common before the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))


def compare(
    tokens: Sequence[int], baseline: Sequence[int], *, margin: Callable[[int], float], tolerance: float
) -> Fidelity:
    """Compare a method's tokens with the baseline's.

    margin(p): how far apart the baseline's best two logits are where it chose token p. A sequence that is only a
    beginning of the other differs at its end.
    """
    if list(tokens) == list(baseline):
        return Fidelity("equal")
    position = shared(tokens, baseline)
    if position >= len(baseline):
        return Fidelity("mismatch", position)
    gap = margin(position)
    return Fidelity("near_tie" if gap < tolerance else "mismatch", position, gap)
