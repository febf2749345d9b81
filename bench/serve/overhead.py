"""python -m bench.serve.overhead [concurrency=32] [requests=2000] [events=16]

What the client itself costs: a trivial server of this machine, in a process of its own, answers at once. Prints the
client's processor time for each request and for each event of a stream, and how long a request takes in all.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

from bench.command import again, command, numbers
from bench.serve.client import Client, connected
from bench.serve.dialects import DIALECTS, Request

DEFAULTS = {"concurrency": 32, "requests": 2000, "events": 16}
PROMPT = list(range(200))
EVENT = b'data: {"model":"trivial","choices":[{"index":0,"text":" word","token_ids":[7],"finish_reason":%s}]}\n\n'
USAGE = (
    b'data: {"model":"trivial","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """max_tokens events of a token each, none of which waits for anything."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    body = await reader.readexactly(length)
    events = int(body.partition(b'"max_tokens":')[2].partition(b",")[0])
    writer.write(HEAD)
    for number in range(events):
        writer.write(EVENT % (b'"length"' if number == events - 1 else b"null"))
        await asyncio.sleep(0)
    writer.write(USAGE % events)
    await writer.drain()
    writer.close()


def serve(pipe: Connection) -> None:
    """The trivial server; says its port into the pipe and lives as long as its parent wants."""

    async def work() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(work())


async def measure(client: Client, concurrency: int, requests: int, events: int) -> tuple[float, np.ndarray]:
    """Seconds of this processor for a request, and seconds that each request took."""
    waiting, walls = deque(range(requests)), list[float]()

    async def worker() -> None:
        while waiting:
            waiting.popleft()
            walls.append((await client.ask(Request("trivial", PROMPT, events))).wall_s)

    start = time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return (time.process_time() - start) / requests, np.array(walls)


async def _report(port: int, concurrency: int, requests: int, events: int) -> None:
    async with connected(f"http://127.0.0.1:{port}", DIALECTS["vllm"], timeout_s=60) as client:
        await measure(client, concurrency, concurrency * 4, events)  # imports and caches
        one_s, walls = await measure(client, concurrency, requests, 1)
        many_s, _ = await measure(client, concurrency, requests, events)
    print(f"{concurrency} at a time, {requests} requests: {one_s * 1e3:.3f} ms of the client's processor each, "
          f"{(many_s - one_s) / max(1, events - 1) * 1e6:.0f} µs for each further event")  # fmt: skip
    p50, p99 = np.percentile(walls, (50, 99)) * 1e3
    print(f"a request of one event takes {p50:.2f} ms (p50) and {p99:.2f} ms (p99), the trivial server's time included")


@command(again, f"usage: {__doc__}")
def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    values = numbers(arguments, DEFAULTS)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        asyncio.run(_report(ours.recv(), **values))
    finally:
        server.terminate()
        server.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
