"""What makes two runs the same: the configuration as far as it is measured, and the machine that measures it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Change where results go or how a run is started, not what is measured.
NOT_MEASURED = ("results_dir", "resume", "launcher")
# Runs that differ in one of these were made by other rulers and never share a folder.
HASHES = ("checkpoint_sha256", "questions_sha256", "chat_sha256")
IDENTITY = ("cpu", "cores", "gpu", "driver", "cuda", "threads", "dtype", "python", "packages", *HASHES, "commit")
# Runs that differ in one of these were measured by different rulers.
HARDWARE_KEYS = ("cpu", "cores", "gpu", "driver", "cuda", "threads")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration."""
    measured = {key: value for key, value in config.items() if key not in NOT_MEASURED}
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:12]


def environment(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal before two runs' times may meet: hardware, dtype and versions, as flat keys."""
    model = (info.get("config") or {}).get("model") or {}
    found = {key: info.get(key) for key in HARDWARE_KEYS}
    memory, python = info.get("memory_bytes"), info.get("python")
    found["memory_gib"] = round(memory / 2**30) if memory else None
    found["dtype"] = info.get("dtype") or (model.get("dtype") if isinstance(model, dict) else None)
    found["python"] = ".".join(str(python).split(".")[:2]) if python else None
    packages = info.get("packages") or {}
    return found | {f"packages.{name}": version for name, version in sorted(packages.items())}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) of every key on which two flat mappings differ."""
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
