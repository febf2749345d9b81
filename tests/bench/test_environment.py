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


def test_what_runs_write_is_no_change_wherever_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run(["git", "init", "-q", root], check=True)
    for folder in ("results/runs", "out [1]/here/runs"):
        (root / folder).mkdir(parents=True)
        (root / folder / "run.json").write_text("{}")
    given = root / "out [1]" / "here"
    found = [git_state(root, str(place))["dirty"] for place in (given, tmp_path / "elsewhere", root)]
    assert found == [False, True, True], "what else lies in the checkout is a change"
