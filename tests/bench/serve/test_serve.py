"""python -m bench.serve against local servers that answer as engines do, and against such as misbehave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="bench.serve needs aiohttp")

from bench.questions.formats import Question
from bench.serve.__main__ import main
from bench.serve.dialects import DIALECTS, Request
from bench.serve.records import read_records
from bench.serve.session import blocks_of
from bench.settings import Serve
from methods.errors import UserError
from tests.bench.serve.engine import TOKENS, Engine
from tests.bench.serve.pairs import QUESTIONS, arguments, folder_of, pair, serve, write_model
from tests.bench.small_run import lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    write_model(folder)
    return folder


@pytest.mark.parametrize(
    ("dialect", "prompt", "path"),
    [
        ("vllm", "ids", "/v1/completions"),
        ("vllm", "chat", "/v1/chat/completions"),
        ("llama_cpp", "ids", "/completion"),
        ("llama_cpp", "chat", "/v1/chat/completions"),
        ("sglang", "ids", "/generate"),
        ("openai", "ids", "/v1/completions"),
    ],
)
def test_both_servers_get_the_same_prompts_and_answers_are_equal(
    model: Path, tmp_path: Path, dialect: str, prompt: str, path: str
) -> None:
    ours, theirs = pair(dialect)
    assert serve(model, tmp_path, ours, theirs, server__prompt=prompt) == 0
    records = read_records(folder_of(tmp_path))
    assert records.info["servers"]["speculative"]["engine"] == dialect
    assert {one["path"] for one in ours.asked + theirs.asked} == {path}
    turns = sum(len(question["turns"]) for question in QUESTIONS)
    assert len(records.requests) == 2 * 2 * turns and {one["verdict"] for one in records.verdicts} == {"equal"}
    hashes: dict[Any, set[str]] = {}
    for line in records.requests:
        hashes.setdefault((line["question_id"], line["turn"]), set()).add(line["prompt_sha256"])
        assert line["new_tokens"] == TOKENS and not line["miscounted"] and line["ttft_s"] <= line["wall_s"]
        assert len(line["times_s"]) == (TOKENS if line["side"] == "baseline" else 5)
        if prompt == "ids" and dialect != "openai":
            assert line["counts"] == ([1] * TOKENS if line["side"] == "baseline" else [1, 3, 3, 3, 2])
            assert len(line["token_ids"]) == TOKENS
    assert all(len(found) == 1 for found in hashes.values())


@pytest.mark.parametrize(
    ("dialect", "per_request", "source", "ctar"),
    [
        ("vllm", True, "answers", [1.0, 0.75, 0.0]),
        ("vllm", False, "counters", [1.0, 1.0, 0.0]),
        ("sglang", False, "answers", [None] * 3),
        ("llama_cpp", False, "answers", [None] * 3),
        ("openai", False, None, [None] * 3),
    ],
)
def test_acceptance_is_what_each_engine_tells(
    model: Path, tmp_path: Path, dialect: str, per_request: bool, source: str | None, ctar: list[float | None]
) -> None:
    """An answer of 12 tokens: the prefill's, three steps of 3 and one of 2, whose third token counters have as well."""
    ours, theirs = pair(dialect, per_request=per_request)
    assert serve(model, tmp_path, ours, theirs, concurrency=1, limit=1, warmup=False) == 0
    (row,) = json.loads((folder_of(tmp_path) / "metrics.json").read_text())["levels"]
    assert row["acceptance_from"] == source and row["foreign_tokens"] == (0 if dialect == "vllm" else None)
    assert row["cr"] == (source and pytest.approx(11 / 4)) and row["ctar"][:3] == ctar
    assert row["draft_acceptance"] == (source and pytest.approx(7 / 16))


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"role": "assistant", "content": ""}, ""),
        ({"reasoning": "Hm, "}, "Hm, "),
        ({"reasoning_content": "Hm, ", "content": None}, "Hm, "),
        ({"reasoning": "Hm, ", "reasoning_content": "Hm, ", "content": "yes"}, "Hm, yes"),
    ],
)
def test_what_a_model_thinks_aloud_is_part_of_its_answer(delta: dict[str, Any], text: str) -> None:
    """It was waited for as the rest was: else the first token would seem to come late, and all at once."""
    assert DIALECTS["vllm"].read({"choices": [{"index": 0, "delta": delta}]}).text == text


def test_greedy_and_sampled_requests_and_caches_are_said_to_each_engine(model: Path, tmp_path: Path) -> None:
    for number, (dialect, temperature) in enumerate((d, t) for d in ("vllm", "llama_cpp", "sglang") for t in (0, 0.7)):
        ours, theirs = pair(dialect)
        assert serve(model, tmp_path / str(number), ours, theirs, temperature=temperature, seed=3, limit=1) == 0
        body = ours.asked[0]
        sampling = body.get("sampling_params", body)
        assert sampling["temperature"] == temperature
        if temperature:
            assert sampling.get("seed", sampling.get("sampling_seed")) == 3 and sampling.get("top_p", 1.0) == 1.0
            assert not read_records(folder_of(tmp_path / str(number))).verdicts
        assert body.get("cache_prompt", False) is False
        for name in {"vllm": ("cache_salt",), "sglang": ("cache_salt", "extra_key")}.get(dialect, ()):
            salts = [one[name] for one in ours.asked]
            assert len({*salts}) == len(salts) > 1


@pytest.mark.parametrize(("dialect", "everything"), [("vllm", -1), ("sglang", -1), ("llama_cpp", 0)])
def test_temperature_alone_shapes_a_sampled_conversation(dialect: str, everything: int) -> None:
    """Engines, or the model's own files, have other defaults."""
    asked = Request("m", [{"role": "user", "content": "w1"}], 4, temperature=0.7, seed=3)
    body = DIALECTS[dialect].body(asked)
    assert (body["top_p"], body["top_k"], body["min_p"], body["seed"]) == (1.0, everything, 0.0, 3)


@pytest.mark.parametrize(("cache", "salted"), [(False, True), (True, False)])
def test_sglangs_conversations_are_kept_apart_too(model: Path, tmp_path: Path, cache: bool, salted: bool) -> None:
    ours, theirs = pair("sglang")
    more = {"server__prompt": "chat", "server__cache": cache, "server__extra": "{priority: 2}"}
    assert serve(model, tmp_path, ours, theirs, limit=1, concurrency=1, **more) == 0
    assert all(("extra_key" in one) is ("cache_salt" in one) is salted for one in ours.asked + theirs.asked)
    assert {one["priority"] for one in ours.asked} == {2}


def test_sglang_may_repeat_the_answer_in_each_event_or_not(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair("sglang", incremental=True)
    assert serve(model, tmp_path, ours, theirs, limit=1, concurrency=1) == 0
    records = read_records(folder_of(tmp_path))
    texts = {(line["question_id"], line["turn"], line["text"]) for line in records.requests}
    assert len(texts) == len(records.requests) / 2  # one text of both servers to each turn
    for line in records.requests:
        assert len(line["token_ids"]) == TOKENS and not line["miscounted"]
        assert line["counts"] == ([1, 3, 3, 3, 2] if line["side"] == "speculative" else [1] * TOKENS)
    assert records.info["servers"]["speculative"]["version"] == "0.32.0"  # of /server_info


def test_as_many_requests_as_the_level_are_under_way(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair(token_s=0.002)
    theirs.token_s = 0.002
    assert serve(model, tmp_path, ours, theirs, concurrency="3,1", warmup=False) == 0
    assert ours.most == theirs.most == 3


def test_who_goes_first_alternates_and_is_warm(model: Path, tmp_path: Path) -> None:
    assert serve(model, tmp_path, *pair(), concurrency=1, block=2) == 0
    done = lines(folder_of(tmp_path) / "blocks.jsonl")
    order = [(0, "s"), (0, "b"), (1, "b"), (1, "s"), (2, "s"), (2, "b")]
    assert [(one["block"], one["side"][0]) for one in done] == order
    assert [one["unrecorded"] for one in done] == [True, True, False, False, False, False]


def test_every_level_asks_all_questions_in_the_same_order() -> None:
    questions = [Question(number, "qa", "qa", ("w1",)) for number in range(10)]
    for size, counts in ((None, {1: [4, 4, 2], 4: [10]}), (3, {1: [3, 3, 3, 1], 4: [3, 3, 4]})):
        found = blocks_of(questions, SimpleNamespace(levels=[1, 4], block=size, repeats=2))  # type: ignore[arg-type]
        for level, sizes in counts.items():
            for repeat in (0, 1):
                mine = [block for block in found if (block.level, block.repeat) == (level, repeat)]
                assert [len(block.questions) for block in mine] == sizes
                assert [q.question_id for block in mine for q in block.questions] == list(range(10))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "HTTP 500: out of memory"),
        ("hang", "no whole answer within 0.3 s"),
        ("half", "half an answer: the stream ended after"),
        ("cut", "half an answer"),
        ("error", "the server broke off: cache is full"),
        ("model", "the answer is model another's; asked was tiny"),
    ],
)
def test_a_bad_answer_is_a_failed_request_and_only_bad_ones_end_the_run(
    model: Path, tmp_path: Path, capsys: Any, fault: str, said: str
) -> None:
    """A server that answers nothing ends it in one line; one bad answer is left out of both sides."""
    more = {"server__timeout_s": 0.3 if fault == "hang" else 30, "concurrency": 2, "warmup": False}
    assert serve(model, tmp_path / "all", *pair(fault=fault), **more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("server.url=http://127") and "no request was answered: " in error and said in error
    ours, theirs = pair(fault=fault, at=9)
    assert serve(model, tmp_path / "one", ours, theirs, **more) == 1
    records = read_records(folder_of(tmp_path / "one"))
    assert [said in one["error"] for one in records.requests if one["status"] == "failed"] == [True]
    row = json.loads((records.folder / "metrics.json").read_text())["levels"][0]
    assert (row["failed"], row["questions"]) == (1, len(QUESTIONS) - 1)


def test_ids_and_a_count_that_disagree_are_said(model: Path, tmp_path: Path, capsys: Any) -> None:
    assert serve(model, tmp_path, *pair(fault="count"), concurrency=1) == 0
    assert "with another number of token ids than the server counted" in capsys.readouterr().out


def test_a_wrong_server_is_one_line(model: Path, tmp_path: Path, capsys: Any) -> None:
    def said(ours: Engine, theirs: Engine, **more: Any) -> str:
        assert serve(model, tmp_path, ours, theirs, **more) == 2
        return str(capsys.readouterr().err.strip())

    assert "it serves other, server.url serves tiny" in said(Engine(), Engine(model="other"))
    assert "it is sglang, server.url is vllm" in said(Engine(), Engine("sglang"))
    assert "server.model=big: http" in said(Engine(), Engine(), server__model="big")
    dead = arguments(model, tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    assert main(dead) == 2
    assert "server.url=http://127.0.0.1:9: nobody listens" in capsys.readouterr().err
    assert main([*dead, "server.launch=x"]) == 2
    assert "server.url, server.launch: both given; wanted: one of the two" in capsys.readouterr().err
    assert main([*dead, "concurrency=[]"]) == 2 and "concurrency=[]: must be numbers" in capsys.readouterr().err
    for levels in ("1,", "1,two", "1,[2]"):
        assert main([*dead, f"concurrency={levels}"]) == 2
        assert capsys.readouterr().err.startswith(f"concurrency={levels}: must be numbers from 1, each once, such as")
    for url in ("http://a:port", "http://", "ftp://a", "http://a:99999"):
        assert main([*dead, f"server.url={url}"]) == 2
        assert f"server.url={url}: wanted: http://HOST:PORT" in capsys.readouterr().err


def test_a_key_comes_from_the_environment(model: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    assert serve(model, tmp_path, Engine(key="s3cret"), Engine(), limit=1) == 2
    assert "HTTP 401: who are you?" in capsys.readouterr().err
    monkeypatch.setenv("SERVER_KEY", "s3cret")
    assert serve(model, tmp_path, Engine(key="s3cret"), Engine(), limit=1, server__key="SERVER_KEY") == 0
    assert "s3cret" not in (folder_of(tmp_path) / "run.json").read_text()


def test_another_version_of_a_server_is_another_run(model: Path, tmp_path: Path, capsys: Any) -> None:
    ours, theirs = pair()
    with theirs.running():
        for release, folders in (("0.32.0", 1), ("0.32.0", 1), ("0.33.0", 2)):
            ours.release = release
            with ours.running():
                assert main(arguments(model, tmp_path, ours.url, theirs.url, limit=1, concurrency=1)) == 0
            assert len(list(tmp_path.glob("serve/*/*/*/run.json"))) == folders
    assert "not continuing" in (error := capsys.readouterr().err) and "0.33.0" in error
    assert len(theirs.asked) == 2 * (1 + 3)  # the warm-up and three turns, twice; the second time nothing


def test_the_cards_beside_a_launched_server_are_recorded(tmp_path: Path, monkeypatch: Any) -> None:
    """And another card is another run; of a server at a URL nothing is known."""
    from bench.config import installed
    from bench.records.identity import change
    from bench.serve.session import _information
    from bench.types import settings_of

    said = "\\n".join(["550.54, 81559 MiB, Card A"] * 2 + ["550.54, 40960 MiB, Card, B"])
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (file := tmp_path / "q.jsonl").write_text("")
    found = {}
    for name, place in (("launch", "serve --port {port}"), ("url", "http://a")):
        given = ["model.path=m", f"server.{name}='{place}'", f"server.baseline_{name}='{place}'"]
        settings = settings_of(Serve, installed().compose("serve", given).values)
        found[name] = _information(settings, "", file)
    assert found["launch"]["gpu"] == "2 × Card A, 81559 MiB; 1 × Card, B, 40960 MiB"
    assert found["launch"]["driver"] == "550.54" and found["url"]["gpu"] is found["url"]["driver"] is None
    assert "gpu was" in str(change(found["launch"], found["url"]))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices were found\n")
    assert (
        _information(
            settings_of(
                Serve,
                installed()
                .compose("serve", ["model.path=m", "server.launch='x {port}'", "server.baseline_url=http://a"])
                .values,
            ),
            "",
            file,
        )["gpu"]
        is None
    )


def test_other_names_of_one_model_can_be_said(model: Path, tmp_path: Path) -> None:
    ours, theirs = Engine(speculative=True), Engine(model="other")
    assert serve(model, tmp_path, ours, theirs, server__baseline_model="other", limit=1) == 0
    assert {one["model"] for one in theirs.asked} == {"other"}


def test_of_several_models_one_must_be_said(model: Path, tmp_path: Path, capsys: Any) -> None:
    ours, theirs = Engine(speculative=True), Engine(others=("lora",))
    assert serve(model, tmp_path, ours, theirs, limit=1) == 2
    assert "serves tiny, lora; server.baseline_model=NAME chooses one" in capsys.readouterr().err
    assert serve(model, tmp_path, ours, theirs, server__baseline_model="tiny", limit=1) == 0


@pytest.mark.parametrize(("margin", "verdict"), [(0.01, "near_tie"), (3.0, "divergent")])
def test_a_first_difference_is_judged_by_the_plain_servers_two_best_tokens(
    model: Path, tmp_path: Path, margin: float, verdict: str
) -> None:
    ours, theirs = pair(other_from=4)
    theirs.margin = margin
    status = serve(model, tmp_path, ours, theirs, concurrency=1, limit=2)
    (found,) = {(one["verdict"], one["position"], one["unit"]) for one in read_records(folder_of(tmp_path)).verdicts}
    assert found == (verdict, 4, "token") and status == (verdict == "divergent")


def test_what_a_near_tie_asks_of_the_plain_server_is_in_no_record_and_told(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair(other_from=4)
    theirs.margin = 0.01
    assert serve(model, tmp_path, ours, theirs, concurrency=1, block=1, limit=2) == 0
    done = [(one["side"], one["unrecorded"]) for one in lines(folder_of(tmp_path) / "blocks.jsonl")]
    assert len(done) > 2 and {*done[2:]} == {("baseline", True), ("speculative", False)}


def test_without_token_ids_a_difference_is_divergent(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair("openai", other_from=4)
    theirs.margin = 0.0
    assert serve(model, tmp_path, ours, theirs, concurrency=1, limit=1) == 1
    assert {one["verdict"] for one in read_records(folder_of(tmp_path)).verdicts} == {"divergent"}


def test_settings_of_another_kind_are_refused() -> None:
    from bench.config import installed
    from bench.types import settings_of

    for text, said in (("server.key=NOT_THERE", "no such environment variable"), ("server.timeout_s=0", "above 0")):
        given = ["server.url=http://a", "server.baseline_url=http://b", "model.path=m", text]
        with pytest.raises(UserError, match=said):
            settings_of(Serve, installed().compose("serve", given).values)


def test_a_conversations_system_prompt_and_arguments_reach_the_servers_template(model: Path, tmp_path: Path) -> None:
    ours, theirs = pair()
    more = {"model.path": "org/big", "model.system_prompt": "Be brief.", "server.prompt": "chat", "limit": 1}
    more |= {"model.template_arguments": "{thinking: false}", "server.extra": "{min_tokens: 3}"}
    assert serve(model, tmp_path, ours, theirs, **more) == 0
    body = theirs.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["messages"][1]["role"] == "user"
    assert body["chat_template_kwargs"] == {"thinking": False} and body["min_tokens"] == 3
    info = read_records(folder_of(tmp_path)).info
    assert (info["model"], info["demonstration"]) == ("big", False)
    assert serve(model, tmp_path, ours, theirs, **more, **{"model.chat_template": "vicuna_v1.1"}) == 2
