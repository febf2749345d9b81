"""Files that take the place of others only when they are whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bench.files import replace_file, replace_text
from methods.errors import UserError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    file = tmp_path / "rest.safetensors"
    file.write_text("whole")

    def write(path: Path) -> None:
        path.write_text("ha")
        raise error

    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); the file that was there is unt"
    ):
        replace_file(file, write)
    assert [path.name for path in tmp_path.iterdir()] == ["rest.safetensors"] and file.read_text() == "whole"


def test_a_killed_write_leaves_one_file_at_most(tmp_path: Path) -> None:
    killed = f"""import os, pathlib
from bench.files import replace_file
replace_file(pathlib.Path({str(tmp_path / "state.pt")!r}), lambda path: (path.write_text("ha"), os._exit(9)))
"""
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
        (left,) = tmp_path.iterdir()
        assert (left / "state.pt").read_text() == "ha"
    replace_file(tmp_path / "state.pt", lambda path: path.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each begins while another writes; both end, and what stands there is whole throughout."""
    seen = []

    def write(path: Path, text: str, inner: Callable[[], None] = lambda: None) -> None:
        path.write_text(text[:1])
        inner()
        assert path.read_text() == text[:1]
        path.write_text(text)

    def another() -> None:
        replace_file(tmp_path / "state.pt", lambda path: write(path, "another"))
        seen.append((tmp_path / "state.pt").read_text())

    replace_file(tmp_path / "state.pt", lambda path: write(path, "the first", another))
    assert seen == ["another"] and (tmp_path / "state.pt").read_text() == "the first"
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_link_goes_and_what_it_named_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("page", ".page.partial"):
        (tmp_path / name).symlink_to(victim)
    replace_text(tmp_path / "page", "new \ud800")
    assert victim.read_text() == "precious" and not (tmp_path / "page").is_symlink()
    assert (tmp_path / "page").read_text() == "new \\ud800"


def test_the_caller_says_what_the_user_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^data\.path={tmp_path / 'file'}: question\.jsonl cannot be written"):
        replace_text(tmp_path / "file" / "question.jsonl", "", "data.path")


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    replace_file(tmp_path / "tensors", lambda path: save_file({"a": torch.zeros(2)}, path))
    modes = {os.stat(tmp_path / name).st_mode & 0o777 for name in ("plain", "tensors")}
    assert len(modes) == 1
