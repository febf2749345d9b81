"""One comparison of two servers: every level of load in blocks that alternate, recorded, compared, summarised."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import environment
from bench.chat import Chat, Message, chat_files
from bench.digests import sha256 as file_sha256
from bench.fidelity import NEAR_TIE, compare, shared
from bench.files import make_folder
from bench.places import ROOT, locate
from bench.questions.choice import chosen
from bench.questions.formats import Question
from bench.questions.sets import find
from bench.records.lines import Place, prompt_hash
from bench.serve.client import Dead, Failed
from bench.serve.dialects import Request
from bench.serve.metrics import summarise
from bench.serve.records import SIDES, BlockKey, ServeDirectory, TurnKey, Writing, answered, counted, read_records
from bench.serve.servers import Server, both, check_pair
from bench.serve.words import format_table
from bench.settings import Serve
from methods.digest import sha256
from methods.errors import UserError

EACH = 4  # questions of a block for each request at a time, where settings do not say
WARM_TOKENS = 32


@dataclass(frozen=True)
class Block:
    """Some questions, of which `level` are asked at a time."""

    level: int
    repeat: int
    number: int
    questions: tuple[Question, ...]

    def key(self, side: str) -> BlockKey:
        """How records call it."""
        return self.level, self.repeat, self.number, side

    def turns(self) -> Iterator[tuple[TurnKey, Question, int]]:
        """Every turn of its questions."""
        for question in self.questions:
            for turn in range(len(question.turns)):
                yield (self.level, self.repeat, question.question_id, turn), question, turn


def blocks_of(questions: Sequence[Question], settings: Serve) -> list[Block]:
    """Every level has the same questions in the same order. A rest too short for a level goes with the block before."""
    found = []
    for level in settings.levels:
        size = settings.block or EACH * level
        starts = list(range(0, len(questions), size))
        if len(starts) > 1 and len(questions) - starts[-1] < min(level, size):
            starts.pop()
        ends = [*starts[1:], len(questions)]
        for repeat in range(settings.repeats):
            parts = enumerate(zip(starts, ends, strict=True))
            found += [Block(level, repeat, number, tuple(questions[a:b])) for number, (a, b) in parts]
    return found


def run(settings: Serve, command: str) -> int:
    """Measure. Returns the exit status: 1 where requests failed or answers diverged. Raises UserError for a mistake."""
    root, notes = make_folder(settings.results_dir), list[str]()
    file = find(settings.questions, settings.data.path)
    questions = chosen(settings, file, notes)
    if len(questions) < max(settings.levels):
        notes.append(
            f"{len(questions)} questions cannot keep {max(settings.levels)} requests under way; limit= gives more"
        )
    info = _information(settings, command, file)
    chat = _chat(settings, info)
    logs = make_folder(str(root / "serve" / "logs"))
    with both(settings.server, logs) as servers:
        return asyncio.run(_measure(settings, chat, questions, servers, info, notes))


def _information(settings: Serve, command: str, file: Path) -> dict[str, Any]:
    """What run.json says before any server was asked."""
    git = environment.git_state(ROOT, settings.results_dir)
    return {
        "config": settings.record(),
        "command": command,
        "model": settings.model.label,
        "method": settings.name,
        "demonstration": settings.model.built_in,
        "dtype": settings.server.dtype,
        "git": git,
        "commit": git["commit"],
        "questions_file": str(file),
        "questions_sha256": file_sha256(file),
        **environment.describe("cpu", 1),
        **(environment.cards() if settings.server.launched else {}),  # of a server elsewhere nothing is known
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _chat(settings: Serve, info: dict[str, Any]) -> Chat | None:
    """What makes token ids of conversations; None where the servers do so themselves."""
    if settings.server.prompt == "chat":
        return None
    from methods.engine.hub import resolve  # imports torch

    model = settings.model
    folder = resolve(locate(model.path), model.revision, weights=False)
    info["chat_sha256"] = {file.name: file_sha256(file) for file in chat_files(folder, model.chat_template)}
    return Chat(folder, *model.chat)


async def _measure(settings: Serve, chat: Chat | None, questions: list[Question], servers: dict[str, Server],
                   info: dict[str, Any], notes: list[str]) -> int:  # fmt: skip
    for side in SIDES:
        await servers[side].start()
        if not settings.server.together:
            await servers[side].stop()
    check_pair(servers)
    info |= {"servers": {side: servers[side].facts() for side in SIDES}}
    info |= {"models": {side: servers[side].answer for side in SIDES}}
    root = Path(settings.results_dir)
    directory = ServeDirectory.open(root, settings.record(), info, resume=settings.resume)
    try:
        for note in filter(None, [*notes, directory.notice]):
            print(note, file=sys.stderr)
        directory.write_info(info)
        await Session(settings, chat, servers, directory).measure(blocks_of(questions, settings))
        return _finish(directory)
    finally:
        directory.close()
        for server in servers.values():
            await server.stop()


def _finish(directory: ServeDirectory) -> int:
    metrics = summarise(read_records(directory.folder))
    directory.write_metrics(metrics)
    print(format_table(metrics))
    print(f"recorded in {directory.folder}")
    return 1 if any(row["failed"] or row["divergent"] for row in metrics["levels"]) else 0


@dataclass
class Session:
    """Blocks of questions, put to the two servers in turn."""

    settings: Serve
    chat: Chat | None
    servers: dict[str, Server]
    directory: ServeDirectory
    warm: set[tuple[int, str]] = field(default_factory=set)
    unrecorded: set[str] = field(default_factory=set)  # sides whose counters may owe steps that are in no record
    prompts: dict[tuple[int | str, int, int], Any] = field(default_factory=dict)

    async def measure(self, blocks: Sequence[Block]) -> None:
        """Ask what was not asked yet. Who goes first alternates. Raises UserError when a server is gone."""
        with tqdm(blocks, unit="block", disable=None) as bar:
            for place, block in enumerate(bar):
                bar.set_postfix_str(f"{block.level} at a time", refresh=False)
                for side in SIDES if place % 2 == 0 else SIDES[::-1]:
                    if block.key(side) not in self.directory.done:
                        await self._ask(block, side)
                if not self.settings.temperature:
                    await self._compare(block)

    async def _server(self, side: str) -> Server:
        """A server that is there, alone if it has to be."""
        server = self.servers[side]
        if not self.settings.server.together:
            for other in self.servers.values():
                if other is not server:
                    await other.stop()
        if server.client is None:
            await server.start()
            self.warm = {one for one in self.warm if one[1] != side}
        return server

    async def _ask(self, block: Block, side: str) -> None:
        """Put a block to a server, `level` questions at a time."""
        server = await self._server(side)
        await self._warm_up(block, side)
        for _, question, turn in block.turns():  # in the records or the cache before the clock runs
            if turn == 0 or (question.question_id, turn - 1) in self.directory.history:
                self._prompt(question, turn, [])
        facts: dict[str, Any] = {"unrecorded": side in self.unrecorded}
        self.unrecorded.discard(side)
        before = await server.counters()
        with self.directory.block(block.key(side)) as writing:
            cpu_s, start = time.process_time(), time.perf_counter()
            waiting = deque(block.questions)

            async def worker() -> None:
                while waiting:
                    await self._question(server, writing, Place(waiting.popleft(), block.repeat), start)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(block.level):
                        group.create_task(worker())
            except* (Dead, UserError) as errors:
                first = errors.exceptions[0]
                raise first if isinstance(first, UserError) else self._gone(server, str(first)) from None
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
            await self._check(server, writing)
            facts |= counted(before, await server.counters())
            self.directory.finish(writing, wall_s, {"client_cpu_share": round(cpu_s / wall_s, 4), **facts})

    async def _check(self, server: Server, writing: Writing) -> None:
        """Raises UserError where a block is no measurement: the server is gone, or answers nothing."""
        if not (failures := writing.failures):
            return
        try:
            await server.ready.get("/v1/models")
        except Failed as error:
            raise self._gone(server, str(error)) from error
        if len(failures) == len(writing.lines):
            remedy = "; server.prompt=chat sends messages in place of token ids" if self.chat else ""
            raise UserError(f"server.{server.key}={server.launch or server.url}: no request was answered: "
                            f"{failures[0]['error']}{remedy}")  # fmt: skip

    def _gone(self, server: Server, why: str) -> UserError:
        return UserError(f"server.{server.key}={server.launch or server.url}: {why}; blocks that are whole are "
                         "recorded, and the same command goes on behind them")  # fmt: skip

    async def _warm_up(self, block: Block, side: str) -> None:
        """As many unrecorded requests at once as the level has, so that no recorded one pays for the first use."""
        if (block.level, side) in self.warm or not self.settings.warmup:
            return
        self.warm.add((block.level, side))
        self.unrecorded.add(side)
        server, tokens = self.servers[side], min(WARM_TOKENS, self.settings.max_new_tokens)
        chosen = [block.questions[number % len(block.questions)] for number in range(block.level)]
        asked = [self._request(server, self._prompt(question, 0, []), block.repeat, tokens) for question in chosen]
        found = await asyncio.gather(*map(server.ready.ask, asked), return_exceptions=True)
        for error in found:
            if isinstance(error, Dead):
                raise self._gone(server, str(error))
            if isinstance(error, BaseException) and not isinstance(error, Failed):
                raise error

    async def _question(self, server: Server, writing: Writing, place: Place, start: float) -> None:
        """All turns of a question, one after another; a turn that fails ends it. Raises Dead."""
        texts: list[str] = []
        for turn in range(len(place.question.turns)):
            prompt = self._prompt(place.question, turn, texts)
            began_s = time.perf_counter() - start
            try:
                answer = await server.ready.ask(
                    self._request(server, prompt, place.repeat, self.settings.max_new_tokens)
                )
            except Dead:
                raise
            except Failed as error:
                writing.add(place, turn, {"status": "failed", "error": str(error)})
                return
            writing.add(place, turn, answered(answer, self._hash(prompt), began_s))
            texts.append(answer.text)

    def _request(self, server: Server, prompt: Any, repeat: int, tokens: int, top: int = 0) -> Request:
        settings = self.settings
        salt = None if settings.server.cache else uuid.uuid4().hex
        arguments = settings.model.template_arguments if self.chat is None else None
        extra = ({"chat_template_kwargs": arguments} if arguments else {}) | (settings.server.extra or {})
        return Request(server.model, prompt, tokens, settings.temperature, settings.seed + repeat, salt, top, extra)

    def _prompt(self, question: Question, turn: int, texts: Sequence[str]) -> Any:
        """Token ids, or messages, of a turn. What was answered first to the turns before, all sides go on from."""
        history = self.directory.history
        keys = [(question.question_id, place) for place in range(turn)]
        before = [history[key] if key in history else texts[key[1]] for key in keys]
        messages = list(question.opening)
        if self.chat is None and self.settings.model.system_prompt is not None and not messages:
            messages.append(Message("system", self.settings.model.system_prompt))
        for asked, said in zip(question.turns, before, strict=False):
            messages += [Message("user", asked), Message("assistant", said.strip())]
        messages.append(Message("user", question.turns[turn]))
        key = question.question_id, turn, hash(tuple(before))
        if key not in self.prompts:
            self.prompts[key] = (
                [{"role": message.role, "content": message.content} for message in messages]
                if self.chat is None
                else self.chat.prompt_ids(messages)
            )
        return self.prompts[key]

    def _hash(self, prompt: Any) -> str:
        return sha256(json.dumps(prompt)) if self.chat is None else prompt_hash(prompt)

    async def _compare(self, block: Block) -> None:
        """Judge every turn of a block that both sides have answered."""
        ours, theirs = (self.directory.answered[side] for side in SIDES)
        for key, question, turn in block.turns():
            if key in ours and key in theirs and key not in self.directory.compared:
                self.directory.judge(key, await self._verdict(ours[key], theirs[key], question, turn))

    async def _verdict(
        self, ours: dict[str, Any], theirs: dict[str, Any], question: Question, turn: int
    ) -> dict[str, Any]:
        """equal, near_tie or divergent; where they part, in tokens or else characters, and how far apart the plain
        server's two best tokens are there (nats), if it says."""
        unit = "token" if ours["token_ids"] is not None and theirs["token_ids"] is not None else "character"
        one, two = ((side["token_ids"] if unit == "token" else side["text"]) for side in (ours, theirs))
        position = shared(one, two)
        margin = None
        if (
            one != two
            and unit == "token"
            and self.chat is not None
            and ours["prompt_sha256"] == theirs["prompt_sha256"]
        ):
            margin = await self._margin([*self._prompt(question, turn, []), *two[:position]])
        tolerance = NEAR_TIE[self.settings.server.dtype]
        found = compare(one, two, margin=lambda place: float("inf") if margin is None else margin, tolerance=tolerance)
        verdict = "divergent" if found.verdict == "mismatch" else found.verdict
        return {"verdict": verdict, "position": found.position, "margin": margin, "unit": unit}

    async def _margin(self, prompt: list[int]) -> float | None:
        """How far apart the plain server's two best tokens are after a prompt; None where it does not say."""
        server = await self._server("baseline")
        self.unrecorded.add("baseline")
        try:
            answer = await server.ready.ask(self._request(server, prompt, 0, 1, top=2))
        except Failed:
            return None
        return answer.top[0] - answer.top[1] if answer.top and len(answer.top) > 1 else None
