"""What every test begins with: one thread for each process, as the models are tiny and tests run side by side."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and what waits for one would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files near the root first: they try whole commands, and one begun last would keep a process busy alone."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture(scope="session")
def datastores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where datastores are made once for many tests."""
    return tmp_path_factory.mktemp("datastores")


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that is not the CPU, see tests.second_device."""
    from tests.second_device import connect

    return connect(monkeypatch)
