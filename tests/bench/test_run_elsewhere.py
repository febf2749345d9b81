"""A whole run on a device that is not the CPU: warm-up, timed turns, the fidelity check, and a page of numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.run import main
from tests.bench.small_run import SmallRun, lines


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_run(temperature: float, second: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bench.assembly", "methods.engine.checkpoint"):
        monkeypatch.setattr(f"{module}.pick_device", lambda device: second)
    small = SmallRun.make(tmp_path)
    assert main(small.overrides(repeats=1, limit=1, max_new_tokens=5, temperature=temperature)) == 0
    (folder,) = small.folders()
    answers = [answer["choices"][0] for answer in lines(folder / "answers.jsonl")]
    assert {verdict["verdict"] for answer in answers for verdict in answer["fidelity"]} == {"equal"}
    assert json.loads((folder / "run.json").read_text())["gpu"] is None
