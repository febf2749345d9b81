"""The target as a writer: batches through transformers' generate, of answers and of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.chat import Chat, Message
from methods.errors import UserError

PLACEHOLDER = "PLACEHOLDER"


@dataclass(frozen=True)
class Style:
    """How tokens are chosen. temperature 0: the most likely; top_k: of how many, None: of all."""

    max_new_tokens: int
    temperature: float
    top_k: int | None = None


@dataclass(frozen=True)
class Author:
    """transformers' model of the target, and how it reads a chat."""

    model: Any
    chat: Chat
    eos_token_ids: tuple[int, ...]
    context: int

    def write(self, prompts: Sequence[Sequence[int]], style: Style, seed: int) -> list[list[int]]:
        """What follows each prompt, up to its first end-of-sequence token; side by side, with padding on the left."""
        from transformers import GenerationConfig

        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        seen = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            seen[row, longest - len(prompt) :] = 1
        sampled = {"temperature": style.temperature, "top_k": style.top_k or 0} if style.temperature else {}
        settings = GenerationConfig(
            max_new_tokens=style.max_new_tokens,
            do_sample=style.temperature > 0,
            eos_token_id=list(self.eos_token_ids),
            pad_token_id=self.eos_token_ids[0],
            cache_implementation="static",  # one that grows is copied at every step: 4 to 10 % of the time on a CPU
            disable_compile=True,
            **sampled,
        )
        torch.manual_seed(seed)
        device = self.model.device
        with torch.inference_mode():
            output = self.model.generate(ids.to(device), attention_mask=seen.to(device), generation_config=settings)
        return [self._ended(row) for row in output[:, longest:].tolist()]

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether these end by themselves."""
        return tokens[-1] in self.eos_token_ids

    def draw(self, count: int, style: Style, seed: int) -> list[str | None]:
        """What users might say, sampled behind the chat template's user header; None: it had no end, or odd tokens."""
        before, closing = self.user_frame()
        header, tokenizer = self.chat.encode(before), self.chat.tokenizer
        found: list[str | None] = []
        for tokens in self.write([header] * count, style, seed):
            ended = self.ends(tokens)
            text = str(tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False))
            text, closed, _ = text.partition(closing) if closing else (text, "", "")
            odd = any(special in text for special in tokenizer.all_special_tokens)
            found.append(text.strip() if (ended or closed) and not odd and text.strip() else None)
        return found

    def user_frame(self) -> tuple[str, str]:
        """The rendered chat up to where a user's first turn begins, and the first word of what closes that turn.

        A space at the header's end is left to the user: tokenizers give it to the word behind it.
        """
        before, found, after = self.chat.render([Message("user", PLACEHOLDER)]).partition(PLACEHOLDER)
        if not found:
            raise UserError(f"model.chat_template={self.chat.given}: does not render a user's turn as it is")
        return before.rstrip(" "), next(iter(after.split()), "")

    def _ended(self, tokens: list[int]) -> list[int]:
        ends = (place for place, token in enumerate(tokens) if token in self.eos_token_ids)
        return tokens[: next(ends, len(tokens) - 1) + 1]
