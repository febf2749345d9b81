"""Records that nobody meant to write: a report is made of the others, and says what it left out."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.records.directory import run_folders
from bench.report.collect import collect
from bench.report.command import parse
from bench.report.importer import import_runs
from bench.report.page import embedded
from bench.report.tables import csv_text, markdown, write_tables
from methods.errors import UserError
from tests.bench.report.simulate import Plan, write_run
from tests.bench.report.test_importer import answer_file

TINY = {"per_category": 2, "repeats": 1, "categories": ("qa", "rag")}
ODD = ([], {}, 5, 1e308, True, "x", [[]], {"a": {"b": [1]}}, "\u2028<script>", "x" * 3000)
KEYS = """config model method demonstration dtype git packages files gpu cores threads checkpoint_sha256
questions_sha256 unpinned started schema_version extra_parameters""".split()


@pytest.mark.parametrize("odd", range(5))
def test_a_run_json_with_fields_of_another_kind_keeps_no_other_run_out(tmp_path: Path, odd: int) -> None:
    write_run(tmp_path, Plan(**TINY))
    file = write_run(tmp_path, Plan(method="medusa", **TINY)) / "run.json"
    whole = json.loads(file.read_text())
    for number, key in enumerate(KEYS[odd::2]):
        file.write_text(json.dumps({**whole, key: ODD[(number + 2 * odd) % len(ODD)]}))
        found = collect(tmp_path)
        write_tables(found, tmp_path / "report")
        methods = [entry.run.method for group in found.groups for entry in group.entries]
        assert "kangaroo" in methods
        assert len(methods) == 2 or any(str(file.parent) in text for text in found.warnings)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        *(({"repeats": "x"}, {}), ({"limit": [1]}, {}), ({"shard": 2}, {}), ({}, {"unpinned": 5}), ({"seed": 1.5}, {})),
        *(({"method": 5}, {}), ({"model": ["x"]}, {})),
    ],
)
def test_a_setting_of_another_kind_leaves_the_run_out_by_name(tmp_path: Path, config: Any, own: Any) -> None:
    write_run(tmp_path, Plan(**TINY))
    file = write_run(tmp_path, Plan(method="medusa", **TINY)) / "run.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, **own, "config": {**whole["config"], **config}}))
    found = collect(tmp_path)
    assert [entry.run.method for group in found.groups for entry in group.entries] == ["kangaroo"]
    key = next(iter(own), f"config.{next(iter(config), '')}")
    assert any(f"{file}: {key} is " in text for text in found.warnings)


def test_a_run_that_lost_its_dtype_stands_beside_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, Plan(**TINY))
    file = write_run(tmp_path, Plan(method="medusa", **TINY)) / "run.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "dtype": None}))
    assert len(collect(tmp_path).groups) == 1, "the configuration has it still"
    file.write_text(json.dumps({**whole, "dtype": None, "config": {**whole["config"], "model": {"name": "joey"}}}))
    found = {group.entries[0].run.method: group.machine_label for group in collect(tmp_path).groups}
    assert "float32" in found["kangaroo"] and "float32" not in found["medusa"]


@pytest.mark.parametrize("lengths", [5, "x", {"a": 1}, [[1, 2]], [None], ["2"], [2.5], [-1], [10**30], [True]])
def test_odd_lengths_in_an_import_are_one_line(tmp_path: Path, lengths: Any) -> None:
    file = answer_file(tmp_path / "vicuna-7b-v1.3-medusa.jsonl", steps=[2, 3], seconds=0.5, accept_lengths=lengths)
    with pytest.raises(UserError) as error:
        import_runs([file], [])
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_separators_of_lines_are_part_of_a_text() -> None:
    text = "one\u2028two\u2029three\x85</script>"
    assert json.loads(embedded({"text": text})) == {"text": text}
    assert "\u2028" not in embedded({"text": text}) and "</" not in embedded({"text": text})


def test_a_very_long_name_is_a_short_file(tmp_path: Path) -> None:
    for method in ("kangaroo", "medusa"):
        run = write_run(tmp_path, Plan(method=method, **TINY)) / "run.json"
        run.write_text(json.dumps({**json.loads(run.read_text()), "model": "vicuna" * 400 + method}))
    names = {group.slug for group in collect(tmp_path).groups}
    assert len(names) == 2 and max(map(len, names)) < 60


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_cell_that_would_be_a_formula_is_quoted(name: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"method": name, "cr": -1.5}]), newline=""))
    assert row["method"].startswith("'") and row["cr"] == "-1.5"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[a](https://b.c)", r"\[a](https\://b.c)"),
        ("![a](b)", r"!\[a](b)"),
        ("a\\|b", r"a\\\|b"),
        ("<b>", "&lt;b\\>"),
        ("a\nb", "a b"),
        ("`x` *y* ~z~", r"\`x\` \*y\* \~z\~"),
        ("mt_bench 1.2 [1.1, 1.3]", "mt_bench 1.2 [1.1, 1.3]"),
    ],
)
def test_names_are_no_markdown(name: str, shown: str) -> None:
    assert markdown(name) == shown


@pytest.mark.parametrize("kind", ["runs", "serve"])
def test_a_folder_that_may_not_be_looked_into_is_left_out_by_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, Plan(**TINY))
    closed, look = tmp_path / kind / "vicuna-7b" / "closed", os.scandir
    closed.mkdir(parents=True)

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)  # whoever runs the tests may be allowed everything
    found = collect(tmp_path)
    assert len(found.groups) == 1
    assert f"left out: {closed}: cannot be read (Permission denied)" in found.warnings


def test_a_home_that_the_shell_left_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = parse(["results_dir=~/results", "import=~/a.jsonl,~/b.jsonl", "~/c.jsonl", "model=~"])
    assert settings.values["results_dir"] == str(tmp_path / "results") and settings.values["model"] == "~"
    assert settings.lists["import"] == [tmp_path / f"{name}.jsonl" for name in "abc"]


@pytest.mark.parametrize("kind", ["runs", "serve"])
def test_what_links_lead_to_is_found_once_and_a_link_back_is_no_end_without(tmp_path: Path, kind: str) -> None:
    there, root = write_run(tmp_path / "there", Plan(**TINY)), tmp_path / "here" / kind
    root.mkdir(parents=True)
    (root / "one").symlink_to(there.parents[1])
    (root / "two").symlink_to(there)
    (there.parent / "back").symlink_to(root)
    assert run_folders(root, unread := []) == [root / "one" / there.parent.name / there.name] and not unread
