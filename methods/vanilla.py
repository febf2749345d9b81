"""Plain autoregressive decoding: one token per target pass, the baseline of every comparison."""

from __future__ import annotations

from methods.decoder import Prefill, Verification
from methods.draft import Draft
from methods.engine.llama import Llama


class Vanilla:
    """Drafts nothing, so every step emits exactly one token. Without a state it is its own drafter."""

    taps: tuple[int, ...] = ()
    max_rows = 1
    extra_parameters = 0

    def __init__(self, target: Llama) -> None:
        self.nothing = Draft.empty(target.device)

    def start(self, prompt: list[int], prefill: Prefill) -> Vanilla:
        """Nothing to prepare."""
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        """No candidates."""
        return self.nothing

    def observe(self, verification: Verification) -> None:
        """Nothing to learn."""
