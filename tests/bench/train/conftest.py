"""What tests of training begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.train.chat_model import write_chat_model, write_sharegpt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chat model and conversations."""
    folder = tmp_path_factory.mktemp("world")
    write_chat_model(folder / "model")
    write_sharegpt(folder / "data.json", 60)
    return folder
