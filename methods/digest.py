"""SHA-256 of texts and files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(content: bytes | str) -> str:
    """Hexadecimal digest of bytes, or of a text as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(file: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
