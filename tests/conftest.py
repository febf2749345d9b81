"""One thread for each test process: the models are tiny, and tests run side by side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files near the root first: they try whole commands, and one begun last would keep a process busy alone."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that is not the CPU, see tests.second_device."""
    from tests.second_device import connect

    return connect(monkeypatch)
