"""A public Google Drive folder -> a folder of the cache, fetched once by the library gdown (an extra).

Kangaroo's authors publish their adapters there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path, PurePath
from typing import Any

from methods.engine.weight_files import weight_files
from methods.errors import UserError, first_line

PREFIX = "gdrive:"
NAME = re.compile(r"gdrive:([\w-]{10,})((?:/(?!\.+(?:/|$))[^/]+)*)/*")


def cache_folder() -> Path:
    """Where this project keeps what it downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "speculative-bench"


def is_here(path: str) -> bool:
    """Whether gdrive:FOLDER_ID[/subfolder] has been fetched, or put into its place by hand."""
    named = NAME.fullmatch(path)
    return named is not None and _lack(_place(named)) is None


def _place(named: re.Match[str]) -> Path:
    return cache_folder() / "gdrive" / named[1] / named[2].strip("/")


def fetch(path: str, key: str) -> Path:
    """The local folder of gdrive:FOLDER_ID[/subfolder]: config.json and weights, downloaded when first wanted.

    A download is written aside and takes its place when it is whole. Raises UserError, which names the link, the place
    to put it by hand, and the training command, when there is nothing whole in the end.
    """
    named = NAME.fullmatch(path)
    if named is None:
        raise UserError(f"{key}={path}: gdrive:FOLDER_ID or gdrive:FOLDER_ID/subfolder is wanted")
    folder_id, inner = named[1], named[2].strip("/")
    place = _place(named)
    if _lack(place) is None:
        return place
    try:
        _download(folder_id, inner, place)
    except Exception as error:  # gdown raises what requests, its parsers and the disk raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__  # a full quota is told in several lines
        raise UserError(
            f"{key}={path}: not fetched from Google Drive ({reason}); download it by hand from "
            f"https://drive.google.com/drive/folders/{folder_id} into {place}, or train one: "
            "python -m bench.train method=kangaroo"
        ) from error
    return place


def _download(folder_id: str, inner: str, place: Path) -> None:
    """Fetch one folder, without those inside it. Raises ValueError when it is not there or not whole."""
    try:
        import gdown
    except ImportError:
        raise ValueError("the library gdown is missing: pip install gdown") from None
    from filelock import FileLock  # comes with huggingface_hub

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f".{place.name}.lock")):
        if _lack(place) is None:  # another process was quicker
            return
        listed: Any = gdown.download_folder(id=folder_id, skip_download=True, quiet=True) or []
        folders = {PurePath(file.path).parent for file in listed}
        wanted = PurePath(inner)  # or, where there is none of that path, the only one of that name further inside
        alike = [folder for folder in folders if folder == wanted] or [f for f in folders if inner and f.match(inner)]
        if len(alike) != 1:
            there = ", ".join(sorted(map(str, folders))) or "none"
            raise ValueError(f"not one folder {inner or 'of files'} in it; there are: {there}")
        files = {PurePath(file.path).name: file.id for file in listed if PurePath(file.path).parent == alike[0]}
        print(f"gdrive:{folder_id}/{inner}: downloading {', '.join(files)} from Google Drive", file=sys.stderr)
        aside = place.with_name(f".{place.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)  # what a killed download left
        aside.mkdir()
        for name, file_id in files.items():
            gdown.download(id=file_id, output=str(aside / name), quiet=True)
        if lack := _lack(aside):
            raise ValueError(f"what came is not whole: {lack}")
        place.mkdir(exist_ok=True)  # folders fetched before may lie in it
        for name in sorted(files, key="config.json".__eq__):  # it comes last: without it the place is not whole
            (aside / name).replace(place / name)
        aside.rmdir()


def _lack(folder: Path) -> str | None:
    """What keeps a folder from being a whole checkpoint; None when nothing does."""
    if not (folder / "config.json").is_file():
        return "no config.json"
    try:
        if not weight_files(folder):
            return "no weights"
    except UserError as error:
        return first_line(error)
    torn = [file.name for file in folder.iterdir() if file.suffix == ".part" or not file.stat().st_size]
    return f"{', '.join(torn)}: not finished" if torn else None
