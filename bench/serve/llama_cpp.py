"""python -m bench.serve.llama_cpp model=joey.gguf port=8080 ngram=4

llama.cpp's own server, out of the wheel xllamacpp, until it is stopped. draft=FILE drafts with a small model, ngram=N
by the last N tokens' earlier occurrence; neither: plain. slots: requests at a time, context: tokens for each of them;
cache: what keys and values are kept in, f16 as llama.cpp has it, or f32.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.command import again, command, key_values
from methods.errors import UserError

DEFAULTS = {"model": "", "port": "", "draft": "", "ngram": "", "length": "8", "slots": "4", "context": "1024",
            "threads": "1", "cache": "f16"}  # fmt: skip
CACHES = ("f16", "f32")
NUMBERS = ("port", "length", "slots", "context", "threads", "ngram")
PORTS = range(1, 1 << 16)
LOOKS_EVERY_S = 0.5


@command(again, __doc__)
def main(arguments: Sequence[str]) -> int:
    """Serve. Returns the exit status; ends with the process that started it."""
    values = parse(arguments)
    check_installed("bench.serve.llama_cpp")
    import xllamacpp

    parent = os.getppid()
    server = xllamacpp.Server(parameters(xllamacpp, values))
    print(f"llama.cpp of xllamacpp {xllamacpp.__version__} at {server.listening_address}", flush=True)
    while os.getppid() == parent:
        time.sleep(LOOKS_EVERY_S)
    return 0


def check_installed(who: str) -> None:
    """Raises UserError where the wheel is missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError(f"{who} needs xllamacpp: pip install 'speculative-bench[llama_cpp]'")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """key=value arguments. Raises UserError for one that is unknown, or no number where one is wanted."""
    values = key_values(arguments, DEFAULTS)
    for key in NUMBERS:
        if (values[key] or key != "ngram") and not (values[key].isdecimal() and int(values[key])):
            raise UserError(f"{key}={values[key]}: must be a number from 1")
    if int(values["port"]) not in PORTS:
        raise UserError(f"port={values['port']}: must be at most {PORTS[-1]}")
    if values["draft"] and values["ngram"]:
        raise UserError(f"ngram={values['ngram']}: draft={values['draft']} is given too; wanted: one of the two")
    if values["cache"] not in CACHES:
        raise UserError(f"cache={values['cache']}: valid: {', '.join(CACHES)}")
    for key in ("model", "draft"):
        if (values[key] or key == "model") and not Path(values[key]).is_file():
            raise UserError(f"{key}={values[key]}: no such file; wanted: a GGUF file")
    return values


def parameters(library: Any, values: dict[str, str]) -> Any:
    """llama.cpp's own settings."""
    found = library.CommonParams()
    found.model.path = values["model"]
    found.model_alias = {Path(values["model"]).stem}
    found.model_tags = {f"xllamacpp-{library.__version__}"}  # /v1/models shows it, and so run.json has it
    found.port, found.n_parallel = int(values["port"]), int(values["slots"])
    found.n_ctx = int(values["context"]) * found.n_parallel
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = int(values["threads"])
    found.cache_type_k = found.cache_type_v = getattr(library.ggml_type, f"GGML_TYPE_{values['cache'].upper()}")
    found.warmup = True
    found.fit_params = False  # it would shrink the context where memory is short, unasked
    kinds, speculative = library.common_speculative_type, found.speculative
    if values["draft"]:
        speculative.draft.mparams.path = values["draft"]
        speculative.draft.n_max = int(values["length"])
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = int(values["threads"])
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    elif values["ngram"]:
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = int(values["ngram"]), int(values["length"])
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
