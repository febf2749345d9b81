"""Writing files so that what was there stays readable until the new one is whole."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from methods.errors import UserError, first_line

LOCK = ".lock"


def replace_file(path: Path, write: Callable[[Path], object], key: str = "output") -> None:
    """Write beside `path`, flush to the disk, then take its place. Where a link stood, it goes; what it named stays.

    Several processes may write the same file at once: the last one's stays. key: what the user sets to choose the
    folder. Raises UserError when the disk does not take the file; whatever stood at `path` is then untouched.
    """
    try:
        with _aside(path) as folder:
            fresh = folder / path.name
            write(fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.chmod(_usual_mode())  # safetensors makes files that only their owner can read
            os.replace(fresh, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is a RuntimeError to torch's zip writer
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


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A folder beside `path` for this write alone, because safetensors writes beside the file it is given.

    A writer locks a file in its folder as long as it lives; folders that killed ones left are removed here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), (left / LOCK).open("r+") as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    folder, lock = _locked(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _locked(path: Path) -> tuple[Path, IO[str]]:
    """A new folder, and the file in it that this process has locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        with suppress(FileNotFoundError):
            lock = (folder / LOCK).open("w")
            with suppress(OSError):  # a file system without locks: nobody removes what is left there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / LOCK).exists():  # else another writer took the folder for one that was left
                return folder, lock
            lock.close()


def _reason(error: BaseException) -> str:
    """What the system said, wherever it stands in the chain of errors."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__context__
    return first_line(error)
