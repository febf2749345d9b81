"""The project as a wheel, in a folder of its own, beside a package from outside that brings a method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.bench.small_run import lines
from tests.test_add_your_method import example

ROOT = Path(__file__).parents[1]
METADATA = "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n"
SHORT = ["limit=1", "repeats=1", "max_new_tokens=24", "warmup_turns=0", "task=qa"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where wheel and outside package are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in tracked:
        if name and not name.startswith(("tests/", "results/", "notebooks/")) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), "."]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    outside = folder / "site" / "outside"
    code, settings = example().values()
    settings = settings.replace("methods.prompt_lookup", "outside.method")
    for path, text in {
        outside / "__init__.py": "",
        outside / "method.py": code,
        outside / "conf" / "method" / "outside_lookup.yaml": settings.replace(
            "methods.prompt_lookup", "outside.method"
        ),
        outside.with_name("outside-1.0.dist-info") / "METADATA": METADATA,
        outside.with_name("outside-1.0.dist-info") / "entry_points.txt": "[speculative_bench]\nconf = outside.conf\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "site"


def python(site: Path, cwd: Path, *arguments: str) -> str:
    """What a command prints that runs on the installed packages alone."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_in_the_wheel() -> None:
    listed = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("packages =")[1].split("package_dir")[0].split()
    assert sorted(listed) == sorted([*find_packages(str(ROOT), include=["bench*", "methods*"]), "bench.conf"])


def test_the_wheel_runs_from_any_folder_and_finds_methods_from_outside(site: Path, tmp_path: Path) -> None:
    shown = python(site, tmp_path, "bench.run", "--help")
    assert "outside_lookup" in shown.split("method=all: ")[1].split(";")[0]
    python(site, tmp_path, "bench.run", "method=outside_lookup,kangaroo", "model=joey", *SHORT)
    (ours,) = tmp_path.glob("results/runs/joey/outside_lookup/*/answers.jsonl")
    assert lines(ours)[0]["choices"][0]["fidelity"][0]["verdict"] == "equal"
    info = json.loads(ours.with_name("run.json").read_text())
    assert info["commit"] is None and str(site) in info["files"].get("method.checkpoint", {"path": str(site)})["path"]
    python(site, tmp_path, "bench.report")
    assert "outside_lookup" in (tmp_path / "results" / "report" / "leaderboard.md").read_text(encoding="utf-8")


def test_the_wheel_names_its_console_script(site: Path, tmp_path: Path) -> None:
    (points,) = site.glob("speculative_bench-*.dist-info/entry_points.txt")
    assert "speculative-bench = bench.cli:main" in points.read_text(encoding="utf-8")
    assert python(site, tmp_path, "bench.cli", "report", "--help").lower().startswith("usage: ")


def test_the_wheel_trains(site: Path, tmp_path: Path) -> None:
    settings = ["data.limit=12", "loop.epochs=0.2", "loop.length=64", "loop.accumulation=1", "output=adapter"]
    python(site, tmp_path, "bench.train", "method=kangaroo", "model=joey", "data.path=joey", *settings)
    assert (tmp_path / "adapter" / "pytorch_model.bin").is_file()
