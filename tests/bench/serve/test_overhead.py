"""The benchmark of the client itself runs; what it measures is asserted nowhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="bench.serve needs aiohttp")

from bench.serve import gguf, llama_cpp, overhead


def test_what_the_client_costs_is_printed(capsys: Any) -> None:
    assert overhead.main(["concurrency=8", "requests=32", "events=4"]) == 0
    said = capsys.readouterr().out
    assert re.match(r"8 at a time, 32 requests: \d+\.\d{3} ms of the client's processor each, -?\d+ µs for each", said)


@pytest.mark.parametrize("wrong", ["concurency=8", "requests=0", "events"])
def test_a_wrong_argument_is_one_line(capsys: Any, wrong: str) -> None:
    assert overhead.main([wrong]) == 2 and capsys.readouterr().err.startswith(f"{wrong}: ")


@pytest.mark.parametrize("module", [overhead, gguf, llama_cpp])
def test_help(capsys: Any, module: Any) -> None:
    assert module.main(["--help"]) == 0 and f"python -m {module.__name__}" in capsys.readouterr().out
