"""ShareGPT conversations: checking, rendering with a chat template, and marking the assistant's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.chat import lacks_bos
from bench.texts import Messages, read, said
from methods.errors import UserError

T = TypeVar("T")
BUILT_IN = "joey"  # the generator of conversations, where a file could stand
Render = Callable[[Messages, bool], str]  # (messages, open the assistant's next turn) -> text


@dataclass(frozen=True)
class Encoded:
    """One conversation as the model reads it."""

    tokens: NDArray[np.int32]  # [n]
    assistant: NDArray[np.bool_]  # [n], True for tokens the assistant wrote, end-of-turn token included


@dataclass
class Tally:
    """What became of the conversations of a file."""

    used: int = 0
    malformed: int = 0  # left out: not a conversation
    first_malformed: str | None = None  # which, and why

    def understood(self, records: Iterable[tuple[str, Any]], read: Callable[[Messages], T]) -> Iterator[T | None]:
        """What `read` makes of each, None for one without turns; those that it refuses (ValueError) are counted."""
        for name, record in records:
            try:
                chat = messages(record)
                found = read(chat) if chat else None
            except ValueError as error:
                self.malformed += 1
                self.first_malformed = self.first_malformed or f"{name}: {error}"
            else:
                yield found


@dataclass(frozen=True)
class Corpus:
    """Encoded conversations, and what became of the others."""

    conversations: tuple[Encoded, ...]
    tally: Tally
    silent: int  # left out: no assistant token (within the length)
    truncated: int  # cut at the length, still in

    def summary(self) -> str:
        """One line for the screen."""
        tokens = sum(len(c.tokens) for c in self.conversations)
        line = f"{len(self.conversations)} conversations, {tokens} tokens, {self.truncated} truncated"
        line += f", {self.silent} without assistant tokens left out" if self.silent else ""
        malformed, first = self.tally.malformed, self.tally.first_malformed
        return line + (f", {malformed} malformed left out (first: {first})" if malformed else "")


def named_records(path: str, limit: int | None, seed: int) -> Iterator[tuple[str, Any]]:
    """At most `limit` records of a file, or of the built-in generator, with a name for each."""
    if path != BUILT_IN:
        return islice(read(Path(path)), limit)
    from bench.joey import world

    generated = world.conversations(seed=seed, count=limit or 10_000)
    return ((f"conversation {number}", record) for number, record in enumerate(generated))


def messages(record: Any) -> Messages:
    """A ShareGPT record as chat messages: [system,] user, assistant, user, assistant, ...

    An assistant turn before the first user turn and a user turn that nobody answers are dropped.
    Raises ValueError with what is wrong with the record.
    """
    if isinstance(record, ValueError):
        raise ValueError(f"not valid JSON: {record}")
    turns = record.get("conversations") if isinstance(record, dict) else record
    if not isinstance(turns, list):
        raise ValueError("no list under 'conversations'")
    found = said(turns)
    system = found[:1] if found and found[0]["role"] == "system" else []
    rest = found[len(system) :]
    rest = rest[1:] if rest and rest[0]["role"] == "assistant" else rest
    for number, message in enumerate(rest):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise ValueError(f"'{message['role']}' out of turn: user and assistant must alternate")
    return system + (rest[:-1] if len(rest) % 2 else rest)


def assistant_spans(chat: Messages, text: str, render: Render) -> list[tuple[int, int]]:
    """Character spans [start, end) of the assistant's answers in the rendered chat, without what closes a turn.

    A span starts where the prompt for that answer would end, so a leading space or an opening tag that the model
    itself writes belongs to it. Raises ValueError when the template rewrites the prompt of an earlier turn.
    """
    spans = []
    for index, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        prompt = render(chat[:index], True)
        content = message["content"].strip()
        begin = text.find(content, len(prompt))
        if not text.startswith(prompt) or begin < 0:
            raise ValueError("the chat template does not render an answer behind its own prompt")
        spans.append((len(prompt), begin + len(content)))
    return spans


def encode(chat: Messages, render: Render, tokenizer: Any, *, eos_token_ids: Iterable[int], length: int) -> Encoded:
    """Tokens of a chat, cut at `length`, with the assistant's marked.

    `tokenizer` is a fast transformers tokenizer. The end-of-sequence token behind an answer counts as the assistant's,
    and so does white space between the two. Raises ValueError as `assistant_spans` does.
    """
    text = render(chat, False)
    spans = assistant_spans(chat, text, render)
    batch = tokenizer(text, add_special_tokens=lacks_bos(tokenizer, text), return_offsets_mapping=True)
    tokens = np.asarray(batch["input_ids"], dtype=np.int32)
    offsets = np.asarray(batch["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    marked = np.zeros(len(tokens), dtype=np.bool_)
    ends = np.isin(tokens, list(eos_token_ids))
    for start, end in spans:
        inside = (offsets[:, 1] > start) & (offsets[:, 0] < end)
        marked |= inside
        if not inside.any():
            continue
        first = after = int(inside.nonzero()[0][-1]) + 1
        while after < len(tokens) and not ends[after] and not text[slice(*offsets[after])].strip():
            after += 1
        if after < len(tokens) and ends[after]:
            marked[first : after + 1] = True
    return Encoded(tokens[:length], marked[:length])


def encode_all(
    records: Iterable[tuple[str, Any]],
    render: Render,
    tokenizer: Any,
    *,
    eos_token_ids: Iterable[int],
    length: int,
    source: str,
) -> Corpus:
    """Encode every conversation that has something to learn from.

    Malformed records, also those that the chat template refuses, are counted and the first is remembered. Raises
    UserError, naming `source`, when none is left.
    """
    tally, found, silent, truncated = Tally(), list[Encoded](), 0, 0
    settings: dict[str, Any] = {"eos_token_ids": tuple(eos_token_ids), "length": length + 1}
    for encoded in tally.understood(records, lambda chat: encode(chat, render, tokenizer, **settings)):
        if encoded is None or not encoded.assistant[1:length].any():
            silent += 1
            continue
        truncated += len(encoded.tokens) > length
        found.append(Encoded(encoded.tokens[:length], encoded.assistant[:length]))
    if not found:
        reason = f"{tally.malformed} malformed (first: {tally.first_malformed}), " if tally.malformed else ""
        raise UserError(
            f"data.path={source}: no conversation to train on: {reason}{silent} without assistant tokens "
            f"in their first {length} tokens"
        )
    return Corpus(tuple(found), tally, silent, truncated)
