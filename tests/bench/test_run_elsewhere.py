"""Whole runs on a device that is not the CPU, and on the engine of fixed shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.records.frame import read_run, require_same_environment
from bench.records.identity import environment
from bench.report.collect import collect
from bench.report.page import write_page
from bench.run import main
from methods.engine.attention import kernels
from methods.errors import UserError
from tests.bench.small_run import SmallRun, lines
from tests.joey import for_joey


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


@pytest.mark.parametrize("name", for_joey())
def test_every_method_with_joeys_drafts(
    name: str, second: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("bench.assembly", "methods.engine.checkpoint"):
        monkeypatch.setattr(f"{module}.pick_device", lambda device: second)
    short = ["question_ids=[1]", "repeats=1", "warmup_turns=1", "max_new_tokens=6", "model.context=256"]
    assert main([f"method={name}", "model=joey", *short, "engine=fixed", f"results_dir={tmp_path}"]) == 0
    (file,) = tmp_path.glob("runs/joey/*/*/answers.jsonl")
    (answer,) = lines(file)
    choice = answer["choices"][0]
    assert {verdict["verdict"] for verdict in choice["fidelity"]} == {"equal"} and sum(choice["new_tokens"]) > 6
    assert "not captured" not in capsys.readouterr().err


def test_passes_without_a_graph_are_recorded_and_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(work: Any) -> None:
        raise RuntimeError("no memory left to capture")

    small = SmallRun.make(tmp_path)
    changes = {"repeats": 1, "limit": 1, "max_new_tokens": 5, "engine": "fixed"}
    for stop in (False, True):
        if stop:
            monkeypatch.setattr("methods.engine.graphs.Repeated", refuse)
        assert main(small.overrides(results_dir=tmp_path / str(stop), **changes)) == 0
        assert ("were not captured: no memory left" in capsys.readouterr().err) == stop
        (folder,) = (file.parent for file in (tmp_path / str(stop)).glob("runs/*/*/*/run.json"))
        choices = [line["choices"][0] for side in ("answers", "baseline") for line in lines(folder / f"{side}.jsonl")]
        lacking = sum(count or 0 for choice in choices for count in choice.get("uncaptured_passes", ()))
        assert (lacking > 0) == stop
        said = f"{lacking} passes had no graph: times are not the fixed engine's usual ones"
        warnings = json.loads((folder / "metrics.json").read_text())["warnings"]
        assert (said in {warning["text"] for warning in warnings}) == stop
        page = write_page(collect(tmp_path / str(stop)), tmp_path / "report").read_text()
        assert (said.replace("'", "&#39;") in page) == stop


def test_what_a_kernel_lacks_is_said_and_stands_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ampere = kernels(torch.float32, 64, 2, (8, 0))
    monkeypatch.setattr("methods.engine.llama.choose_kernels", lambda *of_model: ampere)
    small = SmallRun.make(tmp_path)
    assert main(small.overrides(repeats=1, limit=1, max_new_tokens=5)) == 0
    said = "rows without a mask: memory-efficient (one row) and plain (a prompt, 2 heads to a key head), for flash"
    error = capsys.readouterr().err
    assert f"attention, {said}" in error and "under a mask" not in error, "what is as wanted goes without saying"
    page = write_page(collect(tmp_path / "results"), tmp_path).read_text()
    assert "Attention: rows under a mask: memory-efficient; " + said in page


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
