"""Batches of conversations, until there are as many as asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.assembly import DEFAULT_THREADS, fitting, target_folder
from bench.binder import file_hashes
from bench.chat import Chat, Message, chat_files
from bench.digests import sha256
from bench.distill.author import Author, Style
from bench.distill.ledger import Ledger
from bench.questions.formats import asked, records
from bench.settings import Distill
from methods.engine.checkpoint import load_model
from methods.errors import UserError
from methods.hf import model_of

RUN = 13  # tokens in a row that a conversation may not share with a question
BARREN = 20  # calls of generate in a row that give nothing
Turns = list[dict[str, str]]  # ShareGPT's form


def distill(settings: Distill) -> None:
    """Write, or go on writing, the conversations. Raises UserError for anything the user can mend."""
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    folder = target_folder(settings.model)
    chat = Chat(folder, *settings.model.chat)
    forbidden = Forbidden.read(settings.exclude, chat)
    prompts = None if settings.prompts is None else _prompts(settings, chat)
    with Ledger.open(Path(settings.output).expanduser(), _content(settings, folder)) as ledger:
        wanted = settings.conversations if prompts is None else None
        waiting = prompts is None or ledger.progress.taken < len(prompts)
        if waiting and (wanted is None or ledger.progress.kept < wanted):
            writing = Writing(settings, _author(settings, folder, chat), ledger, forbidden, prompts)
            with tqdm(total=wanted or len(prompts or ()), unit="conversation", disable=None) as bar:
                for place in writing.batches():
                    bar.update(place - bar.n)
            print(f"{writing.written / writing.spent_s:.0f} tokens/s")
        print(f"{ledger.path}: {ledger.progress}")


def _author(settings: Distill, folder: Path, chat: Chat) -> Author:
    model = settings.model
    with fitting(model, folder):
        target = load_model(folder, dtype=model.dtype, device=model.device, weights=model.weights, seed=settings.seed)
        if not target.config.eos_token_ids:
            raise UserError(f"model.path={folder}: names no end-of-sequence token, so no answer would end")
        context = min(target.config.context, model.context or target.config.context)
        if context - settings.max_new_tokens < 2:
            raise UserError(f"max_new_tokens={settings.max_new_tokens}: leaves no prompt room in {context} tokens")
        return Author(model_of(target), chat, target.config.eos_token_ids, context)


def _content(settings: Distill, folder: Path) -> dict[str, Any]:
    """All that decides what is written; files by their content."""
    given = asdict(settings)
    model = {key: value for key, value in given.pop("model").items() if key not in ("path", "threads", "exit_layer")}
    named = {key: given.pop(key) for key in ("output", "threads", "prompts", "exclude")}
    files = {key: sha256(Path(named[key])) for key in ("prompts", "exclude") if named[key] is not None}
    read_as = {file.name: sha256(file) for file in chat_files(folder, settings.model.chat_template)}
    return {**given, "model": model, "files": files, "checkpoint": file_hashes(folder), "chat": read_as}


@dataclass
class Writing:
    """What a distillation does with its author, its prompts and its file."""

    settings: Distill
    author: Author
    ledger: Ledger
    forbidden: Forbidden
    prompts: list[list[str]] | None  # of a file, the user's turns of each conversation
    written: int = 0  # tokens of answers in this process, and the time they took
    spent_s: float = 1e-9
    barren: int = 0

    def batches(self) -> Iterator[int]:
        """Write batch after batch; yields conversations kept, or of a file how many prompts are done."""
        progress, settings = self.ledger.progress, self.settings
        while batch := self._next():
            conversations = self._answered(batch)
            if self.prompts is None and settings.conversations is not None:
                conversations = conversations[: settings.conversations - progress.kept]
            progress.tokens += sum(tokens for _, tokens in conversations)
            self.ledger.write([turns for turns, _ in conversations])
            self._gained(len(conversations))
            yield progress.kept if self.prompts is None else progress.taken

    def _next(self) -> list[list[str]]:
        """The prompts of the next batch; none when there is nothing left to do."""
        progress, size = self.ledger.progress, self.settings.batch
        if self.prompts is not None:
            chosen = self.prompts[progress.taken : progress.taken + size]
            progress.taken += len(chosen)
            return chosen
        if progress.kept >= (self.settings.conversations or 0):
            return []
        known = self.ledger.prompts() | set(progress.waiting)
        while len(progress.waiting) < size:
            before = len(progress.waiting)
            for text in self._drawn(size):
                if text is None:
                    progress.drop("prompts without end")
                elif text in known:
                    progress.drop("prompts twice")
                elif self.forbidden.meets(text):
                    progress.drop("shared with exclude")
                else:
                    known.add(text)
                    progress.waiting.append(text)
            self._gained(len(progress.waiting) - before)
        batch, progress.waiting = progress.waiting[:size], progress.waiting[size:]
        return [[text] for text in batch]

    def _drawn(self, count: int) -> list[str | None]:
        settings = self.settings
        style = Style(settings.prompt_tokens, settings.prompt_temperature, settings.prompt_top_k)
        return self.author.draw(count, style, self._seed())

    def _answered(self, batch: list[list[str]]) -> list[tuple[Turns, int]]:
        """The conversations of a batch that are kept, each with how many tokens were written for it."""
        talks = [_Talk(turns) for turns in batch]
        while waiting := [talk for talk in talks if talk.open]:
            self._answer(waiting)
        kept = []
        for talk in talks:
            texts = [message.content for message in talk.messages]
            if talk.dropped or not texts:
                self.ledger.progress.drop(talk.dropped or "too long for the context")
            elif any(map(self.forbidden.meets, texts)):
                self.ledger.progress.drop("shared with exclude")
            else:
                speakers = {"user": "human", "assistant": "gpt"}
                turns = [{"from": speakers[message.role], "value": message.content} for message in talk.messages]
                kept.append((turns, talk.tokens))
        return kept

    def _answer(self, talks: list[_Talk]) -> None:
        """One more turn of each conversation."""
        settings, author = self.settings, self.author
        asked = [(talk, author.chat.prompt_ids([*talk.messages, talk.question])) for talk in talks]
        fitting = [(talk, ids) for talk, ids in asked if len(ids) + settings.max_new_tokens <= author.context]
        for talk, ids in asked:
            if len(ids) + settings.max_new_tokens > author.context:
                talk.open = False
        if not fitting:
            return
        began = time.perf_counter()
        style = Style(settings.max_new_tokens, settings.temperature)
        answers = author.write([ids for _, ids in fitting], style, self._seed())
        self.spent_s += time.perf_counter() - began
        self.written += sum(map(len, answers))
        for (talk, _), tokens in zip(fitting, answers, strict=True):
            whole = author.ends(tokens)
            talk.take(author.chat.decode(tokens), len(tokens), last=not whole)
            if not whole and settings.unfinished == "drop":
                talk.dropped = "unfinished"

    def _seed(self) -> int:
        """Of the next call of generate; a batch that is written again has it again."""
        self.ledger.progress.calls += 1
        return int((self.settings.seed * 1_000_003 + self.ledger.progress.calls) % 2**63)

    def _gained(self, count: int) -> None:
        self.barren = 0 if count else self.barren + 1
        if self.barren >= BARREN and self.prompts is None:
            raise UserError(
                f"model.path={self.settings.model.path}: {BARREN} batches in a row gave nothing to keep "
                f"({self.ledger.progress}); try more prompt_tokens or max_new_tokens, or unfinished=keep"
            )


class _Talk:
    """A conversation while it is written."""

    def __init__(self, turns: Sequence[str]) -> None:
        self.turns, self.messages = turns, list[Message]()
        self.tokens, self.open, self.dropped = 0, True, ""

    @property
    def question(self) -> Message:
        """The user's next turn."""
        return Message("user", self.turns[len(self.messages) // 2])

    def take(self, answer: str, tokens: int, *, last: bool) -> None:
        """The answer to it; last: nothing more is asked."""
        self.messages += [self.question, Message("assistant", answer)]
        self.tokens += tokens
        self.open = not last and len(self.messages) < 2 * len(self.turns)
        if not answer:
            self.open, self.dropped = False, "empty"


@dataclass(frozen=True)
class Forbidden:
    """Token runs of questions that no conversation may hold."""

    chat: Chat
    runs: set[int] = field(default_factory=set)  # hashes of RUN tokens each; of a shorter question, all it has

    @classmethod
    def read(cls, path: str | None, chat: Chat) -> Forbidden:
        """Raises UserError for a file that is not there or holds anything but questions."""
        found = cls(chat)
        for name, record in records(Path(path).expanduser(), "exclude") if path is not None else ():
            try:
                texts = user_turns(record)
            except ValueError as error:
                raise UserError(f"exclude={path} {name}: {error}") from error
            for text in texts:
                found.runs.update(found._runs(text))
        return found

    def meets(self, text: str) -> bool:
        """Whether the text shares a run with a question, or is one."""
        return bool(self.runs) and not self.runs.isdisjoint(self._runs(text))

    def _runs(self, text: str) -> Iterator[int]:
        tokens = self.chat.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        yield from (hash(tuple(tokens[at : at + RUN])) for at in range(max(1, len(tokens) - RUN + 1)))


def user_turns(record: Any) -> list[str]:
    """What the user says in a record of any form that questions have. Raises ValueError where that is nothing."""
    _, turns = asked(record)
    if not turns:
        raise ValueError("nothing is asked in it")
    return list(turns)


def _prompts(settings: Distill, chat: Chat) -> list[list[str]]:
    """The user's turns of a file's conversations, short ones first, so that a batch has little padding."""
    path = Path(str(settings.prompts)).expanduser()
    found = list(islice(_read_prompts(path), settings.conversations))
    if not found:
        raise UserError(f"prompts={path}: holds no prompt; wanted: questions, ShareGPT, or a .txt with one a line")
    return sorted(found, key=lambda turns: len(chat.prompt_ids([Message("user", turns[0])])))


def _read_prompts(path: Path) -> Iterable[list[str]]:
    left_out: list[str] = []
    opened: list[str] = []
    for name, record in records(path, "prompts"):
        try:
            yield user_turns(record)
        except ValueError as error:
            left_out.append(f"{name}: {error}")
        else:
            opened += [name] if asked(record)[0] else []
    if left_out:
        print(f"prompts={path}: {len(left_out)} without a prompt left out (first: {left_out[0]})", file=sys.stderr)
    if opened:
        print(f"prompts={path}: the system messages of {len(opened)} are left out (first: {opened[0]}); "
              "model.system_prompt= gives all one", file=sys.stderr)  # fmt: skip
