"""A local server that answers as an engine does, from a known text, and that can be told to misbehave.

Its forms are those of vLLM 0.32's documentation, SGLang 0.5's source and the llama.cpp of xllamacpp 2026.10; only the
last was seen to send them.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKENS = 12  # of an answer
STEP = 3  # tokens of a step of the server that speculates


def words(prompt: Any, count: int) -> list[int]:
    """The ids that a prompt is answered with; the same from every server."""
    seed = sum(json.dumps(prompt).encode())
    return [7 + (seed + place) % 11 for place in range(count)]


@dataclass
class Engine:
    """What a server does. fault: what goes wrong with answer number `at`, counted from 1."""

    dialect: str = "vllm"
    model: str = "tiny"
    others: tuple[str, ...] = ()  # further models of /v1/models
    per_request: bool = False  # vLLM's --per-request-spec-decode-metrics
    release: str = "0.32.0"
    incremental: bool = False  # SGLang's --incremental-streaming-output
    key: str | None = None  # what it wants to be told
    speculative: bool = False
    fault: str | None = None
    at: int | None = None  # None: every answer
    token_s: float = 0.0
    other_from: int | None = None  # the place from which its tokens are others
    margin: float = 5.0
    url: str = ""
    port: int = 0  # the same again, once it has had one
    asked: list[dict[str, Any]] = field(default_factory=list)
    counted: int = 0
    most: int = 0  # requests at a time
    now: int = 0

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "who are you?"}}, status=401)
        owner = {"vllm": "vllm", "sglang": "sglang", "llama_cpp": "llamacpp"}.get(self.dialect, "someone")
        return web.json_response(
            {"object": "list", "data": [{"id": name, "owned_by": owner} for name in (self.model, *self.others)]}
        )

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self.release})

    async def metrics(self, request: web.Request) -> web.Response:
        drafts = self.counted // STEP
        lines = [f'vllm:generation_tokens_total{{engine="0",model_name="{self.model}"}} {float(self.counted)}']
        if self.speculative:
            lines += [
                f'vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}.0',
                f'vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {4 * drafts}.0',
                f'vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {2 * drafts}.0',
                f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {drafts}.0',
                f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {drafts}.0',
            ]
        return web.Response(text="# TYPE x counter\n" + "\n".join(lines) + "\n")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.asked.append({"path": request.path, **body})
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._answer(request, body)
        finally:
            self.now -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        number = len(self.asked)
        wrong = self.fault if self.at in (None, number) else None
        if wrong == "500":
            return web.json_response({"error": {"message": "out of\nmemory", "code": 500}}, status=500)
        if wrong == "die" and request.transport:
            request.transport.abort()
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
        if wrong == "hang":
            await asyncio.sleep(1)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        prompt = body.get("prompt", body.get("messages", body.get("input_ids")))
        limit = body.get("max_tokens", body.get("n_predict", (body.get("sampling_params") or {}).get("max_new_tokens")))
        ids = words(prompt, min(TOKENS, limit))
        if self.other_from is not None and limit > 1:
            ids[self.other_from :] = [id_ + 50 for id_ in ids[self.other_from :]]
        step = STEP if self.speculative else 1
        parts = [ids[:1], *(ids[place : place + step] for place in range(1, len(ids), step))]
        done: list[int] = []
        for place, part in enumerate(parts):
            if self.token_s:
                await asyncio.sleep(self.token_s)
            done += part
            if wrong in ("half", "cut") and place == 1:
                if wrong == "cut" and request.transport:
                    request.transport.abort()
                return response
            if wrong == "error" and place == 1:
                await self._send(response, {"error": {"message": "cache is full"}})
                return response
            if wrong == "model":
                await self._send(response, {"model": "another", "choices": [{"text": "a"}]})
            for event in self.events(body, done, part, place == len(parts) - 1):
                await self._send(response, event)
        self.counted += len(ids)
        if not request.path.startswith(("/generate", "/completion")):
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def events(self, body: dict[str, Any], done: list[int], part: list[int], last: bool) -> Iterator[dict[str, Any]]:
        """The events of a step, in the engine's form."""
        text, total = "".join(f" t{id_}" for id_ in part), len(done)
        steps = (total - 1 + STEP - 1) // STEP
        accepted = total - 1 - steps
        if self.dialect == "sglang" and "input_ids" in body:
            meta = {"completion_tokens": total, "prompt_tokens": 3, "cached_tokens": 0, "finish_reason": None}
            if self.speculative and steps:
                meta |= {"spec_verify_ct": steps, "spec_accept_token_num": accepted, "spec_draft_token_num": 4 * steps}
            meta |= {"finish_reason": {"type": "length", "length": total}} if last else {}
            whole = "".join(f" t{id_}" for id_ in done)
            if self.incremental:
                yield {"text": text, "output_ids": part, "meta_info": meta}
            else:
                yield {"text": whole, "output_ids": [*done], "meta_info": meta}
            return
        if self.dialect == "llama_cpp" and "n_predict" in body:
            yield {"index": 0, "content": text, "tokens": part, "stop": False, "id_slot": -1}
            if last:
                timings = {"predicted_n": total, "cache_n": 0}
                timings |= {"draft_n": 4 * steps, "draft_n_accepted": accepted} if self.speculative else {}
                yield {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "model": self.model,
                       "tokens_predicted": total, "tokens_evaluated": 3, "timings": timings}  # fmt: skip
            return
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if last else None, "logprobs": None}
        choice |= {"delta": {"content": text}} if "messages" in body else {"text": text}
        if body.get("return_token_ids"):
            choice["token_ids"] = part
        if body.get("logprobs"):
            choice["logprobs"] = {"top_logprobs": [{"a": -0.1, "b": -0.1 - self.margin}]}
        yield {"object": "text_completion", "model": self.model, "choices": [choice]}
        if last:
            usage = {"prompt_tokens": 3, "completion_tokens": total + (5 if self.fault == "count" else 0)}
            event: dict[str, Any] = {"model": self.model, "choices": [], "usage": usage}
            if self.speculative and self.per_request:
                counts = [0, 0, 0]
                for emitted in [STEP] * (steps - 1) + [total - 1 - STEP * (steps - 1)]:
                    counts[emitted - 1] += 1
                found = {"acceptance_histogram": counts, "num_spec_steps": steps, "num_draft_tokens": 4 * steps}
                event["metrics"] = {"speculative_decoding": {**found, "num_accepted_draft_tokens": accepted}}
            yield event

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """Serve on a port of this machine, in a thread."""
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def begin() -> web.AppRunner:
            app = web.Application(client_max_size=1 << 26)
            app.router.add_get("/v1/models", self.models)
            app.router.add_get("/metrics", self.metrics)
            app.router.add_get("/server_info" if self.dialect == "sglang" else "/version", self.version)
            for path in ("/v1/completions", "/v1/chat/completions", "/completion", "/generate"):
                app.router.add_post(path, self.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", self.port)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            self.url = f"http://127.0.0.1:{self.port}"
            return runner

        def work() -> None:
            asyncio.set_event_loop(loop)
            runner = loop.run_until_complete(begin())
            ready.set()
            loop.run_forever()
            loop.run_until_complete(runner.cleanup())

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert ready.wait(10)

        try:
            yield self
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
