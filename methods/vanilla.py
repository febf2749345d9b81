"""Plain autoregressive decoding: one token per target pass, the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor

from methods.decoder import Prefill, Verification
from methods.draft import Draft
from methods.engine.llama import Llama


class Vanilla:
    """Drafts nothing, so every step emits exactly one token."""

    tap_layer = 0
    max_rows = 1
    extra_parameters = 0

    def __init__(self, target: Llama) -> None:
        self.nothing = Draft.empty(target.device)

    def start(self, prompt: Tensor, prefill: Prefill) -> None:
        """Nothing to prepare."""

    def propose(self, tokens: list[int], room: int) -> Draft:
        """No candidates."""
        return self.nothing

    def observe(self, verification: Verification) -> None:
        """Nothing to learn."""
