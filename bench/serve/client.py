"""One request and its streamed answer, timed at this end. Nothing is retried: what went wrong is a failed request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from bench.serve.acceptance import Acceptance
from bench.serve.dialects import OpenAI, Piece, Request
from methods.errors import UserError, first_line

if TYPE_CHECKING:
    import aiohttp

LONGEST_LINE = 1 << 22  # bytes of an event; SGLang repeats the whole answer in each
PAGE_S = 30.0  # of a page, which says what a server is
SHOWN = 200  # characters of a server's own words


class Failed(Exception):
    """A request without a usable answer."""


class Dead(Failed):
    """Nobody listens."""


@dataclass(slots=True)
class Answer:
    """One answer. times_s: seconds from sending to each event that brought tokens; counts: how many each brought.

    new_tokens is the server's own count; token_ids, where it gives them, may lack the end-of-sequence token.
    """

    text: str = ""
    token_ids: list[int] | None = None
    new_tokens: int = 0
    stop: str = ""
    times_s: list[float] = field(default_factory=list)
    counts: list[int] | None = None
    wall_s: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    acceptance: Acceptance | None = None
    top: list[float] | None = None

    def take(self, piece: Piece, after_s: float) -> None:
        """Add what an event says."""
        ids, known = piece.ids, self.token_ids or []
        # SGLang repeats the answer in each event, or not with --incremental-streaming-output
        repeats = piece.whole and not (known and ids is not None and len(known) + len(ids) == piece.total)
        fresh = piece.text[len(self.text) :] if repeats else piece.text
        if repeats and ids is not None:
            ids = ids[len(known) :]
        if fresh or ids:
            self.times_s.append(after_s)
            self.counts = (
                None if ids is None or (self.counts is None and self.text) else [*(self.counts or ()), len(ids)]
            )
        if ids is not None:
            self.token_ids = [*known, *ids]
        self.text += fresh
        self.new_tokens = piece.total or self.new_tokens
        self.stop = piece.stop or self.stop
        self.top = self.top or piece.top
        for name in ("prompt_tokens", "cached_tokens", "acceptance"):
            if (value := getattr(piece, name)) is not None:
                setattr(self, name, value)

    def finish(self, wall_s: float) -> Answer:
        """The answer once its stream has ended. Raises Failed for half an answer, or one without a count of tokens."""
        self.wall_s = wall_s
        if not self.stop:
            raise Failed(f"half an answer: the stream ended after {len(self.text)} characters without saying why")
        if not self.new_tokens and self.token_ids:
            self.new_tokens = len(self.token_ids)
        if not self.new_tokens or not self.times_s:
            what = "a number of tokens (usage.completion_tokens)" if self.times_s else "a token"
            raise Failed(f"the answer ended without {what}")
        return self

    @property
    def miscounted(self) -> bool:
        """Whether ids and count disagree by more than the end-of-sequence token."""
        return self.token_ids is not None and self.new_tokens - len(self.token_ids) not in (0, int(self.stop == "eos"))


@dataclass(frozen=True)
class Client:
    """A server as the client sees it: where it is, how it is spoken to."""

    session: aiohttp.ClientSession
    url: str
    dialect: OpenAI
    timeout_s: float

    async def ask(self, request: Request) -> Answer:
        """Send a request and read its answer. Raises Failed, or Dead where nobody listens."""
        body, answer, start = orjson.dumps(self.dialect.body(request)), Answer(), time.perf_counter()
        async with (
            _errors(self.timeout_s),
            self.session.post(self.url + self.dialect.path(request), data=body) as response,
        ):
            if response.status != 200:
                raise Failed(f"HTTP {response.status}: {said(await response.read())}")
            async for line in response.content:
                after_s = time.perf_counter() - start
                if not line.startswith(b"data:") or (event := line[5:].strip()) == b"[DONE]":
                    continue
                answer.take(self._piece(event, request.model), after_s)
            return answer.finish(time.perf_counter() - start)

    def _piece(self, event: bytes, model: str) -> Piece:
        found = orjson.loads(event)
        if not isinstance(found, dict) or "error" in found:
            raise Failed(f"the server broke off: {said(event)}")
        piece = self.dialect.read(found)
        if piece.model not in (None, model):
            raise Failed(f"the answer is model {piece.model}'s; asked was {model}")
        return piece

    async def get(self, path: str) -> Any:
        """JSON, or text that is none, of a page of the server; None where it has none such. Raises Failed."""
        async with _errors(min(PAGE_S, self.timeout_s)), self.session.get(self.url + path) as response:
            body = await response.read()
            if response.status == 404:
                return None
            if response.status != 200:
                raise Failed(f"HTTP {response.status}: {said(body)}")
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            return body.decode("utf-8", "replace")


@asynccontextmanager
async def _errors(timeout_s: float) -> AsyncIterator[None]:
    """Whatever can go wrong with a server becomes Failed, or Dead; and all of it must be over in time."""
    import aiohttp

    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise Failed(f"no whole answer within {timeout_s:g} s") from error
    except aiohttp.ClientConnectorError as error:
        raise Dead(f"nobody listens ({error.strerror or first_line(error)})") from error
    except aiohttp.ClientPayloadError as error:
        raise Failed("half an answer: the connection was cut") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Failed(f"the connection broke ({first_line(error)})") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Failed(f"an answer of another form ({type(error).__name__}: {first_line(error)})") from error


@asynccontextmanager
async def connected(url: str, dialect: OpenAI, timeout_s: float, key: str | None = None) -> AsyncIterator[Client]:
    """A client with as many connections as it needs, one for each request: llama.cpp closes those that it has streamed
    over, and a request that is sent as this happens is lost. Raises UserError where the library is missing.
    """
    try:
        import aiohttp
    except ImportError as error:
        raise UserError("bench.serve needs the library aiohttp: pip install 'speculative-bench[serve]'") from error
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=LONGEST_LINE,
        headers=headers,
    ) as session:
        yield Client(session, url.rstrip("/").removesuffix("/v1"), dialect, timeout_s)


def said(body: bytes) -> str:
    """A server's words of an error, as one short line."""
    try:
        found = orjson.loads(body)
        found = found.get("error", found) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except orjson.JSONDecodeError:
        found = body.decode("utf-8", "replace")
    return " ".join(str(found).split())[:SHOWN] or "no more is said"
