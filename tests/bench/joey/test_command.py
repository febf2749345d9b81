"""python -m bench.joey: what it makes, and what it says to a mistake or a signal."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bench.joey import __main__ as command
from bench.joey.world import questions

ALL = "all, base, curve, eagle, eagle3, hydra, kangaroo, medusa, rest, sps, tokenizer, world"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sead=1"], "--sead=1: unknown; did you mean --seed? valid: --help, --out, --seed, --stage, --work"),
        (["--se", "1"], "--se: unknown; did you mean --seed? valid: --help, --out, --seed, --stage, --work"),
        (["--out"], "argument --out: expected one argument"),
        (["--seed", "one"], "--seed=one: must be a whole number, 0 or above"),
        (["--seed", "-1"], "--seed=-1: must be a whole number, 0 or above"),
        (["--seed", str(2**80)], f"seed={2**80}: must be 0 or above, and at most 9223372036854775807"),
        (["--stage", "wrld"], f"--stage=wrld: unknown; did you mean world? valid: {ALL}"),
        (["--stage=base", "--out=new"], "--stage=base: needs new/tokenizer.json, which --stage=tokenizer writes"),
        (["--stage=curve", "--out=new"], "--stage=curve: needs new/training/base_loss.csv, which --stage=base writes"),
        (["--stage=medusa", "--out=new"], "--stage=medusa: needs new/model.safetensors, which --stage=base writes"),
        (["--stage=world", "--out=file"], "--out=file: File exists; valid: a folder that can be written to"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(command, "STAGES", dict.fromkeys(command.STAGES, pytest.fail))  # nothing runs
    assert command.main(arguments) == 2
    assert capsys.readouterr() == ("", line + "\n")


def test_a_folder_for_checkpoints_that_cannot_be_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.json").touch()
    arguments = ["--stage=base", f"--out={tmp_path}", f"--work={tmp_path / 'tokenizer.json'}"]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"--work={tmp_path / 'tokenizer.json'}: File exists; valid: ")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line(
    sent: signal.Signals,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(command.STAGES, "world", lambda out, work, seed: os.kill(os.getpid(), sent))
    assert command.main([f"--out={tmp_path}"]) == status
    assert capsys.readouterr().err == "interrupted; the same command continues from the last checkpoint\n"


def test_a_stage_writes_its_file_and_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--stage", "world", "--out", str(tmp_path / "new"), "--seed=3"]) == 0
    assert capsys.readouterr().out.startswith("world: ")
    lines = (tmp_path / "new" / "question.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == questions(3)
    recorded = json.loads((tmp_path / "new" / "training" / "recipe.json").read_text())["world"]
    assert {"seconds", "seed", "cpu", "torch", "python"} == set(recorded) and recorded["seed"] == 3
