"""The README's worked example, followed to the letter in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.small_run import SmallRun, lines

ROOT = Path(__file__).parents[1]


def example() -> dict[str, str]:
    """Files that the section "Add your method" writes: path -> content. Its name stands before each block."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Add your method\n(.*?)(?=^## )", readme, re.DOTALL | re.MULTILINE)
    assert section, "README.md has no section of this name"
    texts_and_blocks = re.findall(r"(.*?)^```\w+\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    return {re.findall(r"`((?:methods|conf)/[\w/]+\.\w+)`", text)[-1]: block for text, block in texts_and_blocks}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example's files in it."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("bench", "methods", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "joey"))
    for path, content in example().items():
        there = copy / path
        assert not there.exists() or there.read_text(encoding="utf-8") == content, f"{path} is another method's"
        (copy / path).write_text(content, encoding="utf-8")
    return copy


def run(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", *overrides]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_the_example_is_one_file_and_one_yaml_of_under_40_lines() -> None:
    files = example()
    assert [Path(path).parts[0] for path in files] == ["methods", "conf"]
    assert sum(content.count("\n") for content in files.values()) < 40


def test_the_example_runs_and_is_lossless(project: Path, tmp_path: Path) -> None:
    small = SmallRun.make(tmp_path)
    method = Path(list(example())[-1]).stem
    changes = {"method": method, "method__checkpoint": None, "max_new_tokens": 60, "repeats": 1}
    done = run(project, *small.overrides(results_dir=tmp_path / "results", **changes))
    assert done.returncode == 0, done.stderr
    (folder,) = (file.parent for file in (tmp_path / "results").glob(f"runs/*/{method}/*/metrics.json"))
    overall = json.loads((folder / "metrics.json").read_text())["overall"]
    assert overall["mismatch"] == 0 and overall["cr"] > 1, "the example should draft something that is right"
    assert len(lines(folder / "answers.jsonl")) == 5


def test_the_example_is_offered_and_its_mistakes_are_one_line(project: Path, tmp_path: Path) -> None:
    method = Path(list(example())[-1]).stem
    offered = re.search(r"^method=all: (.*);", run(project, "--help").stdout, re.MULTILINE)
    assert offered and method in offered[1].split(", ")
    small = SmallRun.make(tmp_path)
    changes = {"method": method, "method__checkpoint": None, "method__span": 0}
    done = run(project, *small.overrides(results_dir=tmp_path / "results", **changes))
    assert done.returncode == 2 and done.stderr.startswith("method.span=0") and done.stderr.count("\n") == 1
