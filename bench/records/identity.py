"""What makes two runs the same: the configuration as far as it is measured, and the machine that measures it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from methods.digest import sha256

# Say where results go or how a run is started: two runs that differ in nothing else share a folder.
NOT_MEASURED = ("results_dir", "resume", "launcher")
# Say where lies what is measured, or which part of it: hashes and question ids tell more. Of the engine, the
# environment says what was asked for came to.
PLACES = ("shard", "data.path", "model.path", "questions.source", "engine")
# Settings that are files, for records made before run.json listed them.
FILES = ("method.checkpoint", "method.datastore", "method.tokenizer")
HARDWARE = ("cpu", "cores", "gpu", "driver", "cuda", "threads")
# Files of these digests decide the output; runs that differ in one never share a folder.
HASHES = ("checkpoint_sha256", "questions_sha256", "chat_sha256")
# What else a run is not continued without: this project's code, and what servers say of themselves.
SAME = (*HASHES, "commit", "servers")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a configuration."""
    measured = {key: value for key, value in config.items() if key not in NOT_MEASURED}
    return sha256(json.dumps(measured, sort_keys=True))[:12]


def incidental(key: str) -> bool:
    """Whether a dotted key of the configuration says only where or how a run was done, not what was measured."""
    return key in PLACES or key.partition(".")[0] in NOT_MEASURED


def measured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat configuration without what is incidental."""
    named = {key: config[key].get("name") for key in ("task", "questions") if isinstance(config.get(key), Mapping)}
    return {key: value for key, value in flatten({**config, **named}).items() if not incidental(key)}


def file_keys(info: Mapping[str, Any]) -> frozenset[str]:
    """Dotted keys of the configuration that name files, as run.json lists them."""
    return frozenset(info.get("files") or FILES)


def environment(info: Mapping[str, Any]) -> dict[str, Any]:
    """The one meaning of "same machine": hardware, dtype, engine and versions, as flat keys.

    Times meet where all are equal. Records of before there were two engines are the eager one's.
    """
    model = (info.get("config") or {}).get("model")
    found = {key: info.get(key) for key in HARDWARE}
    memory, python = info.get("memory_bytes"), info.get("python")
    found["memory_gib"] = round(memory / 2**30) if memory else None
    found["dtype"] = info.get("dtype") or (model.get("dtype") if isinstance(model, Mapping) else None)
    found["engine"] = info.get("engine") or "eager"
    found["python"] = ".".join(python.split(".")[:2]) if python else None
    return found | {f"packages.{name}": version for name, version in sorted((info.get("packages") or {}).items())}


def facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What parts of one run have in common beside the configuration: machine, files and code."""
    return environment(info) | {key: info.get(key) for key in SAME}


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What keeps a run from being continued: another machine, other files or other code; None when nothing does."""
    found = differences(facts(before), facts(now))
    return f"{found[0][0]} was {json.dumps(found[0][1])}, is {json.dumps(found[0][2])}" if found else None


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
