"""From the name of a checkpoint to a folder on this disk."""

from __future__ import annotations

import os
from pathlib import Path

from methods.errors import UserError

TEXT_FILES = ["*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
# Exact names: repositories also hold consolidated.safetensors, adapters and other copies of the same weights.
SAFETENSORS = ["model.safetensors", "model-*-of-*.safetensors", "medusa_lm_head.safetensors"]
BINARIES = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "medusa_lm_head.pt"]


def resolve(path: str, revision: str | None = None, *, key: str = "model.path", weights: bool = True) -> Path:
    """The local folder of a checkpoint: `path` itself, or a hub repository's snapshot, downloaded once.

    `key` is the configuration key that an error names. With `weights=False` only configuration and tokenizer are
    fetched from the hub. safetensors are preferred; .bin files are fetched only where there are none.
    Raises UserError when there is no such folder, or the hub has no such repository or cannot be reached.
    """
    folder = Path(os.path.expanduser(path))
    if path and folder.is_dir():
        return folder
    if path and folder.exists():
        raise UserError(f"{key}={path}: this is a file; a folder with config.json and weights is wanted")
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        valid = "a folder with config.json and weights, or a hub id owner/name"
        raise UserError(f"{key}={path}: no such folder; valid: {valid}")
    return _download(path, revision, key, weights)


def _download(hub_id: str, revision: str | None, key: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # takes half a second, and a local folder does not need it

    preferred = SAFETENSORS if weights else []
    wanted = "config.json" + (" and model.safetensors or pytorch_model.bin, whole or in shards" if weights else "")
    remedy = f"or give a folder: {key}=/folder"
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=TEXT_FILES + preferred))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=TEXT_FILES + BINARIES))
    except Exception as error:  # whatever the hub client and the http library under it raise: all end the same way
        reason = _reason(error, hub_id, revision)
        raise UserError(f"{key}={hub_id}: {reason}; wanted: {wanted}; {remedy}") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}={hub_id}: the hub repository has no config.json; {remedy}")
    return folder


def _reason(error: Exception, hub_id: str, revision: str | None) -> str:
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
    if isinstance(error, errors.LocalEntryNotFoundError):
        # The hub client looked into its cache because the hub did not answer; the cause says why.
        why = str(error.__cause__ or error).strip().splitlines()[0]
        return f"no such folder, {hub_id} is not in the local cache, and the hub cannot be reached ({why})"
    return f"the download failed ({type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]})"
