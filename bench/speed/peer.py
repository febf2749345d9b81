"""Vanilla beside llama.cpp's own server: the same float32 weights and prompts, by turns; decoding alone is timed."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fidelity import shared
from bench.speed.engine import Pair, by_question, paired, turn
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.measure import Timed
    from bench.settings import Speed
    from methods.engine.llama import Llama

STARTS_WITHIN_S, ANSWERS_WITHIN_S, LOOKS_EVERY_S = 120.0, 600.0, 0.1


def weights_file(checkpoint: Path, results: Path) -> Path:
    """The checkpoint as a float32 GGUF file, which is written once for every content. Raises UserError where it cannot
    be, or llama.cpp is missing.
    """
    from bench.binder import file_hashes
    from bench.files import make_folder
    from bench.serve import gguf
    from bench.serve.llama_cpp import check_installed
    from methods.digest import sha256

    check_installed("llama_cpp=true")
    content = sha256(json.dumps(file_hashes(checkpoint), sort_keys=True))
    file = make_folder(str(results / ".cache" / "gguf")) / f"{content}{gguf.SUFFIX}"
    if not file.is_file():
        gguf.write(checkpoint, file)
    return file


def measured(speed: Speed, target: Llama, prompts: list[list[int]], file: Path) -> dict[str, Any] | None:
    """Tokens/s of both after the first token, their ratio by question, and how many tokens are the same.

    Both keep keys and values in float32 and end an answer with its end-of-sequence token. None: not float32 on a CPU.
    """
    import torch

    from methods.decoder import Decoder
    from methods.vanilla import Vanilla

    if target.device.type != "cpu" or target.weights.embedding.dtype != torch.float32:
        return None
    context = min(max(map(len, prompts)) + speed.max_new_tokens, target.config.context)
    decoder = Decoder(target, Vanilla(target), context=context)
    ours = turn(decoder, target, speed.max_new_tokens)
    with served(file, torch.get_num_threads(), context) as port:
        theirs = partial(_answer, port, max_new_tokens=speed.max_new_tokens)
        pairs = list(paired(theirs, ours, prompts, speed.repeats, target))
    return summarise(pairs) | {"xllamacpp": importlib.metadata.version("xllamacpp")}


def summarise(pairs: list[Pair]) -> dict[str, Any]:
    """llama.cpp is each pair's method. Pairs with an answer of one token, which has no decoding, are not timed."""
    timed = [pair for pair in pairs if min(len(side.generation.tokens) for side in (pair.method, pair.vanilla)) > 1]
    if not timed:
        raise UserError("llama_cpp=true: no answer has a second token, so there is no decoding to time")
    both = [(pair.method.generation.tokens, pair.vanilla.generation.tokens) for pair in pairs]
    return {
        **by_question("vanilla_over_it", timed, lambda pair: _rate(pair.vanilla) / _rate(pair.method)),
        "tokens_per_s": statistics.median(_rate(pair.method) for pair in timed),
        "vanilla_tokens_per_s": statistics.median(_rate(pair.vanilla) for pair in timed),
        "equal_tokens": sum(shared(*tokens) for tokens in both),
        "tokens": sum(max(map(len, tokens)) for tokens in both),
    }


def _rate(timed: Timed) -> float:
    """Tokens/s after the first, which prefill gives."""
    return (len(timed.generation.tokens) - 1) / (timed.wall_s - timed.prefill_s)


@contextmanager
def served(file: Path, threads: int, context: int) -> Iterator[int]:
    """llama.cpp's server, ready, at a port of this machine; it ends with this. Raises UserError where it cannot be."""
    from bench.serve.servers import begin, check_alive, end, free_port

    port = free_port()
    words = [sys.executable, "-m", "bench.serve.llama_cpp", f"model={file}", f"port={port}", "slots=1", "cache=f32"]
    log = file.with_suffix(".log")
    process = begin([*words, f"context={context}", f"threads={threads}"], log)
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while _ask(port, "/health") is None:
            check_alive(process, "llama_cpp=true", log)
            if time.monotonic() > until:
                raise UserError(f"llama_cpp=true: its server is not ready after {STARTS_WITHIN_S:.0f} s; see {log}")
            time.sleep(LOOKS_EVERY_S)
        yield port
    finally:
        end(process)


def _answer(port: int, prompt: list[int], max_new_tokens: int) -> Timed:
    """A greedy answer, whose prompt is read anew, with the times that the server itself took."""
    from bench.measure import Timed
    from bench.serve.dialects import DIALECTS, ENDINGS, Request
    from methods.decoder import Generation, Step

    request = Request("", prompt, max_new_tokens, salt="", extra={"stream": False})
    answer = _ask(port, "/completion", DIALECTS["llama_cpp"].body(request))
    if answer is None:
        raise UserError("llama_cpp=true: its server gave no answer")
    tokens, times = tuple(answer["tokens"]), answer["timings"]
    prefill_s, decode_s = times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3
    generation = Generation(tokens, (Step(0, 1),) * (len(tokens) - 1), ENDINGS[answer["stop_type"]])
    return Timed(generation, prefill_s + decode_s, prefill_s, 0.0, decode_s, None)


def _ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    """What a page of the server says; None while it is not ready."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWERS_WITHIN_S)) as connection:
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
            response = connection.getresponse()
            return json.loads(response.read()) if response.status == 200 else None
        except (OSError, HTTPException):
            return None
