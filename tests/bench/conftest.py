"""What several tests of runs begin with."""

from __future__ import annotations

import pytest

from tests.bench.small_run import SmallRun


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return SmallRun.make(tmp_path_factory.mktemp("small"))
