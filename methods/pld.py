"""Prompt lookup decoding (Saxena, 2023): the draft is what followed the same tokens earlier in the context.

No paper; the code is in the repository apoorvumang/prompt-lookup-decoding, and with other choices in Spec-Bench's and
in transformers. Nothing is trained and no model is run.
"""

from __future__ import annotations

from typing import Literal

from methods.decoder import Prefill, Verification
from methods.draft import Draft, Tree, upload
from methods.engine.llama import Llama
from methods.errors import check_sizes


class PromptLookup:
    """Drafts the chain of `length` tokens that followed the last `max_ngram` tokens elsewhere, or fewer of them.

    The longest n-gram that is found decides, down to single tokens. match: its first or its last occurrence that has a
    continuation. partial: whether a continuation that the context's end cuts short will do; otherwise only a full one
    counts. first without partial drafts what Spec-Bench's code does, but for its dummy token where nothing is found.
    Raises UserError for values out of range.
    """

    taps: tuple[int, ...] = ()
    extra_parameters = 0

    def __init__(
        self, target: Llama, *, max_ngram: int, length: int, match: Literal["first", "last"], partial: bool
    ) -> None:
        check_sizes(max_ngram=max_ngram, length=length)
        self.device, self.max_ngram, self.length = target.device, max_ngram, length
        self.first = match == "first"
        self.least = 1 if partial else length  # tokens that must stand behind an occurrence,
        # and how many more by its size: Spec-Bench's code wants a continuation to begin before the last n-gram does.
        self.more = {size: 0 if partial else max(0, size + 1 - length) for size in range(1, max_ngram + 1)}
        self.max_rows = length + 1

    def start(self, prompt: list[int], prefill: Prefill) -> NGrams:
        """Take in the prompt's n-grams."""
        return NGrams(self, prompt)


class NGrams:
    """Where each n-gram of one sequence ends, as far as its continuation is long enough to be drafted.

    An n-gram is entered when enough tokens stand behind it, so what is found is a draft, and each step enters only as
    many as there are new tokens: nothing is searched.
    """

    def __init__(self, method: PromptLookup, prompt: list[int]) -> None:
        self.method = method
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram -> place behind its first or last occurrence
        self.entered = 1  # n-grams that end before this place, or `more` before it, are in
        self._enter(prompt)

    def propose(self, tokens: list[int], room: int) -> Draft:
        """What followed the longest n-gram that is found, or nothing."""
        method = self.method
        self._enter(tokens)
        for size in range(min(method.max_ngram, len(tokens)), 0, -1):
            end = self.ends.get(tuple(tokens[-size:]))
            if end is not None:
                found = tokens[end : end + min(method.length, room)]
                return Draft(tokens=upload(found, method.device), tree=Tree.chain(len(found), method.device))
        return Draft.empty(method.device)

    def observe(self, verification: Verification) -> None:
        """Nothing to learn: the accepted tokens come with the next call."""

    def _enter(self, tokens: list[int]) -> None:
        ends = self.ends
        for last in range(self.entered, len(tokens) - self.method.least + 1):
            for size, more in self.method.more.items():
                end = last - more
                if end < size:
                    break
                ngram = tuple(tokens[end - size : end])
                if self.method.first:
                    ends.setdefault(ngram, end)
                else:
                    ends[ngram] = end
        self.entered = max(self.entered, len(tokens) - self.method.least + 1)
