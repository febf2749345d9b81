"""Writing files so that what was there stays readable until the new one is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from methods.errors import UserError, first_line


def replace_file(path: Path, write: Callable[[Path], object], key: str = "output") -> None:
    """Write beside `path`, flush to the disk, then take its place. Where a link stood, it goes; what it named stays.

    key: what the user sets to choose the folder. Raises UserError when the disk does not take the file; whatever stood
    at `path` is then untouched.
    """
    # A folder, because safetensors writes beside the file it is given; of one name, so that the next write removes what
    # a killed one left.
    aside = path.with_name(f".{path.name}.partial")
    fresh = aside / path.name
    try:
        _remove(aside)
        aside.mkdir(parents=True)
        write(fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.chmod(_usual_mode())  # safetensors makes files that only their owner can read
        os.replace(fresh, path)
        _remove(aside)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is a RuntimeError to torch's zip writer
        _remove(aside)
        kept = "; the file that was there is untouched" if path.is_file() else ""
        raise UserError(f"{key}={path.parent}: {path.name} cannot be written ({_reason(error)}){kept}") from error


def replace_text(path: Path, text: str, key: str = "output") -> None:
    """`replace_file` with text; of characters that UTF-8 has none for, their numbers."""
    content = text.encode("utf-8", "backslashreplace")
    replace_file(path, lambda file: file.write_bytes(content), key)


def replace_tensors(path: Path, content: Any, key: str = "output") -> None:
    """`replace_file` with what torch.save makes of `content`."""
    import torch

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # given a path, torch would not say why it failed
            torch.save(content, opened)

    replace_file(path, write, key)


def make_folder(path: str, key: str = "results_dir") -> Path:
    """A folder to write into. Raises UserError where there can be none."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}; valid: a folder that can be written to") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path}: may not be written to; valid: a folder that can be written to")
    return folder


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _remove(aside: Path) -> None:
    with suppress(OSError):  # where the folder around is the trouble, that is what is reported
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """What the system said, wherever it stands in the chain of errors."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__context__
    return first_line(error)
