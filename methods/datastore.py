"""REST's datastores: token sequences with their suffix array in one memory-mapped file, and lookups in them.

A datastore is one safetensors file: `tokens` [n, 4] uint8, the ids as big-endian int32, so that comparing bytes is
comparing tokens; `suffixes` [n] int32 or int64, the positions in the order of what follows them. Every document ends
with SEPARATOR. The file carries its own checksum, looked at once a process. It is memory-mapped: a lookup reads a few
hundred places of it, in pages that the system may take back. Anonymous memory, the process's own, does not grow with
the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.engine.llama import Llama
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError

FORMAT, VERSION = "rest-datastore", "2"
CHECKSUM = "sha256"  # of the file, with zeros in its own place
FILE_NAME = "rest.safetensors"  # of a datastore whose folder is given
SEPARATOR = 2**31 - 1  # no token has this id, so no context matches across the end of a document


@dataclass(frozen=True)
class Candidates:
    """Draft nodes, parents before children: the most frequent first."""

    tokens: NDArray[np.int64]  # [n]
    parents: NDArray[np.int64]  # [n] index of the parent, -1 for a node after the pending token


class Datastore:
    """Token sequences with their suffix array, memory-mapped. Raises UserError for a file that is not one.

    key: the setting that names it.
    """

    def __init__(self, path: Path, key: str = "method.datastore") -> None:
        self.name = f"{key}={path}"
        try:
            self._open(path / FILE_NAME if path.is_dir() else path)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror})") from error

    def _open(self, path: Path) -> None:
        if not path.is_file():
            build = "build one: python -m bench.train method=rest model=... data.path=... output=..."
            raise UserError(f"{self.name}: no such file; {build}")
        self.path, self.size_bytes = path, path.stat().st_size
        header, base = _header(path, self.name)
        try:
            facts, tokens, suffixes = header["__metadata__"], header["tokens"], header["suffixes"]
            if (facts["format"], facts["version"]) != (FORMAT, VERSION):
                found = f"{facts['format']} version {facts['version']}"
                raise UserError(f"{self.name}: {found}; valid: {FORMAT} version {VERSION}; build it again")
            self.vocabulary = Vocabulary(int(facts["tokenizer_size"]), facts["tokenizer_sha256"])
            self.largest = int(facts["largest_token"])
            self.length = int(suffixes["shape"][0])
            self._tokens_at, tokens_end = (base + at for at in tokens["data_offsets"])
            suffixes_at, suffixes_end = (base + at for at in suffixes["data_offsets"])
            kind = np.dtype({"I32": "<i4", "I64": "<i8"}[suffixes["dtype"]])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(_not_one(self.name)) from error
        wanted = max(tokens_end, suffixes_end)
        if wanted > self.size_bytes:
            raise UserError(f"{self.name}: truncated, {self.size_bytes} of {wanted} bytes; build it again")
        if self.length == 0:
            raise UserError(f"{self.name}: holds no tokens; build it again from text that is not empty")
        if (tokens_end - self._tokens_at, suffixes_end - suffixes_at) != (4 * self.length, kind.itemsize * self.length):
            raise UserError(_not_one(self.name))
        if not _is_whole(path, self.size_bytes, path.stat().st_mtime_ns):
            raise UserError(f"{self.name}: damaged, its checksum is another; build it again")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):  # else five lookups in 31 MB on a disk read all of it ahead, not 3 MB
            self._bytes.madvise(mmap.MADV_RANDOM)
        self._tokens = np.frombuffer(self._bytes, ">i4", self.length, self._tokens_at)
        self._suffixes = np.frombuffer(self._bytes, kind, self.length, suffixes_at)
        self._order = self._suffixes.data  # as Python integers, which one by one are faster than numpy's

    def fit(self, target: Llama) -> None:
        """Raises UserError unless it holds tokens of the target's own tokenizer, all of which the target knows."""
        if target.folder is None:
            raise UserError(f"{self.name}: the target has no folder whose tokenizer could be compared")
        own, vocab_size = Vocabulary.read(target.folder), target.config.vocab_size
        if self.vocabulary != own:
            raise UserError(
                f"{self.name}: made with another tokenizer ({self.vocabulary}), the model's is {target.folder} ({own})"
            )
        if self.largest >= vocab_size:
            raise UserError(f"{self.name}: holds token {self.largest}, the model's embedding has {vocab_size} rows")

    def longest_match(self, context: list[int], spans: range) -> tuple[int, int, int] | None:
        """(span, start, stop): the longest suffix of the context, within `spans`, that occurs, and its places.

        The places are suffixes[start:stop]. Whoever holds a text also holds the text's own end, so matching is
        monotone in the span and four searches find the longest of 15.
        """
        key = struct.pack(f">{len(context)}i", *context)
        shortest, longest = spans.start - 1, min(spans.stop - 1, len(context))
        first = 0
        while shortest < longest:
            span = (shortest + longest + 1) // 2
            wanted = key[-4 * span :]
            at = bisect_left(self._order, wanted, key=partial(self._text, width=4 * span))
            if at < self.length and self._text(self._order[at], 4 * span) == wanted:
                shortest, first = span, at
            else:
                longest = span - 1
        if shortest < spans.start:
            return None
        stop = bisect_right(self._order, key[-4 * shortest :], lo=first, key=partial(self._text, width=4 * shortest))
        return shortest, first, stop

    def candidates(self, span: int, start: int, stop: int, *, depth: int, occurrences: int, nodes: int) -> Candidates:
        """The `nodes` most frequent nodes of the prefix tree of what follows suffixes[start:stop] after `span` tokens.

        Continuations have up to `depth` tokens and end with their document. Of more than `occurrences` places evenly
        spread ones count. Among nodes of equal count the shallower comes first, then the one with smaller token ids.
        """
        found = stop - start
        count = min(found, occurrences)
        places = self._suffixes[start + np.arange(count) * found // count].astype(np.int64) + span
        at = np.minimum(places + np.arange(depth)[:, None], self.length - 1)
        text = self._tokens[at].astype(np.int32)  # [depth, count]; the suffix array has the columns in order
        # Equal beginnings stand side by side: a node is a run of columns that agree down to its depth.
        begins = np.ones(text.shape, dtype=bool)
        np.logical_or.accumulate(text[:, 1:] != text[:, :-1], axis=0, out=begins[:, 1:])
        runs = np.flatnonzero(begins)  # depth by depth
        counts = np.diff(runs, append=begins.size)
        ended = np.logical_or.accumulate(text == SEPARATOR, axis=0).reshape(-1)[runs]
        if ended.any():
            runs, counts = runs[~ended], counts[~ended]
        chosen = _most_frequent(counts, nodes)
        # A parent's run holds the child's column, is at least as long and lies one depth higher: it is chosen, earlier.
        parents = np.searchsorted(runs, runs[chosen] - count, side="right") - 1
        rank = np.full(len(runs) + 1, -1)
        rank[chosen] = np.arange(len(chosen))
        return Candidates(tokens=text.reshape(-1)[runs[chosen]].astype(np.int64), parents=rank[parents])

    def _text(self, place: int, width: int) -> bytes:
        """`width` bytes of tokens from a position; at the very end, of what follows in the file behind a separator."""
        at = self._tokens_at + 4 * place
        return self._bytes[at : at + width]


def _most_frequent(counts: NDArray[np.int64], nodes: int) -> NDArray[np.int64]:
    """Indices of the `nodes` highest counts, highest first, the earlier of equals first."""
    several = np.flatnonzero(counts > 1)
    if len(several) >= nodes:
        floor = np.partition(counts[several], -nodes)[-nodes]
        several = several[counts[several] >= floor]
    several = several[np.argsort(-counts[several], kind="stable")][:nodes]
    single = np.flatnonzero(counts == 1)[: nodes - len(several)]  # most nodes: not sorted
    return np.concatenate((several, single))


def seal(path: Path) -> None:
    """Put the checksum into a datastore that has zeros for it."""
    place, digest = _checksum(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(digest)


@lru_cache(maxsize=16)
def _is_whole(path: Path, size_bytes: int, changed_ns: int) -> bool:
    """Whether the checksum in the file is the file's. One look a process, as long as size and time stay the same."""
    place, digest = _checksum(path)
    with path.open("rb") as file:
        file.seek(place)
        return file.read(len(digest)) == digest


def _checksum(path: Path) -> tuple[int, bytes]:
    """Where in the file the checksum stands, and what it should be, in hexadecimal."""
    _, base = _header(path, str(path))
    with path.open("rb") as file:
        header = file.read(base)
        before, mark, after = header.partition(b'"%s":"' % CHECKSUM.encode())
        digest = hashlib.sha256(before + mark + b"0" * 64 + after[64:])
        return len(before + mark), hashlib.file_digest(file, lambda: digest).hexdigest().encode()


def _header(path: Path, name: str) -> tuple[dict[str, Any], int]:
    """JSON header of a safetensors file and where its data begin."""
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{name}: the file is empty; build it again")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        try:
            header = json.loads(file.read(length)) if length <= size - 8 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise UserError(_not_one(name))
    return header, 8 + length


def _not_one(name: str) -> str:
    return f"{name}: not a REST datastore; bench.train method=rest writes one"
