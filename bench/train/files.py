"""Writing files so that what was there stays readable until the new one is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from methods.errors import UserError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to the disk, then take its place.

    Raises UserError when the disk does not take it; whatever stood at `path` is then untouched.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    # torch.save reports a full disk as a RuntimeError of its zip writer.
    except (OSError, RuntimeError) as error:
        fresh.unlink(missing_ok=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        kept = "; the file that was there is untouched" if path.exists() else ""
        raise UserError(f"output={path.parent}: {path.name} cannot be written ({reason}){kept}") from error


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with text."""
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))
