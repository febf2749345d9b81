"""Digests: always the file's own, read from the disk only when it may have changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from bench import digests
from bench.digests import LARGE_BYTES, sha256
from methods.errors import UserError


def large(file: Path, letter: bytes, age_s: int = 60) -> str:
    content = letter * LARGE_BYTES
    file.write_bytes(content)
    changed = file.stat().st_mtime - age_s
    os.utime(file, (changed, changed))
    return hashlib.sha256(content).hexdigest()


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch) -> None:
    file, cache = tmp_path / "weights", tmp_path / "deep" / "cache.json"
    digest = large(file, b"a")
    assert sha256(file, cache) == digest
    monkeypatch.setattr(digests, "file_sha256", lambda file: "read")
    link = tmp_path / "link"
    link.symlink_to(file)
    assert sha256(link, cache) == digest
    large(file, b"b", age_s=120)
    assert sha256(file, cache) == "read"
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_small_files_and_files_of_this_moment_are_always_read(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache.json"
    for letter in (b"a", b"b"):
        digest = large(file, letter, age_s=0)
        assert sha256(file, cache) == digest
        file.write_bytes(letter)
        assert sha256(file, cache) == hashlib.sha256(letter).hexdigest()
    assert not cache.exists()


@pytest.mark.parametrize("broken", ["", "{", "[1]", "[" * 5000, '{"PATH": 5}', '{"PATH": {"seen": SEEN}}'])
def test_a_broken_cache_is_none(tmp_path: Path, broken: str) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache.json"
    digest, facts = large(file, b"a"), file.stat()
    seen = json.dumps([facts.st_size, facts.st_mtime_ns])
    cache.write_text(broken.replace("PATH", str(file)).replace("SEEN", seen))
    assert sha256(file, cache) == digest
    assert json.loads(cache.read_text())[str(file)]["sha256"] == digest


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    digest = large(tmp_path / "weights", b"a")
    assert sha256(tmp_path / "weights", tmp_path / "weights" / "cache.json") == digest


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path / 'none'}: cannot be read \(No such file or directory\)$"):
        sha256(tmp_path / "none")
