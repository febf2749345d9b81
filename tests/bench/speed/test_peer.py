"""llama.cpp beside vanilla: the server itself with joey, and the arithmetic on recorded turns."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bench.measure import Timed
from bench.speed import peer
from bench.speed.__main__ import main
from bench.speed.engine import Pair
from methods.decoder import Generation
from methods.errors import UserError

ROOT = Path(__file__).parents[3]
JOEY = ROOT / "bench" / "assets" / "joey"
engine = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
SHORT = ["methods=vanilla", "repeats=1", "max_new_tokens=12", "passes=1", "past=8", "rows=1", "threads=1"]


def answer(tokens: str, prefill_s: float, decode_s: float) -> Timed:
    generation = Generation(tuple(map(ord, tokens)), (), "eos")
    return Timed(generation, prefill_s + decode_s, prefill_s, 0.0, decode_s, None)


def test_speeds_are_those_of_tokens_after_the_first() -> None:
    theirs, ours = answer("abcde", 9.0, 2.0), answer("abc", 1.0, 0.5)
    silent = Pair(1, answer("x", 1.0, 0.0), answer("x", 1.0, 0.1))  # prefill's token ends the sequence
    row = peer.summarise([Pair(0, theirs, ours), silent])
    assert (row["tokens_per_s"], row["vanilla_tokens_per_s"], row["ratios"]) == (2.0, 4.0, [[2.0]])
    assert row["vanilla_over_it"] == pytest.approx(2.0)
    assert (row["equal_tokens"], row["tokens"]) == (4, 6)
    with pytest.raises(UserError, match="no answer has a second token"):
        peer.summarise([silent])


def test_equal_tokens_end_at_the_first_that_differs() -> None:
    row = peer.summarise([Pair(0, answer("abxd", 1, 1), answer("abcd", 1, 1))])
    assert (row["equal_tokens"], row["tokens"]) == (2, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.weights=random"], "llama_cpp=true: model.weights=random are in no file"),
        (["max_new_tokens=1"], "max_new_tokens=1: must be an integer of at least 2"),
        ([], "llama_cpp=true needs xllamacpp: pip install 'speculative-bench[llama_cpp]'"),
    ],
)
def test_what_is_lacking_is_one_line(
    tmp_path: Path, capsys: Any, monkeypatch: Any, overrides: list[str], message: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else found(name))
    assert main([*SHORT, "llama_cpp=true", f"results_dir={tmp_path}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@engine
def test_joey_beside_llama_cpp(tmp_path: Path, capsys: Any) -> None:
    threads = torch.get_num_threads()
    given = [*SHORT, "llama_cpp=true", "dtypes=[float32,bfloat16]", f"results_dir={tmp_path}"]
    assert main(given) == 0
    torch.set_num_threads(threads)
    first, second = json.loads((tmp_path / "speed" / "joey.json").read_text())["sections"]
    row = first["llama_cpp"]
    assert row["vanilla_over_it"] > 0 and all(len(ratios) == 1 for ratios in row["ratios"])
    assert row["tokens"] * 0.7 < row["equal_tokens"] <= row["tokens"]  # a near tie may tip in another order of sums
    assert second["llama_cpp"] is None
    printed = capsys.readouterr().out
    assert "tokens equal" in printed and printed.count("not measured: float32 on a CPU alone is") == 1
    (file,) = tmp_path.glob(".cache/gguf/*.gguf")
    assert peer.weights_file(JOEY, tmp_path) == file
    assert not [one for one in psutil.process_iter(["cmdline"]) if f"model={file}" in (one.info["cmdline"] or [])]


@engine
def test_a_server_that_cannot_begin_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF and no more")
    with (
        pytest.raises(UserError, match=r"^llama_cpp=true: ended with status .*; see .*no\.log$"),
        peer.served(tmp_path / "no.gguf", 1, 64),
    ):
        pass
