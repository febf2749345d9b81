"""A datastore's file: found whole or refused in one line, looked up without being read into memory."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.datastore import FILE_NAME, Datastore
from methods.errors import UserError
from tests.methods.test_rest import rest, tokenizer_folder, write_datastore
from tests.tiny import tiny_llama


def test_ids_beyond_16_and_17_bits(tmp_path: Path) -> None:
    """Truncated to 16 bits the ids of the second document would be those of the first."""
    tokenizer = tokenizer_folder(tmp_path)
    low, high = [3, 4, 5, 6], [3 + (1 << 16), 4 + (1 << 20), 5 + (3 << 18), 6 + (1 << 16)]
    datastore = Datastore(write_datastore(tmp_path, [low, high, low[1:]], tokenizer))
    for document, places in ((low, 2), (high, 1)):
        match = datastore.longest_match(document[:3], range(2, 17))
        assert match is not None and match[0] == 3
        assert datastore.candidates(*match, depth=10, occurrences=9, nodes=64).tokens.tolist() == [document[3]]
        span, start, stop = datastore.longest_match(document[1:3], range(2, 17)) or (0, 0, 0)
        assert (span, stop - start) == (2, places)
    assert datastore.longest_match([low[0], high[1]], range(2, 17)) is None


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_datastore(tmp_path: Path) -> None:
    """Anonymous memory is the same for a large file, and five lookups bring in a small part of it from the disk.

    What is resident of a file that was in the system's cache before says nothing: the kernel maps large pieces of it.
    """
    program = """
import os, random, re, sys
from pathlib import Path
from methods.datastore import FILE_NAME, Datastore
def figure(file, name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self", file).read_text())[1])
before = figure("status", "RssAnon")
store = Datastore(Path(sys.argv[1]))
with Path(sys.argv[1], FILE_NAME).open("rb") as file:  # what was read for its checksum: out of the cache again
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
read_before = figure("io", "read_bytes")
for number in range(50):
    match = store.longest_match([random.randrange(3, 900) for _ in range(16)], range(2, 17))
    if match:
        store.candidates(*match, depth=10, occurrences=5000, nodes=64)
    if number == 4:
        read = figure("io", "read_bytes") - read_before
print(figure("status", "RssAnon") - before, read)
"""
    tokenizer, text = tokenizer_folder(tmp_path), np.random.default_rng(0)
    anonymous_kib, read_bytes, size_bytes = [], [], []
    for millions in (0.05, 2):
        folder = tmp_path / str(millions)
        write_datastore(folder, [text.integers(3, 900, int(millions * 1e6))], tokenizer)
        output = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
        figures = [int(word) for word in output.stdout.split()]
        anonymous_kib.append(figures[0])
        read_bytes.append(figures[1])
        size_bytes.append((folder / FILE_NAME).stat().st_size)
    assert anonymous_kib[1] - anonymous_kib[0] < 2_000 < size_bytes[1] / 1024 / 7
    assert read_bytes[1] < size_bytes[1] / 2


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    changes = {
        "empty": lambda: b"",
        "short": lambda: content[:5],
        "header only": lambda: content[:300],
        "truncated": lambda: content[:-7],
        "text": lambda: b"Once upon a time there was a fox named Reynard.\n" * 20,
        "json": lambda: b'{"conversations": []}' * 20,
        "version": lambda: content.replace(b'"version":"2"', b'"version":"1"'),
        "format": lambda: content.replace(b"rest-datastore", b"nest-datastore"),
        "other tensors": lambda: content.replace(b'"suffixes"', b'"suffixed"'),
        "dtype": lambda: content.replace(b'"I32"', b'"F32"'),
        "no separator": lambda: content.replace(b"\x7f\xff\xff\xff", b"\x00\x00\x00\x07"),
        "shape": lambda: content.replace(b'"shape":[7]', b'"shape":[6]'),
    }
    path.write_bytes(changes[how]())
    assert path.read_bytes() != content


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "the file is empty"),
        ("short", "not a REST datastore"),
        ("header only", "not a REST datastore|truncated"),
        ("truncated", r"truncated, \d+ of \d+ bytes; build it again"),
        ("text", "not a REST datastore; bench.train method=rest writes one"),
        ("json", "not a REST datastore"),
        ("version", "rest-datastore version 1; valid: rest-datastore version 2; build it again"),
        ("format", "nest-datastore version 2; valid: rest-datastore version 2; build it again"),
        ("other tensors", "not a REST datastore"),
        ("dtype", "not a REST datastore"),
        ("no separator", "damaged, its checksum is another; build it again"),
        ("shape", "not a REST datastore"),
    ],
)
def test_files_that_are_no_datastore_are_refused_in_one_line(tmp_path: Path, how: str, message: str) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    damaged(write_datastore(tmp_path, [[3, 4, 5], [6, 7]], tokenizer) / FILE_NAME, how)
    with pytest.raises(UserError, match=f"method.datastore=.*{message}") as error:
        rest(tiny_llama(), tmp_path, tokenizer)
    assert "\n" not in str(error.value)


def test_a_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    file = write_datastore(tmp_path, [[3, 4, 5]], tokenizer_folder(tmp_path)) / FILE_NAME
    assert Datastore(file.rename(tmp_path / "other.safetensors")).largest == 5


def test_a_target_without_a_folder_is_refused(tmp_path: Path) -> None:
    datastore = Datastore(write_datastore(tmp_path, [[3, 4, 5]], tokenizer_folder(tmp_path)))
    with pytest.raises(UserError, match="the target has no folder whose tokenizer could be compared"):
        datastore.fit(tiny_llama())


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    file = write_datastore(tmp_path, [[3, 4, 5], [6, 7]], tokenizer) / FILE_NAME
    whole = file.read_bytes()
    rest(tiny_llama(), tmp_path, tokenizer)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"method\.datastore="):
            Datastore(tmp_path)


def test_a_killed_write_leaves_nothing_behind_the_next(tmp_path: Path) -> None:
    left = tmp_path / f".{FILE_NAME}.ab12cd34.partial"
    left.mkdir()
    (left / ".lock").touch()
    (left / ".tmpAbc12").write_bytes(b"half a datastore")
    write_datastore(tmp_path, [[3, 4, 5]], tokenizer_folder(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [FILE_NAME, "tokenizer.json"]


def test_a_file_that_may_not_be_read_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datastore = write_datastore(tmp_path, [[3, 4, 5]], tokenizer_folder(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:  # the file's mode would not keep root from reading it
        raise PermissionError(errno.EACCES, "Permission denied")

    for opened in ("open", "stat"):
        with monkeypatch.context() as patched, pytest.raises(UserError) as error:
            patched.setattr(Path, opened, refuse)
            Datastore(datastore)
        assert str(error.value) == f"method.datastore={datastore}: cannot be read (Permission denied)"
