"""What machine and what software a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "numpy", "hydra-core", "medusa-llm")


def describe(device: str, threads: int) -> dict[str, Any]:
    """Hardware, driver, thread count and package versions, JSON-able. What is not there is None."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": threads,
        "packages": {name: _version(name) for name in PACKAGES},
        **_gpu(device),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return _cpu("model name") or platform.processor() or platform.machine()


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; one without the instructions is many times slower."""
    return "avx512_bf16" in _cpu("flags").split()


def _cpu(key: str) -> str:
    """What the system says of its first processor; empty where it says nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def git_state(root: Path, results: str = "results") -> dict[str, Any]:
    """Commit of the project's checkout and whether it has changes but for results; both None outside a checkout.

    results: where runs are written, besides the checkout's own folder for them.
    """
    if not (root / ".git").exists():  # installed, perhaps below somebody else's repository
        return {"commit": None, "dirty": None}
    top, place = root.resolve(), Path(results).resolve()
    written = [str(place.relative_to(top))] if place != top and place.is_relative_to(top) else []
    apart = [f":(exclude,literal){folder}" for folder in ("results", *written)]
    status = ("status", "--porcelain", "--", ".", *apart)  # what runs write changes no code
    commit, changes = (_said("git", "-C", str(root), *ask) for ask in (("rev-parse", "HEAD"), status))
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _said(*command: str) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpu(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"gpu": None, "driver": None, "cuda": None}
    import torch

    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0") or None
    return {"gpu": torch.cuda.get_device_properties(0).name, "driver": driver, "cuda": torch.version.cuda}


def cards() -> dict[str, str | None]:
    """Every NVIDIA card of this machine, whoever uses it, and their driver; None where its nvidia-smi tells of none."""
    said = _said("nvidia-smi", "--query-gpu=driver_version,memory.total,name", "--format=csv,noheader") or ""
    rows = [parts for line in said.splitlines() if len(parts := line.split(", ", 2)) == 3]
    counts = Counter(f"{name}, {memory}" for _, memory, name in rows)
    gpu = "; ".join(f"{count} × {card}" for card, count in counts.items())
    return {"gpu": gpu or None, "driver": rows[0][0] if rows else None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
