"""From a Google Drive folder to the cache: gdown itself against a server of this machine, and what a user is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from methods.engine.hub import pending_bytes, resolve
from methods.errors import UserError
from tests.servers import GOOGLE, Drive, serving

ROOT, INNER, OTHER, DEEP, TWICE = "r" * 33, "i" * 33, "o" * 33, "p" * 33, "t" * 33
FOLDERS = {  # id -> (name, {entry: (id, is a folder)})
    ROOT: ("adapters", {"adapter-7b": (INNER, True), "other": (OTHER, True), "notes.txt": ("n" * 33, False)}),
    INNER: ("adapter-7b", {"config.json": ("c" * 33, False), "pytorch_model.bin": ("w" * 33, False)}),
    OTHER: ("other", {"config.json": ("d" * 33, False), "adapter-13b": (DEEP, True)}),
    DEEP: ("adapter-13b", {"config.json": ("e" * 33, False), "pytorch_model.bin": ("x" * 33, False)}),
    TWICE: ("twice", {"first": ("1" * 33, True), "second": ("2" * 33, True)}),
    "1" * 33: ("first", {"adapter-13b": (DEEP, True)}),
    "2" * 33: ("second", {"adapter-13b": (DEEP, True)}),
}


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """gdown's requests go to a server of this machine; the cache and the cookies lie in tmp_path."""
    pytest.importorskip("gdown", reason="gdown is not installed")
    import requests

    with serving(Drive, folders=FOLDERS) as served:
        get = requests.Session.get

        def redirected(self: Any, url: str, **settings: Any) -> Any:
            return get(self, url.replace(GOOGLE, served.address), **settings)

        monkeypatch.setattr(requests.Session, "get", redirected)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "*")
        yield served


def refusal(path: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(path, key="method.checkpoint")
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"method.checkpoint={path}: ")
    return message


def test_a_subfolder_is_fetched_once_and_alone(drive: Any, tmp_path: Path) -> None:
    assert pending_bytes(f"gdrive:{ROOT}/adapter-7b") is None
    folder = resolve(f"gdrive:{ROOT}/adapter-7b", key="method.checkpoint")
    assert pending_bytes(f"gdrive:{ROOT}/adapter-7b") == 0
    assert folder == tmp_path / "speculative-bench" / "gdrive" / ROOT / "adapter-7b"
    assert {file.name: file.read_text()[0] for file in folder.iterdir()} == {
        "config.json": "c",
        "pytorch_model.bin": "w",
    }
    assert resolve(f"gdrive:{ROOT}/adapter-7b/") == folder
    assert sorted(drive.fetched) == ["c", "w"]
    deeper = resolve(f"gdrive:{ROOT}/adapter-13b")  # the only one of that name, wherever it lies
    assert (deeper / "pytorch_model.bin").read_text() == DEEP.replace("p", "x")
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("inner", "why"),
    [
        ("/other", "what came is not whole: no weights"),
        ("/no-such", "not one folder no-such in it; there are: ., adapter-7b, other, other/adapter-13b"),
        ("", "what came is not whole: no config.json"),
    ],
)
def test_what_is_not_there(drive: Any, inner: str, why: str, tmp_path: Path) -> None:
    message = refusal(f"gdrive:{ROOT}{inner}")
    place = tmp_path / "speculative-bench" / "gdrive" / ROOT
    remedies = [f"https://drive.google.com/drive/folders/{ROOT}", f"into {place}{inner}", "bench.train method=kangaroo"]
    assert all(part in message for part in [why, *remedies]), message
    assert not (place / "config.json").exists()


@pytest.mark.parametrize(("inner", "wanted"), [("", "of files"), ("/adapter-13b", "adapter-13b")])
def test_none_and_several_folders_are_not_chosen_from(drive: Any, inner: str, wanted: str) -> None:
    there = "first/adapter-13b, second/adapter-13b"
    assert f"(not one folder {wanted} in it; there are: {there})" in refusal(f"gdrive:{TWICE}{inner}")
    folder = resolve(f"gdrive:{TWICE}/second/adapter-13b")
    assert folder.parts[-2:] == ("second", "adapter-13b") and (folder / "config.json").is_file()


def test_two_processes_fetch_a_folder_once(drive: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve, [f"gdrive:{ROOT}/adapter-7b"] * 2)
    assert first == second and sorted(drive.fetched) == ["c", "w"]


def test_a_folder_may_be_fetched_behind_one_that_lies_in_it(drive: Any) -> None:
    (inner := resolve(f"gdrive:{INNER}")).joinpath("deeper").mkdir()
    (inner / "config.json").unlink()
    assert resolve(f"gdrive:{INNER}") == inner and (inner / "config.json").is_file()


def test_the_configuration_takes_its_place_last(drive: Any, tmp_path: Path) -> None:
    """Without it, what was broken off behind the weights is not taken for whole."""
    place = tmp_path / "speculative-bench" / "gdrive" / ROOT / "adapter-7b"
    (place / "pytorch_model.bin" / "in the way").mkdir(parents=True)
    refusal(f"gdrive:{ROOT}/adapter-7b")
    assert not (place / "config.json").exists()


def test_a_full_quota_leaves_nothing_that_looks_whole(drive: Any, tmp_path: Path) -> None:
    drive.full = True
    path = f"gdrive:{ROOT}/adapter-7b"
    assert "Too many users" in refusal(path)
    drive.full = False
    assert resolve(path).is_dir()


def test_a_shard_that_is_not_in_the_folder(drive: Any, tmp_path: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    drive.contents = {"s" * 33: json.dumps({"weight_map": shards}).encode()}
    entries = {"config.json": "c", "model.safetensors.index.json": "s", shards["a"]: "w"}
    drive.folders = {ROOT: ("sharded", {name: (letter * 33, False) for name, letter in entries.items()})}
    message = refusal(f"gdrive:{ROOT}")
    assert "what came is not whole: " in message and f"names {shards['b']}, missing" in message
    assert not (tmp_path / "speculative-bench" / "gdrive" / ROOT / "config.json").exists()


@pytest.mark.parametrize(
    ("answer", "why"),
    [(lambda **_: None, "not one folder of files in it; there are: none"), (lambda **_: {}["x"], "'x'")],
)
def test_what_gdown_may_answer(drive: Any, answer: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdown.download_folder", answer)
    assert f"not fetched from Google Drive ({why})" in refusal(f"gdrive:{ROOT}")


def test_an_error_without_words_is_named(drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdown.download_folder", lambda **_: next(iter(())))
    assert "not fetched from Google Drive (StopIteration)" in refusal(f"gdrive:{ROOT}")


def test_without_gdown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", None)
    message = refusal(f"gdrive:{ROOT}/adapter-7b")
    assert "gdown is missing: pip install gdown" in message and f"folders/{ROOT} into " in message
    folder = tmp_path / "speculative-bench" / "gdrive" / ROOT / "adapter-7b"
    folder.mkdir(parents=True)
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_text("x")
    assert resolve(f"gdrive:{ROOT}/adapter-7b") == folder, "put there by hand"
    (folder / "pytorch_model.bin").write_text("")
    assert "gdown is missing" in refusal(f"gdrive:{ROOT}/adapter-7b"), "an empty file is not whole"
    (folder / "pytorch_model.bin").write_text("x")
    (folder / "more.bin.part").write_text("half")
    assert "gdown is missing" in refusal(f"gdrive:{ROOT}/adapter-7b"), "nor is one that a browser still fetches"


def test_the_cache_lies_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert f"into {tmp_path}/.cache/speculative-bench/gdrive/{ROOT}" in refusal(f"gdrive:{ROOT}")


@pytest.mark.parametrize(
    "path", ["gdrive:", "gdrive:a", f"gdrive:{ROOT}/..", f"gdrive:{ROOT}/a/../b", f"gdrive:{ROOT}//x"]
)
def test_names_that_are_none(path: str) -> None:
    assert "gdrive:FOLDER_ID/subfolder is wanted" in refusal(path) and pending_bytes(path) is None
