"""A method with weights from outside: one module, one method YAML and one draft YAML in a folder, nothing else."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
        ({"method__checkpoint": "package:its_weights/none"}, "method.checkpoint="),
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
        (outside.folder / "weights" / "log.csv").write_text(content * 2)
        changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
        assert main([*given, *outside.overrides(**changes)]) == 0
    assert len(outside.folders()) == 2
    hashes = json.loads((outside.folders()[0] / "run.json").read_text())["checkpoint_sha256"]
    assert "draft/inner/w.pt" in hashes and not {"draft/notes.md", "draft/log.csv"} & hashes.keys()
    for name in ("vocab.json", "table.csv", "tokenizer.json"):  # nobody knows what of this the method reads
        (outside.folder / "weights" / name).write_text("{}")
    assert main([*given, *outside.overrides(**changes)]) == 0
    assert len(outside.folders()) == 3


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
        ("hydra.searchpath=[pkg://nowhere.inside]", "hydra.searchpath=pkg://nowhere.inside: no such folder"),
    ],
)
def test_a_folder_that_is_not_there_is_one_line(capsys, option: str, message: str) -> None:
    assert main(["method=linear", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def changed(outside: SmallRun, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> list[str]:
    """The method with another text in it, and the arguments of a run."""
    assert before in METHOD
    (outside.folder / "code" / "linear_draft.py").write_text(METHOD.replace(before, after, 1))
    monkeypatch.delitem(sys.modules, "linear_draft", raising=False)
    changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
    return [f"--config-dir={outside.folder / 'own'}", *outside.overrides(**changes)]


def test_an_annotation_that_a_type_checker_alone_reads_is_named(outside: SmallRun, capsys, monkeypatch) -> None:
    later = "from __future__ import annotations\nimport typing\nif typing.TYPE_CHECKING:\n    from pathlib import Path"
    given = changed(outside, monkeypatch, "from pathlib import Path", later)
    capsys.readouterr()
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "method.checkpoint: nobody can tell whether it is a file" in error and "name 'Path' is not defined" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["propose", "observe"])
def test_an_error_of_one_method_keeps_no_other_from_running(outside: SmallRun, capsys, monkeypatch, place) -> None:
    raising = f"def {place}(self, *given):\n        raise KeyError('lost')\n\n    def was_{place}("
    given = changed(outside, monkeypatch, f"def {place}(", raising)
    with pytest.raises(KeyError, match="lost"):  # alone, it is the method's author who has to see it
        main(given)
    several = [text.replace("method=linear", "method=linear,vanilla") for text in given]
    assert main(several) == 1
    error = capsys.readouterr().err
    assert "linear is left out: 'lost'" in error and "Traceback" in error
    assert (outside.folders()[-1] / "metrics.json").exists() and outside.folders()[-1].parent.name == "vanilla"


def test_a_drafter_without_its_two_calls_is_one_line(outside: SmallRun, capsys, monkeypatch) -> None:
    given = changed(outside, monkeypatch, "def observe(", "def observed(")
    capsys.readouterr()
    assert main(given) == 2
    assert capsys.readouterr().err == "method: Drafter, its drafter, lacks observe\n"


def test_a_line_that_its_yaml_lacks_is_said(outside: SmallRun, capsys) -> None:
    (outside.folder / "own" / "method" / "linear.yaml").write_text("_target_: linear_draft.Linear\nscale: 1.0\n")
    given = [f"--config-dir={outside.folder / 'own'}", *outside.overrides(method="linear", method__checkpoint=None)]
    (outside.folder / "own" / "draft" / "linear-custom.yaml").unlink()
    capsys.readouterr()
    assert main(given) == 2
    assert "method.checkpoint is missing: the YAML of method needs the line checkpoint: null" in capsys.readouterr().err


def test_a_name_that_is_taken_is_refused(outside: SmallRun, capsys) -> None:
    taken = outside.folder / "own" / "method" / "pld.yaml"
    taken.write_text("_target_: linear_draft.Linear\n")
    assert main([f"--config-dir={outside.folder / 'own'}", "method=pld"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{taken}: ") and "has this name already; give yours another" in error


def test_weights_may_lie_in_an_installed_package_under_a_name_of_their_own(outside: SmallRun, monkeypatch) -> None:
    package = outside.folder / "code" / "its_weights"
    (package / "linear").mkdir(parents=True)
    (package / "__init__.py").touch()
    save_file({"weight": torch.randn(67, 32)}, package / "linear" / "my_heads.safetensors")
    (package / "linear" / "config.json").write_text("{}")
    given = [f"--config-dir={outside.folder / 'own'}", "method.checkpoint=package:its_weights/linear"]
    changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
    assert main([*given, *outside.overrides(**changes)]) == 0
    info = json.loads((outside.folders()[0] / "run.json").read_text())
    assert "draft/my_heads.safetensors" in info["checkpoint_sha256"]
    assert shlex.split(info["command"])[3] == "method.checkpoint=package:its_weights/linear"
    assert f"--config-dir={outside.folder / 'own'}" in shlex.split(info["command"])


@pytest.mark.parametrize("folder", ["own's", "a,b", "with space", "back\\slash"])
def test_a_folder_of_any_name_is_read(outside: SmallRun, folder: str) -> None:
    (outside.folder / "own").rename(outside.folder / folder)
    changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
    assert main(["--config-dir", str(outside.folder / folder), *outside.overrides(**changes)]) == 0


@pytest.mark.parametrize(
    "option", ["hydra.searchpath=[pkg://its_conf.inside]", "+hydra.searchpath=[pkg://its_conf.inside]"]
)
def test_a_folder_of_a_package_is_read(outside: SmallRun, option: str) -> None:
    package = outside.folder / "code" / "its_conf"
    package.mkdir()
    (package / "__init__.py").touch()
    (outside.folder / "own").rename(package / "inside")
    changes = {"method": "linear", "method__checkpoint": None, "limit": 1, "repeats": 1}
    assert main([option, *outside.overrides(**changes)]) == 0
