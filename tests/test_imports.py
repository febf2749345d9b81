"""Imports point one way and never round, what needs no torch does not wait for it, and no file or function is long."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"bench", "hydra", "omegaconf", "pandas", "matplotlib", "tests"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_methods_know_nothing_of_the_bench() -> None:
    files = list((ROOT / "methods").rglob("*.py"))
    assert len(files) > 10
    wrong = {str(file.relative_to(ROOT)): imported(file) & FORBIDDEN for file in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_the_engine_uses_no_modelling_code_of_transformers() -> None:
    for file in (ROOT / "methods" / "engine").glob("*.py"):
        assert "transformers" not in imported(file), file


def modules() -> dict[str, Path]:
    files = [file for room in ("bench", "methods") for file in (ROOT / room).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def needed(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the project that a file imports, inside functions as well, but for type checkers alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & known.keys()) or {node.module}
    return found & known.keys()


def test_imports_never_go_round() -> None:
    known = modules()
    order = graphlib.TopologicalSorter({name: needed(file, known) for name, file in known.items()})
    order.prepare()  # raises CycleError, which names the modules


def test_no_file_and_no_function_is_long() -> None:
    for file in (*modules().values(), *(ROOT / "tests").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {node.name}"


@pytest.mark.parametrize(
    "module",
    [
        "bench.run",
        "bench.train",
        "bench.report",
        "bench.speed",
        "bench.experiment",
        "bench.joey",
        "bench.serve",
        "bench.predict",
    ],
)
def test_help_needs_no_torch(module: str) -> None:
    code = f"""import runpy, sys
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage:"), done.stdout
