"""The two servers: found at a URL or started by a command, and what they say of themselves."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serve.acceptance import Counters, read_counters
from bench.serve.client import Client, Failed, connected
from bench.serve.dialects import DIALECTS, OWNERS
from bench.serve.records import SIDES
from bench.settings import Servers
from methods.errors import UserError

PREFIX = {"speculative": "", "baseline": "baseline_"}  # of a side's settings
STOPS_WITHIN_S = 20.0
END_WITH_PARENT = 1  # prctl(2)'s PR_SET_PDEATHSIG
LOOKS_EVERY_S = 0.1
# Pages on which engines tell their version, the newest first, and the key where they do.
VERSIONS = {
    "vllm": (("/version",), "version"),
    "sglang": (("/server_info", "/get_server_info"), "version"),
    "llama_cpp": (("/props",), "build_info"),
}
WHEEL = "xllamacpp-"  # how bench.serve.llama_cpp's tag of a model begins; that build knows no version of its own


@dataclass
class Server:
    """One side. A launched server lives between `start` and `stop`; one at a URL always does."""

    side: str
    settings: Servers
    log: Path
    url: str = ""
    engine: str = ""
    model: str = ""
    answer: Any = None  # of /v1/models
    version: str | None = None
    client: Client | None = None
    process: subprocess.Popen[bytes] | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def key(self) -> str:
        """The setting that says where the server is."""
        return PREFIX[self.side] + ("launch" if self.launch else "url")

    @property
    def launch(self) -> str | None:
        """The command that starts it."""
        found: str | None = getattr(self.settings, f"{PREFIX[self.side]}launch")
        return found

    @property
    def ready(self) -> Client:
        """The client of a server that is there."""
        assert self.client is not None, "the server was not started"
        return self.client

    async def start(self) -> None:
        """Be there, and know who answers. Raises UserError where nobody does, or with another model than asked for."""
        if self.client is not None:
            return
        if self.launch:
            self._launch(self.launch)
        else:
            self.url = str(getattr(self.settings, f"{PREFIX[self.side]}url"))
        await self._connect("openai")
        await self._probe()
        await self._connect(self.engine)

    async def _connect(self, engine: str) -> None:
        await self.stack.aclose()
        key = os.environ[self.settings.key] if self.settings.key else None
        client = connected(self.url, DIALECTS[engine], self.settings.timeout_s, key)
        self.client = await self.stack.enter_async_context(client)

    async def stop(self) -> None:
        """Let it go; a launched one ends."""
        await self.stack.aclose()
        self.client = None
        self.kill()

    def kill(self) -> None:
        """End a launched server and all that it started."""
        if self.process is not None:
            end(self.process)
        self.process = None

    def _launch(self, command: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [word.replace("{port}", str(port)) for word in _words(command, self.key)]
        try:
            self.process = begin(words, self.log)
        except OSError as error:
            raise UserError(f"server.{self.key}: {words[0]} cannot be started ({error.strerror})") from error

    async def _probe(self) -> None:
        """What /v1/models says, and the engine and version that follow from it."""
        self.answer = await self._models()
        found = self.answer.get("data") if isinstance(self.answer, Mapping) else None
        named = {str(one["id"]): one for one in found or () if isinstance(one, Mapping) and "id" in one}
        asked = (self.settings.baseline_model if self.side == "baseline" else None) or self.settings.model
        wanted, key = asked or next(iter(named), ""), f"{PREFIX[self.side]}model"
        if wanted not in named:
            listed = ", ".join(named) or "none"
            raise UserError(f"server.{key}={wanted}: {self.url} does not serve it; it has: {listed}")
        if len(named) > 1 and asked is None:
            raise UserError(f"server.{self.key}: {self.url} serves {', '.join(named)}; server.{key}=NAME chooses one")
        self.model = wanted
        owner = OWNERS.get(str(named[wanted].get("owned_by")), "openai")
        self.engine = owner if self.settings.engine == "auto" else self.settings.engine
        tags = named[wanted].get("tags") or ()
        wheel = next((tag for tag in tags if isinstance(tag, str) and tag.startswith(WHEEL)), None)
        self.version = wheel or await self._version()

    async def _version(self) -> str | None:
        """What the engine calls its version; one that is not told is missing, and that is all."""
        pages, key = VERSIONS.get(self.engine, ((), ""))
        for page in pages:
            with suppress(Failed):
                said = await self.ready.get(page)
                if isinstance(said, Mapping) and key in said:
                    return str(said[key])
        return None

    async def _models(self) -> Any:
        """Raises UserError when the server is not there; a launched one has some time to begin."""
        until = time.monotonic() + (self.settings.start_s if self.launch else 0)
        while True:
            try:
                if (found := await self.ready.get("/v1/models")) is not None:
                    return found
                why = "it has no /v1/models; wanted: a server with the OpenAI API"
            except Failed as error:
                why = str(error)
            if self.process is not None:
                check_alive(self.process, f"server.{self.key}", self.log)
            if time.monotonic() >= until:
                raise UserError(f"server.{self.key}={self.launch or self.url}: {why}")
            await asyncio.sleep(LOOKS_EVERY_S)

    async def counters(self) -> Counters:
        """The engine's own counters, where it publishes those that are known here."""
        try:
            page = await self.ready.get("/metrics") if self.engine == "vllm" else None
        except Failed:
            return {}
        return read_counters(page) if isinstance(page, str) else {}

    def facts(self) -> dict[str, Any]:
        """What a run is not continued without; the URL of a launched one is by chance."""
        return {"engine": self.engine, "version": self.version, "model": self.model, "launch": self.launch}


def check_pair(servers: Mapping[str, Server]) -> None:
    """Raises UserError where the two serve different models or are different engines."""
    ours, theirs = (servers[side] for side in SIDES)
    if ours.engine != theirs.engine:
        raise UserError(
            f"server.{theirs.key}: it is {theirs.engine}, server.{ours.key} is {ours.engine}; wanted: one engine"
        )
    if ours.model != theirs.model and ours.settings.baseline_model is None:
        raise UserError(
            f"server.{theirs.key}: it serves {theirs.model}, server.{ours.key} serves {ours.model}; if these are one "
            f"model, say server.baseline_model={theirs.model}"
        )


@contextmanager
def both(settings: Servers, folder: Path) -> Iterator[dict[str, Server]]:
    """The two sides, not started; whatever was launched ends with this."""
    servers = {side: Server(side, settings, folder / f"{side}.log") for side in SIDES}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.kill()


def begin(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server whose output goes behind what the log has. Raises OSError where there is no such command."""
    with log.open("ab") as opened:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened, start_new_session=True, preexec_fn=_mortal
        )


def check_alive(process: subprocess.Popen[bytes], key: str, log: Path) -> None:
    """Raises UserError, with the last line that it said, for a server that has ended."""
    if process.poll() is not None:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")
        raise UserError(f"{key}: ended with status {process.returncode} ({last}); see {log}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN_S)
            break


def _mortal() -> None:
    """In a process that begins: end when the one that started it is killed, where the system can say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGTERM)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _words(command: str, key: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"server.{key}={command}: not a command ({error})") from error
    if not any("{port}" in word for word in words):
        raise UserError(f"server.{key}={command}: lacks {{port}}, where the port goes that it shall listen at")
    return words
