"""A method with weights from outside: one module, one method YAML and one draft YAML in a folder, nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench.run import main
from tests.bench.small_run import SmallRun

METHOD = '''
"""Drafts one token: what a linear on the last final state says."""

from pathlib import Path
from typing import Annotated

import torch

from methods.draft import Draft, Tree
from methods.engine.checkpoint import read_tensors
from methods.files import Checkpoint


class Linear:
    taps = ()
    max_rows = 2

    def __init__(self, target, *, checkpoint: Annotated[Path, Checkpoint("a linear")], scale: float) -> None:
        shapes = {"weight": (target.config.vocab_size, target.config.hidden_size)}
        self.weight = read_tensors(checkpoint, shapes, device=target.device, dtype=target.dtype)["weight"] * scale
        self.extra_parameters = self.weight.numel()

    def start(self, prompt, prefill):
        return Drafter(self, prefill.final)


class Drafter:
    def __init__(self, method, final) -> None:
        self.method, self.final = method, final

    def propose(self, tokens, room):
        if room < 1:
            return Draft.empty(self.final.device)
        return Draft((self.final @ self.method.weight.T).argmax(-1), Tree.chain(1, self.final.device))

    def observe(self, verification) -> None:
        last = verification.path[-1]
        self.final = verification.final[last : last + 1]
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallRun:
    """A tiny model, and a folder with a method, its settings and its draft for model=custom."""
    small = SmallRun.make(tmp_path)
    for name, text in {
        "code/linear_draft.py": METHOD,
        "own/method/linear.yaml": "_target_: linear_draft.Linear\ncheckpoint: null\nscale: 1.0\n",
        "own/draft/linear-custom.yaml": f"# @package method\ncheckpoint: {tmp_path / 'weights'}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "weights").mkdir()
    torch.save({"weight": torch.randn(67, 32)}, tmp_path / "weights" / "pytorch_model.bin")
    monkeypatch.syspath_prepend(tmp_path / "code")
    return small


@pytest.mark.parametrize("option", ["--config-dir={}", "--config-dir {}", "hydra.searchpath=[file://{}]"])
def test_a_method_with_weights_is_three_files(outside: SmallRun, option: str) -> None:
    given = option.format(outside.folder / "own").split(" ")
    changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
    assert main([*given, *outside.overrides(**changes)]) == 0
    (folder,) = outside.folders()
    info = json.loads((folder / "run.json").read_text())
    assert info["method"] == "linear" and info["extra_parameters"] == 67 * 32
    assert info["files"] == {"method.checkpoint": {"path": str(outside.folder / "weights")}}
    assert "draft/pytorch_model.bin" in info["checkpoint_sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method__scale": "wide"}, "method.scale=wide: must be a number"),
        ({"method__scael": 2}, "method.scael: unknown override; did you mean method.scale?"),
        ({"method__checkpoint": "null"}, "method.checkpoint: none is configured for model=custom; wanted: a linear"),
        ({"method___target_": "linear_draft.Nothing"}, "method._target_=linear_draft.Nothing: "),
        ({"method__checkpoint": "/nowhere/at/all"}, "method.checkpoint=/nowhere/at/all: no such folder"),
    ],
)
def test_its_mistakes_are_one_line(outside: SmallRun, capsys, changes: dict, message: str) -> None:
    given = [f"--config-dir={outside.folder / 'own'}"]
    overrides = outside.overrides(**{"method": "linear", "method__checkpoint": None, **changes})
    capsys.readouterr()
    assert main([*given, *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_any_file_of_its_weights_that_changes_begins_another_run(outside: SmallRun) -> None:
    (outside.folder / "weights" / "inner").mkdir()
    given = [f"--config-dir={outside.folder / 'own'}"]
    for content in ("one", "two", "two"):
        (outside.folder / "weights" / "inner" / "w.pt").write_text(content)
        (outside.folder / "weights" / "notes.md").write_text(content * 2)
        changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
        assert main([*given, *outside.overrides(**changes)]) == 0
    assert len(outside.folders()) == 2
    hashes = json.loads((outside.folders()[0] / "run.json").read_text())["checkpoint_sha256"]
    assert "draft/inner/w.pt" in hashes and "draft/notes.md" not in hashes


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("method/linear.yaml", "checkpoint: null\n", "method._target_ is missing: method._target_=package.module"),
        ("method/linear.yaml", "", "method._target_ is missing"),
        ("method/linear.yaml", "a: [\n", "linear.yaml line 2: not valid YAML"),
        ("draft/linear-custom.yaml", "checkpoint: x\n", "conf/draft/linear-custom.yaml: must begin with the line #"),
    ],
)
def test_a_broken_file_of_a_folder_is_one_line_and_keeps_no_other_method_out(
    outside: SmallRun, capsys, file: str, text: str, message: str
) -> None:
    (outside.folder / "own" / file).write_text(text)
    given = [f"--config-dir={outside.folder / 'own'}"]
    changes = {"method__checkpoint": None, "limit": 1, "repeats": 1}
    capsys.readouterr()
    assert main([*given, *outside.overrides(**changes, method="linear")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert main([*given, *outside.overrides(**changes, method="linear,vanilla")]) == 1
    assert [folder.parent.name for folder in outside.folders()] == ["vanilla"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("    taps = ()", "    taps = (99,)", "method: Linear taps layer 99, the model has 0 to"),
        ("    taps = ()", "    tabs = ()", "method: Linear lacks taps"),
        ("    def start(", "    def strat(", "method: Linear lacks start"),
        ("        self.", "        raise SystemExit(0)\n        self.", "cannot be made (SystemExit"),
    ],
)
def test_a_method_without_the_interface_is_one_line(
    outside: SmallRun, capsys, monkeypatch, before: str, after: str, message: str
) -> None:
    file = outside.folder / "code" / "linear_draft.py"
    assert before in METHOD
    file.write_text(METHOD.replace(before, after, 1))
    monkeypatch.delitem(sys.modules, "linear_draft", raising=False)
    given = [f"--config-dir={outside.folder / 'own'}"]
    capsys.readouterr()
    assert main([*given, *outside.overrides(method="linear", method__checkpoint=None, limit=1, repeats=1)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config-dir=/nowhere", "--config-dir=/nowhere: no such folder; wanted: one laid out like conf/"),
        ("--config-dir", "--config-dir=: no such folder"),
        ("hydra.searchpath=[file:///nowhere]", "hydra.searchpath=file:///nowhere: no such folder"),
    ],
)
def test_a_folder_that_is_not_there_is_one_line(capsys, option: str, message: str) -> None:
    assert main(["method=linear", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1
