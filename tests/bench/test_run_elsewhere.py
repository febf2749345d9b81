"""Whole runs on a device that is not the CPU, and on the engine of fixed shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.records.frame import read_run, require_same_environment
from bench.records.identity import environment
from bench.report.collect import collect
from bench.run import main
from methods.errors import UserError
from tests.bench.small_run import SmallRun, lines


@pytest.mark.parametrize(("temperature", "engine"), [(0, "eager"), (0.7, "eager"), (0, "fixed")])
def test_a_run(
    temperature: float, engine: str, second: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("bench.assembly", "methods.engine.checkpoint"):
        monkeypatch.setattr(f"{module}.pick_device", lambda device: second)
    small = SmallRun.make(tmp_path)
    assert main(small.overrides(repeats=1, limit=1, max_new_tokens=5, temperature=temperature, engine=engine)) == 0
    (folder,) = small.folders()
    answers = [answer["choices"][0] for answer in lines(folder / "answers.jsonl")]
    assert {verdict["verdict"] for answer in answers for verdict in answer["fidelity"]} == {"equal"}
    assert json.loads((folder / "run.json").read_text())["gpu"] is None


def test_the_engine_is_recorded_and_keeps_runs_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, runs = SmallRun.make(tmp_path), {}
    for engine in ("auto", "fixed"):
        assert main(small.overrides(repeats=1, limit=1, max_new_tokens=6, engine=engine)) == 0
        (folder,) = set(small.folders()) - {run.folders[0] for run in runs.values()}
        runs[engine] = read_run(folder)
    assert [run.info["engine"] for run in runs.values()] == ["eager", "fixed"]
    answers = [run.answers for run in runs.values()]
    assert list(answers[0].new_tokens) == list(answers[1].new_tokens) and "did not meet" not in capsys.readouterr().err
    for action in ("merge", "compare"):
        with pytest.raises(UserError, match="engine is 'eager' in one, 'fixed' in the other"):
            require_same_environment(runs["auto"], runs["fixed"], action)
    labels = [group.machine_label for group in collect(tmp_path / "results").groups]
    assert len(labels) == 2 and any("eager engine" in label for label in labels)
    old = {key: value for key, value in runs["auto"].info.items() if key != "engine"}
    assert environment(old) == environment(runs["auto"].info), "runs of before are the eager engine's"
