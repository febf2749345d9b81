"""SHA-256 of files. That of a large one is kept, so that not every start reads all weights from the disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CACHE = Path("results") / ".cache" / "sha256.json"
LARGE_BYTES = 1 << 20  # a smaller file is read as quickly as looked up
SETTLED_S = 5  # a file written a moment ago could change once more without a later time of change


def sha256(file: Path, cache: Path | None = None) -> str:
    """Hexadecimal digest of a file, from the cache if path, size and time of change are the same as then."""
    cache, facts, path = cache or CACHE, file.stat(), str(file.resolve())
    seen = [facts.st_size, facts.st_mtime_ns]
    if facts.st_size < LARGE_BYTES:
        return _digest(file)
    entry = _read(cache).get(path)
    if isinstance(entry, dict) and entry.get("seen") == seen and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    digest = _digest(file)
    if time.time() - facts.st_mtime > SETTLED_S:
        _write(cache, {**_read(cache), path: {"seen": seen, "sha256": digest}})
    return digest


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(cache: Path) -> dict[str, Any]:
    """What is known; nothing when the cache is missing or broken."""
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(cache: Path, known: dict[str, Any]) -> None:
    with suppress(OSError):  # without a cache the next start takes longer, and that is all
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_name(f".{cache.name}.{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        os.replace(fresh, cache)
