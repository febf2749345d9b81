"""The notebooks run from top to bottom, hold no outputs, and show the numbers of bench.metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from bench.report.collect import collect
from tests.bench.report.simulate import Plan, Truth, write_run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
JOEY = ROOT / "bench" / "assets" / "joey" / "config.json"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_there_are_two():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"first_steps", "reproduce_paper"}


def execute(notebook: Path) -> nbformat.NotebookNode:
    """Run a notebook by nbmake, in place, as `pytest --nbmake --overwrite` does for its user."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--overwrite",
        "--nbmake-timeout=240",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, f"--rootdir={notebook.parent}", "-c", os.devnull, str(notebook)],
        capture_output=True, text=True, timeout=300, env=environment, cwd=notebook.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return nbformat.read(notebook, as_version=4)


def adapted(name: str, folder: Path, *, after_first: str = "", at_end: str = "") -> Path:
    """A copy of a notebook with a cell more after its first code cell and at its end."""
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    first = next(n for n, cell in enumerate(book.cells) if cell.cell_type == "code")
    book.cells.insert(first + 1, nbformat.v4.new_code_cell(after_first))
    book.cells.append(nbformat.v4.new_code_cell(at_end))
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def pictures(book: nbformat.NotebookNode) -> int:
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_reproduce_paper_shows_the_numbers_of_metrics(tmp_path):
    results = tmp_path / "results"
    for eta in (0.3, 0.6):
        write_run(results, Plan(per_category=2, repeats=2, settings={"exit_layer": 2, "gamma": 6, "eta": eta}))
    write_run(results, Plan(method="medusa", truth=Truth(0.4, 0.2, 4), per_category=2, repeats=2))
    dump = f"""
import json
rows = [table1.to_json(orient="records", double_precision=15), board.to_json(orient="records", double_precision=15)]
Path({str(tmp_path / "shown.json")!r}).write_text(json.dumps(rows))
"""
    book = execute(adapted("reproduce_paper", tmp_path, after_first=f"results = Path({str(results)!r})", at_end=dump))
    assert pictures(book) == 5  # CTAR twice, speedup, threshold, step cost
    table1, board = map(json.loads, json.loads((tmp_path / "shown.json").read_text()))
    entries = {entry.label: entry for group in collect(results).groups for entry in group.entries}
    assert [row["method"] for row in table1] == list(entries)
    for row in table1:
        for subtask, found in entries[row["method"]].metrics["subtasks"].items():
            assert row[f"{subtask}_speedup"] == pytest.approx(found["speedup"], rel=1e-12)
            assert row[f"{subtask}_cr"] == pytest.approx(found["cr"], rel=1e-12)
    assert len(board) == 3 * 7
    for row in board:
        found = entries[row["method"]].row(row["subtask"])
        for name in ("speedup", "speedup_low", "speedup_high", "speedup_paired", "cr", "step_cost", "spread"):
            assert row[name] == pytest.approx(found[name], rel=1e-12)


@pytest.mark.skipif(not JOEY.exists(), reason="the built-in model is not in bench/assets/joey")
def test_first_steps(tmp_path):
    shorter = """
from methods.decoder import Decoder
whole, all_questions = Decoder.generate, read_questions
Decoder.generate = lambda decoder, prompt, new: whole(decoder, prompt, min(new, 32))
read_questions = lambda *given, **more: [
    question for question in all_questions(*given, **more) if question.subtask in ("math_reasoning", "qa")
]
"""
    report = f"import json; open({str(tmp_path / 'found.json')!r}, 'w').write(json.dumps([rows, lengths]))"
    book = execute(adapted("first_steps", tmp_path, after_first=shorter, at_end=report))
    rows, lengths = json.loads((tmp_path / "found.json").read_text())
    methods = [row["method"] for row in rows]
    assert methods[0] == "vanilla" and {"kangaroo", "medusa", "lookahead", "rest"} <= set(methods)
    assert all(row["same tokens as vanilla"] for row in rows)
    assert rows[0]["CR"] == 1 and all(max(lengths[name]) > 1 for name in methods[1:])
    assert pictures(book) == 1
