"""Which files of a checkpoint hold its weights, in a folder and in a hub repository."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from methods.engine.config import read_json, some
from methods.engine.gguf import is_gguf
from methods.errors import UserError

# Exact names: repositories also hold consolidated.safetensors, adapters and other copies of the same weights.
HEADS = ("medusa_lm_head.safetensors", "medusa_lm_head.pt", "hydra_lm_head.pt")  # as they are published
NAMES = ("model.safetensors", "pytorch_model.bin", *HEADS)
ANY = "*.safetensors"  # of a draft whose authors call it otherwise, when it is the only one


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors before .bin; empty when there are none.

    Where none has a name that is known, a single safetensors file is taken, whatever its name. Raises UserError when an
    index names a file that is not there, or not in the folder.
    """
    if is_gguf(folder):
        return [folder]
    for name in NAMES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(folder, index)
    others = [file for file in folder.glob(ANY) if file.is_file()]
    return others if len(others) == 1 else []


def wanted_weights(names: Iterable[str]) -> list[str]:
    """Patterns of a repository's weights by what its files are called: as weight_files finds them in a folder."""
    for safe in (True, False):
        known = [name for name in NAMES if fnmatchcase(name, ANY) == safe]
        patterns = [pattern for name in known for pattern in (name, "-*-of-*.".join(name.rsplit(".", 1)))]
        if any(matches(name, patterns) for name in names):
            return patterns
    return [ANY]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name is one that is meant."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shards(folder: Path, index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: no weight_map that lists the shards")
    shards = sorted({str(shard) for shard in listed.values()})
    if outside := [shard for shard in shards if PurePath(shard).is_absolute() or ".." in PurePath(shard).parts]:
        raise UserError(f"{index}: names {some(outside)}, outside this folder")
    if lost := [shard for shard in shards if not os.path.isfile(folder / shard)]:
        raise UserError(f"{index}: names {some(lost)}, missing in this folder")
    return [folder / shard for shard in shards]
