"""SHA-256 of files. That of a large one is kept, so that not every start reads all weights from the disk."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from bench.files import replace_text
from methods.digest import file_sha256
from methods.errors import UserError

CACHE = Path("results") / ".cache" / "sha256.json"
LARGE_BYTES = 1 << 20  # a smaller file is read as quickly as looked up
SETTLED_S = 5  # a file written a moment ago could change once more without a later time of change


def sha256(file: Path, cache: Path | None = None) -> str:
    """Hexadecimal digest of a file, from the cache if path, size and time of change are the same as then.

    Raises UserError for a file that cannot be read.
    """
    try:
        return _kept(file, cache or CACHE)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def _kept(file: Path, cache: Path) -> str:
    facts, path = file.stat(), str(file.resolve())
    seen = [facts.st_size, facts.st_mtime_ns]
    if facts.st_size < LARGE_BYTES:
        return file_sha256(file)
    entry = _read(cache).get(path)
    if isinstance(entry, dict) and entry.get("seen") == seen and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    digest = file_sha256(file)
    if time.time() - facts.st_mtime > SETTLED_S:
        _write(cache, {**_read(cache), path: {"seen": seen, "sha256": digest}})
    return digest


def _read(cache: Path) -> dict[str, Any]:
    """What is known; nothing when the cache is missing or broken."""
    try:
        found = orjson.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(cache: Path, known: dict[str, Any]) -> None:
    with suppress(UserError):  # without a cache the next start takes longer, and that is all
        replace_text(cache, json.dumps(known, indent=1))
