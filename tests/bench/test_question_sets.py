"""Question sets that are fetched: from an address, or from the hub, once and checked."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bench.config import installed
from bench.questions.sets import find
from bench.settings import Run
from bench.sources import cached_file
from methods.errors import UserError
from tests.bench.test_questions import COMMIT, GOOD, WHO, in_set, read, written


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speculative-bench"


def test_downloads_are_checked_cached_and_never_trusted(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path / "source.jsonl", GOOD)
    url, right = source.as_uri(), hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"^questions.source=file:.* sha256 .* wanted 0000.*give data.path="):
        find(in_set(url, "0" * 64), None)
    assert not cache.exists()
    file = find(in_set(url, right), None)
    assert cache in file.parents and file.name == "source.jsonl" and not capsys.readouterr().err
    source.unlink()
    assert find(in_set(url), None) == find(in_set(url, right), None) == file
    assert f"questions.sha256={right} keeps to this one" in capsys.readouterr().err
    file.write_text("changed")
    with pytest.raises(UserError, match=r"cannot be reached .*give data.path="):
        find(in_set(url, right), None)
    written(cached_file(), GOOD)
    assert find(in_set(url, right), None) == cached_file(), "what an older version downloaded is not fetched again"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/q", "nothing://x", "https://a b/", "http://[", "file:///none"])
def test_addresses_without_an_answer_are_one_line(cache: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"^questions.source=.*: cannot be reached \(.*give data.path=") as caught:
        find(in_set(url), None)
    assert "\n" not in str(caught.value)


def test_a_path_given_wins_and_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "q.jsonl", GOOD)
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert find(in_set(file, right), None) == find(in_set("/none", "0" * 64), str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find(in_set("~/q.jsonl"), None) == find(in_set(), "~/q.jsonl") == file
    with pytest.raises(UserError, match=f"has sha256 {right}, wanted 0000"):
        find(in_set(file, "0" * 64), None)
    os.mkfifo(tmp_path / "fifo")
    for source, message in ((tmp_path, "not a file"), (tmp_path / "fifo", "not a file"), ("/none", "No such file")):
        with pytest.raises(UserError, match=f"^questions.source={source}: .*{message}"):
            find(in_set(source), None)


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hugging Face hub that a download needs."""

    files: ClassVar = {"README.md": b"", "main/test.jsonl": json.dumps(GOOD).encode(), "main/train.jsonl": b"{}"}

    def do_GET(self) -> None:
        dataset, _, name = self.path.partition("/resolve/")
        body = self.files.get(name.partition("/")[2], b"")
        if self.path.startswith("/api/datasets/owner/"):
            names = [name for name in self.files if "many" in dataset or "train" not in name]
            listed = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            body = json.dumps(listed).encode()
        self.send_response(200 if body else 404)
        headers = {"Content-Length": str(len(body))}
        headers |= {"X-Repo-Commit": COMMIT, "ETag": '"1"'} if body else {"X-Error-Code": "EntryNotFound"}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        for name, value in (("ENDPOINT", endpoint), ("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", False)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_dataset_of_the_hub_is_fetched_and_its_commit_named(
    hub: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    file = find(in_set("owner/name"), None)
    assert read(file) == [WHO]
    assert f"questions.revision={COMMIT} keeps to this one" in capsys.readouterr().err
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert find(in_set("owner/name/main/test.jsonl", digest), None) == file
    assert "keeps to" not in capsys.readouterr().err, "of a file that is checked nothing else can come"
    for source, message in (
        ("owner/many", "has 2 files; wanted: .*, as owner/many/FILE: main/test.jsonl, main/train.jsonl"),
        ("owner/name/other", "not to be had from the hub .*404"),
        ("missing/name", "not to be had from the hub .*404"),
    ):
        with pytest.raises(UserError, match=f"^questions.source={source}: .*{message}"):
            find(in_set(source), None)
    hub.shutdown()
    hub.server_close()
    pinned = in_set("owner/name/main/test.jsonl", revision=COMMIT)
    assert find(pinned, None) == file and "keeps to" not in capsys.readouterr().err
    assert find(in_set("owner/name/main/test.jsonl"), None) == file, "what was fetched once is measured without the hub"
    with pytest.raises(UserError, match="no such file, and not to be had from the hub") as caught:
        find(in_set("owner/other"), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["", *(f"_throughput_{size}k" for size in (1, 2, 8, 16, 32))])
def test_speed_benchs_splits_are_pinned_files_and_one_line_without_the_hub(
    hub: ThreadingHTTPServer, split: str
) -> None:
    found = Run.of(installed().compose("config", [f"questions=speed_bench{split}"])).questions
    folder = split.removeprefix("_") or "qualitative"
    assert found.name == f"speed_bench{split}" and found.revision is not None and len(found.revision) == 40
    with pytest.raises(UserError) as caught:
        find(found, None)
    said = f"questions.source=nvidia/SPEED-Bench/{folder}/test-00000-of-00001.parquet: no such file, and not to be had"
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
