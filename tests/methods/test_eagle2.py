"""EAGLE-2's tree of the published size; test_eagle.py holds smaller ones, and the draft model, which is EAGLE-1's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.methods import test_eagle
from tests.methods.test_eagle import PUBLISHED, Case, check, dynamic


def random_draft(folder: Path) -> dict[str, Any]:
    """What tests of every method configure this one with: a tree that takes no time."""
    return {**test_eagle.random_draft(folder), "top_k": 4, "depth": 3, "nodes": 20}


def test_the_published_dynamic_tree_equals_the_reference(tmp_path: Path) -> None:
    case = Case(tmp_path, 2)
    assert check(case, *dynamic(case, PUBLISHED), 6) > 2
