"""What a run says of the machine it was made on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bench.environment import describe, git_state


def test_the_description_is_json_and_names_machine_and_software() -> None:
    found = json.loads(json.dumps(describe("cpu", 3)))
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] == 3 and found["gpu"] is None
    assert found["packages"]["torch"] and found["packages"]["transformers"]


def test_git_state_of_a_clean_a_changed_and_no_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    state = git_state(tmp_path)
    assert state["dirty"] is False and len(state["commit"]) == 40
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "answers.jsonl").write_text("what a run before this one wrote")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
