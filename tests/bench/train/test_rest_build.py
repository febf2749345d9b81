"""Building REST datastores: what is read, how it is tokenised, how the suffixes are sorted."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers.processors import TemplateProcessing

from bench.config import installed
from bench.joey.__main__ import ASSETS, STAGES
from bench.settings import Run
from bench.train import rest
from bench.train.__main__ import main
from bench.train.rest import byte_code, suffix_array
from methods.datastore import FILE_NAME, SEPARATOR
from methods.digest import file_sha256
from methods.errors import UserError
from tests.bench.train.chat_model import NO_SYSTEM, SPECIAL, TEMPLATE, WORDS, tokenizer

IDS = {word: i for i, word in enumerate([*SPECIAL, *WORDS])} | {"|": SEPARATOR}
STORED = "<s> <user> w0 w1 <bot> w2 </s> | <s> <user> w3 <bot> w4 w5 </s> |"

SHIPPED = ASSETS / "rest.jsonl.gz"


def talk(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}


TALKS = [talk("w0 w1", "w2"), talk("w3", "w4 w5")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that writes BOS itself, with a template that writes it too."""
    folder, made = tmp_path_factory.mktemp("model"), tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", IDS["<s>"])])
    made.save_pretrained(folder)
    (folder / "no_system.jinja").write_text(NO_SYSTEM)
    (folder / "bare.jinja").write_text(TEMPLATE.replace("{{ bos_token }}", ""))
    return folder


def build(model: Path, data: Path, output: Path, *more: str) -> int:
    texts = [f"model.path={model}", f"data.path={data}", f"output={output}", *more]
    return main(["method=rest", "model=custom", *texts])


def stored(output: Path) -> tuple[list[int], list[int]]:
    """Tokens and suffixes of a datastore."""
    arrays = load_file(output / FILE_NAME)
    return arrays["tokens"].view(">i4").reshape(-1).tolist(), arrays["suffixes"].tolist()


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def as_list(records: list[Any]) -> str:
    return json.dumps(records)


def as_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


FILES = {
    "a.json": as_list(TALKS).encode(),
    "a.jsonl": as_lines(TALKS).encode(),
    "a.jsonl.gz": gzip.compress(as_lines(TALKS).encode()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("template", ["null", "bare.jinja"])
def test_conversations_become_documents_that_begin_with_one_bos(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, template: str
) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    template = template if template == "null" else str(model / template)
    assert build(model, tmp_path / name, tmp_path, f"model.chat_template={template}") == 0
    tokens, suffixes = stored(tmp_path)
    assert tokens == ids(STORED)
    assert suffixes == sorted(range(len(tokens)), key=lambda at: tokens[at:])
    assert "2 documents; 16 tokens" in capsys.readouterr().out


def test_a_text_file_is_one_document_without_special_tokens(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3 w1\n")
    assert build(model, tmp_path / "a.txt", tmp_path) == 0
    assert stored(tmp_path)[0] == ids("w1 w2 w3 w1 |")


def test_malformed_records_are_left_out_and_the_first_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(as_lines([TALKS[0], {"id": 1}, talk("w9")]) + "{broken\n" + as_lines(TALKS[1:]))
    assert build(model, tmp_path / "a.jsonl", tmp_path) == 0
    assert stored(tmp_path)[0] == ids(STORED)  # a question that nobody answers is neither stored nor malformed
    told = "2 documents, 2 malformed (first: line 2: no list under 'conversations'); 16 tokens"
    assert told in capsys.readouterr().out


def test_a_conversation_that_the_chat_template_refuses_is_malformed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"conversations": [{"from": "system", "value": "w9"}, *talk("w0", "w1")["conversations"]]}
    (tmp_path / "a.jsonl").write_text(as_lines([TALKS[0], refused, TALKS[1]]))
    assert build(model, tmp_path / "a.jsonl", tmp_path, f"model.chat_template={model / 'no_system.jinja'}") == 0
    assert stored(tmp_path)[0] == ids(STORED)
    said = capsys.readouterr().out
    assert "2 documents, 1 malformed (first: line 2: model.chat_template=" in said and "no system turn" in said


def test_only_the_first_conversations_are_read_up_to_the_limit(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(as_list(TALKS))
    assert build(model, tmp_path / "a.json", tmp_path, "data.limit=1") == 0
    assert stored(tmp_path)[0] == ids(STORED.partition("|")[0] + "|")


def skewed(symbols: int, seed: int = 0) -> NDArray[np.int32]:
    """Every symbol once, in any order, and as much text again of fifty frequent ones."""
    random = np.random.default_rng(seed)
    frequent = random.choice(symbols, 50, replace=False)
    text = np.concatenate((np.arange(symbols), random.choice(frequent, symbols)))
    return np.append(random.permutation(text), SEPARATOR).astype(np.int32)


@pytest.mark.parametrize(("symbols", "width"), [(200, 1), (3_000, 2), (70_000, 3)])
def test_suffixes_of_small_and_large_vocabularies_are_sorted_as_python_sorts(symbols: int, width: int) -> None:
    tokens = skewed(symbols)
    text = tokens.astype(">i4").tobytes()
    keys = [text[4 * at : 4 * at + 128] for at in range(len(tokens))]
    assert len(set(keys)) == len(keys), "keys of 32 tokens tell all suffixes apart"
    assert suffix_array(tokens).tolist() == sorted(range(len(tokens)), key=keys.__getitem__)
    counts = np.bincount(tokens[:-1])
    code, extra = byte_code(counts)
    written = [bytes(row[: 1 + more]) for row, more in zip(code, extra.tolist(), strict=True)]
    assert max(map(len, written)) == width and written == sorted(written)
    assert not any(after.startswith(before) for before, after in pairwise(written))


def test_more_symbols_than_three_bytes_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="16777217 different tokens: more than a code of three bytes holds"):
        byte_code(np.ones(2**24 + 1, dtype=np.int64))


def test_the_text_that_ships_for_joey_is_what_make_joey_writes(tmp_path: Path) -> None:
    STAGES["rest"](tmp_path, tmp_path, 0)
    written = tmp_path / SHIPPED.name
    assert gzip.decompress(written.read_bytes()) == gzip.decompress(SHIPPED.read_bytes())
    assert all(file.read_bytes()[4:8] == bytes(4) for file in (written, SHIPPED)), "no time is written"


def test_a_datastore_that_is_wanted_is_made_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "talks.jsonl.gz"
    text.write_bytes(gzip.compress(as_lines(TALKS).encode()))
    target = Run.of(installed().compose("config", ["model=custom", f"model.path={model}"])).model

    def prepared() -> Path:
        return rest.prepare(text=str(text), model=target, cache=tmp_path)

    first = prepared()
    assert first.name.startswith("talks-") and "2 documents; 16 tokens" in capsys.readouterr().out
    assert prepared() == first and not capsys.readouterr().out
    text.write_bytes(gzip.compress(as_lines(TALKS[:1]).encode()))
    assert prepared() != first
    text.write_bytes(gzip.compress(as_lines(TALKS[1:]).encode()))
    capsys.readouterr()
    with ThreadPoolExecutor() as several:  # as shards that begin together
        (file,) = {work.result() for work in [several.submit(prepared) for _ in range(4)]}
    assert file.is_file() and capsys.readouterr().out.count("1 document;") == 1
    text.unlink()
    os.mkfifo(text)
    with pytest.raises(UserError, match=r"^method\.datastore\.text=.*: not a file"):
        prepared()


def test_plain_text_that_is_no_file_is_not_opened(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert build(model, tmp_path / "a.txt", tmp_path) == 2
    assert "a.txt: not a file; a plain text file is wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("a.json", as_list(TALKS), ["data.limit=-1"], "data.limit=-1: must be an integer of at least 1"),
        ("a.json", as_list(TALKS), ["data.limit=0"], "data.limit=0: must be an integer of at least 1"),
        ("a.json", as_list(TALKS), ["data.limit=abc"], "data.limit=abc: must be an integer or null"),
        ("a.json", as_list(TALKS), ["data.path="], "data.path is missing: give a ShareGPT JSON or JSONL file"),
        ("a.json", "[]", [], "a.json: no text to store: 0 documents; ShareGPT JSON or JSONL is wanted, or plain text"),
        ("a.md", "Once.\nTwice.\n", [], "no text to store: 0 documents, 2 malformed (first: line 1: not valid JSON"),
        ("a.md", "Once.\n", [], "or plain text in a file whose name ends in .txt"),
        ("a.txt", "", [], "a.txt: no text to store: 0 documents;"),
        ("a.txt", "\udcff", [], "a.txt: not UTF-8 text; a plain text file is wanted"),
        (
            "a.json",
            as_list(TALKS),
            ["output=/proc/nowhere"],
            "output=/proc/nowhere: rest.safetensors cannot be written",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    changes: list[str],
    message: str,
) -> None:
    (tmp_path / name).write_text(content, errors="surrogateescape")
    assert build(model, tmp_path / name, tmp_path, *changes) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / FILE_NAME).exists()


def test_a_disk_that_is_full_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", fails)
    (tmp_path / "a.json").write_text(as_list(TALKS))
    assert build(model, tmp_path / "a.json", tmp_path) == 2
    assert "rest.safetensors cannot be written (I/O error: No space left" in capsys.readouterr().err


def test_a_large_text_is_announced_and_models_of_one_tokenizer_share_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "SMALL_BYTES", 10)
    (tmp_path / "talks.json").write_text(as_list(TALKS))
    shutil.copytree(model, tmp_path / "twin")  # as the larger Vicuna is beside the smaller
    (tmp_path / "twin" / "generation_config.json").write_text('{"transformers_version": "4.29.1"}')
    text, digest = str(tmp_path / "talks.json"), file_sha256(tmp_path / "talks.json")
    made = [
        rest.prepare(
            text=text,
            sha256=digest,
            cache=tmp_path / "cache",
            model=Run.of(installed().compose("config", ["model=custom", f"model.path={path}"])).model,
        )
        for path in (model, tmp_path / "twin")
    ]
    assert made[0] == made[1]
    told = "method.datastore: made once from talks.json, in about 1 minute; takes about 0.0 GB in"
    assert capsys.readouterr().err.count(told) == 1
    with pytest.raises(UserError, match=r"method\.datastore\.text=.*: has sha256 .*, wanted 00; build one"):
        rest.prepare(text=text, sha256="00", cache=tmp_path, model=Run.of(installed().compose("config", [])).model)
