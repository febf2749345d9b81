"""Odd results folders through the whole report: each is handled, and the page says what is the matter."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bench.report.collect import collect
from bench.report.command import main
from tests.bench.report.simulate import MACHINE, Plan, Truth, write_run

SMALL = {"per_category": 6, "repeats": 2, "categories": ("qa", "rag")}


def failed(folder: Path) -> None:
    write_run(folder, Plan(failed_questions=3, **SMALL))


def skipped(folder: Path) -> None:
    run = write_run(folder, Plan(**SMALL))
    failure = {"question_id": 2, "category": "rag", "repeat": 1, "turn": 0, "status": "skipped"}
    (run / "failures.jsonl").write_text(json.dumps(failure | {"error": "prompt of 5000 tokens"}) + "\n")


def nothing_but_failures(folder: Path) -> None:
    write_run(folder, Plan(failed_questions=12, **SMALL))


def no_baseline(folder: Path) -> None:
    write_run(folder, Plan(baseline=False, **SMALL))


def one_question(folder: Path) -> None:
    write_run(folder, Plan(per_category=1, categories=("qa",)))


def one_repeat(folder: Path) -> None:
    write_run(folder, Plan(**(SMALL | {"repeats": 1})))


def cr_of_one(folder: Path) -> None:
    write_run(folder, Plan(method="vanilla", truth=Truth(gamma=0, step_cost=0), **SMALL))


def two_machines(folder: Path) -> None:
    write_run(folder, Plan(**SMALL))
    write_run(folder, Plan(machine=MACHINE | {"cpu": "Other 1"}, truth=Truth(0.9, 0.1), **SMALL))


def torn_line(folder: Path) -> None:
    path = write_run(folder, Plan(**SMALL)) / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def torn_failure(folder: Path) -> None:
    (write_run(folder, Plan(**SMALL)) / "failures.jsonl").write_text('{"question_id": 3, "cat')


def started_run_beside(folder: Path) -> None:
    write_run(folder, Plan(**SMALL))
    for path in write_run(folder, Plan(method="medusa", **SMALL)).glob("*.jsonl"):
        path.unlink()


def one_answer_so_short_that_it_has_no_step(folder: Path) -> None:
    run = write_run(folder, Plan(**SMALL))
    for name in ("answers.jsonl", "baseline.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for choice in (line["choices"][0] for line in lines if line["question_id"] == 4):
            changes = {"decoding_steps": [0], "new_tokens": [1], "accept_lengths": [], "steps": [[]]}
            choice |= changes | {"token_ids": [choice["token_ids"][0][:1]]}
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


CASES = {
    failed: "3 questions failed and left out of both sides",
    skipped: "1 question skipped and left out of both sides",
    nothing_but_failures: "12 questions failed and left out of both sides",
    no_baseline: "no baseline was run: speedups and step cost are missing",
    one_question: "1 question: no interval",
    one_repeat: "one repeat: the spread over repeats is unknown",
    cr_of_one: "CR 1.00",
    two_machines: "Machines and models are kept apart",
    torn_line: "was cut off (a killed run) and is left out",
    torn_failure: "failures.jsonl: line 1 was cut off (a killed run) and is left out",
    started_run_beside: "no answers recorded yet, left out",
    one_answer_so_short_that_it_has_no_step: "joey",
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Folder with the report of a case, made once."""

    @cache
    def report(make) -> Path:
        folder = tmp_path_factory.mktemp(make.__name__)
        make(folder)
        assert main([f"results_dir={folder}"]) == 0
        return folder

    return report


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_it_is_handled_and_said(reported, make):
    folder = reported(make) / "report"
    assert all(path.stat().st_size for path in folder.iterdir())
    page = (folder / "index.html").read_text()
    assert CASES[make] in page
    for text in ("NaN", "nan×", "None", "inf×"):
        assert text not in page.split("\n<script>")[0]


def board(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_missing_baseline_is_an_empty_cell(reported):
    folder = reported(no_baseline)
    for row in board(folder):
        assert row["speedup"] == row["speedup_low"] == row["step_cost"] == row["spread"] == row["rank"] == ""
        assert float(row["cr"]) > 1
    names = {path.name for path in (folder / "report").iterdir()}
    assert "figure1_ctar.png" in names and not names & {"figure1_speedup.png", "step_cost.png"}


def test_vanilla_against_itself_is_one_without_a_warning(reported):
    overall = board(reported(cr_of_one))[-1]
    assert float(overall["cr"]) == 1 and [overall[f"ctar_{w}"] for w in range(1, 7)] == ["0.0"] * 6
    assert float(overall["speedup"]) == pytest.approx(1, abs=0.1) and "includes 1" not in overall["warnings"]


def test_two_machines_are_never_averaged(reported):
    folder = reported(two_machines)
    overall = [row for row in board(folder) if row["subtask"] == "overall"]
    assert [row["machine"] for row in overall] == ["A", "B"]
    alone = {group.machine: group.entries[0].metrics["overall"]["speedup"] for group in collect(folder).groups}
    assert {row["machine"]: float(row["speedup"]) for row in overall} == alone
    assert abs(alone["A"] - alone["B"]) > 0.5


def test_nothing_is_written_when_a_file_is_broken(tmp_path, capsys):
    run = write_run(tmp_path, Plan(**SMALL))
    (run / "run.json").write_text("{")
    assert main([f"results_dir={tmp_path}"]) == 2
    assert "run.json: not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_an_empty_folder_is_one_line(tmp_path, capsys):
    assert main([f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "no runs in it; expected" in error and error.count("\n") == 1


def test_the_report_needs_no_torch(tmp_path):
    """Help, a whole report and a comparison, in a process of their own: torch is not imported on the way."""
    run = str(write_run(tmp_path, Plan(per_category=1)))
    calls = [["--help"], [f"results_dir={tmp_path}"], ["--compare", run, run]]
    code = f"""import sys
from bench.report.command import main
for arguments in {calls!r}:
    assert main(arguments) == 0
    assert "torch" not in sys.modules, f"torch was imported for {{arguments}}"
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("done\n")
    assert len(said) == 4 and all(said[:3]) and "Traceback" not in done.stderr
