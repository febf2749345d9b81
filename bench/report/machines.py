"""Machines in words: a phrase for each, and what tells two of them apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench import words
from bench.records.identity import HARDWARE, differences


def machine_labels(environments: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A phrase for each machine; where two would be the same, with the versions and sizes that differ."""
    labels = {place: _machine_label(found) for place, found in environments.items()}
    for label, count in Counter(labels.values()).items():
        if count == 1:
            continue
        alike = [place for place in labels if labels[place] == label]
        first = environments[alike[0]]
        keys = dict.fromkeys(key for place in alike for key, _, _ in differences(first, environments[place]))
        for place in alike:
            parts = [f"{key.removeprefix('packages.')} {environments[place].get(key) or 'unknown'}" for key in keys]
            labels[place] = ", ".join([label, *parts])
    return labels


def _machine_label(found: dict[str, Any]) -> str:
    """One phrase for a machine: GPU or CPU, cores, threads, dtype, and the engine."""
    if not any(found.get(key) for key in HARDWARE):
        return "machine not recorded"
    parts = [str(found.get("gpu") or found.get("cpu") or "unknown processor")]
    if not found.get("gpu"):
        parts += [words.plural("core", found["cores"])] if found.get("cores") else []
        parts += [words.plural("thread", found["threads"])] if found.get("threads") else []
    parts += [str(found["dtype"])] if found.get("dtype") else []
    return ", ".join([*parts, f"{found['engine']} engine"])
