"""Answer files of other harnesses as runs, and ours as other harnesses read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench.questions.spec_bench import MT_BENCH
from bench.records.frame import read_run
from bench.report.command import main
from bench.report.importer import import_runs
from bench.words import summary
from methods.errors import UserError
from tests.bench.report.simulate import Plan, write_run

QUESTIONS = [(81, "writing", 2), (161, "translation", 1), (162, "translation", 1), (241, "summarization", 1)]


def answer_file(path: Path, *, steps: list[int], seconds: float, prefill_counted: bool = False, **changes) -> Path:
    """Spec-Bench's format: one line a question; `steps` are the lengths of every turn's steps."""
    lines = []
    for question_id, category, turns in QUESTIONS:
        one = [1, *steps] if prefill_counted else steps
        choice = {
            "index": 0,
            "turns": [f"answer {question_id}.{turn}" for turn in range(turns)],
            "decoding_steps": [len(steps)] * turns,
            "new_tokens": [sum(one)] * turns,
            "wall_time": [seconds * (1 + 0.1 * turn) for turn in range(turns)],
            "accept_lengths": one * turns,
        }
        lines.append({"question_id": question_id, "category": category, "answer_id": "x", "model_id": path.stem})
        lines[-1] |= {"tstamp": 1.0, "choices": [choice | changes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def spec_bench(tmp_path):
    method = answer_file(tmp_path / "vicuna-7b-v1.3-medusa-float16.jsonl", steps=[2, 3, 1, 4], seconds=0.5)
    vanilla = answer_file(tmp_path / "vicuna-7b-v1.3-vanilla-float16.jsonl", steps=[1] * 10, seconds=1.0)
    return method, vanilla


def test_spec_bench_files_are_a_run_with_what_they_know(spec_bench):
    method, vanilla = spec_bench
    (run,) = import_runs([method], [vanilla])
    assert (run.model, run.method) == ("vicuna-7b", "medusa")
    overall = summary(run)["overall"]
    assert overall["cr"] == 10 / 4
    assert overall["ctar"] == [3 / 4, 2 / 4, 1 / 4, 0, 0, 0]
    assert overall["speedup"] == pytest.approx(2.0)
    assert overall["questions"] == 4 and overall["turns"] == 5


def test_what_they_cannot_know_is_empty(spec_bench):
    (run,) = import_runs([spec_bench[0]], [spec_bench[1]])
    overall = summary(run)["overall"]
    unknown = ("step_ms", "draft_ms", "verify_ms", "overhead_share", "step_cost", "drafted_per_step", "decode_speedup")
    assert [overall[name] for name in unknown] == [None] * len(unknown)
    assert (overall["equal"], overall["unchecked"]) == (0, 5)
    assert any("imported: machine, settings" in note for note in run.notes)
    assert any("0 of 5 turns have another text" in note for note in run.notes)
    assert any("does not tell whether the prompt's pass is among its steps" in note for note in run.notes)
    assert not any("taken for repeats" in note for note in run.notes)


def test_the_authors_kangaroo_counts_prefill_as_a_length_which_is_no_step(tmp_path):
    """Their accept_lengths begin each turn with the 1 of the prefill, and lie in <model id>/<repeat>.jsonl."""
    files = [
        answer_file(
            tmp_path / "vicuna-7b-v1.3-kangaroo-thres-0.6-steps-6-float16" / f"{repeat}.jsonl",
            steps=[2, 4, 3],
            seconds=0.4 + 0.01 * repeat,
            prefill_counted=True,
        )
        for repeat in range(3)
    ]
    for file in files:
        lines = [json.loads(line) | {"model_id": file.parent.name} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = import_runs(files, [])
    found = summary(run)
    assert (run.method, found["overall"]["repeats"]) == ("kangaroo", 3)
    assert found["overall"]["cr"] == 3.0
    assert found["overall"]["speedup"] is None and any("no baseline" in w["text"] for w in found["warnings"])
    assert any("prefill, is no step" in note for note in run.notes)


def test_files_of_one_model_id_that_disagree_are_said_and_one_given_twice_is_refused(tmp_path):
    files = [
        answer_file(tmp_path / name / "medusa.jsonl", steps=steps, seconds=seconds)
        for name, steps, seconds in (("a", [2, 3], 0.5), ("b", [2, 2], 0.4), ("c", [2, 2], 0.4))
    ]
    (run,) = import_runs(files[:2], [])
    assert any("5 of 5 turns have other numbers of tokens in other files of medusa" in note for note in run.notes)
    lines = files[1].read_text().splitlines(keepends=True)
    for name, kept in (("reversed", lines[::-1]), ("half", lines[:2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(kept))
    copies = [[files[1], tmp_path / f"{name}.jsonl"] for name in ("reversed", "half")]
    for pair in (files[1:], [files[0], files[0]], *copies):
        with pytest.raises(UserError, match=f"{pair[1]} hold the same answers with the same times; give one of them"):
            import_runs(pair, [])


def test_questions_with_an_error_do_not_say_what_lengths_are(tmp_path):
    """An ERROR turn repeats the steps of the turn before and adds no lengths."""
    file = answer_file(tmp_path / "kangaroo.jsonl", steps=[2, 4, 3], seconds=0.4, prefill_counted=True)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["choices"][0] |= {"turns": ["ERROR"], "accept_lengths": []}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = import_runs([file], [])
    assert summary(run)["overall"]["cr"] == 3.0 and any("prefill, is no step" in note for note in run.notes)


def test_a_repeat_that_does_not_tell_what_its_lengths_are_is_named_and_changes_no_other(tmp_path):
    files = [
        answer_file(tmp_path / f"{n}.jsonl", steps=[2, 4, 3], seconds=0.4 + n, prefill_counted=n == 0) for n in range(2)
    ]
    for file in files:
        lines = [json.loads(line) | {"model_id": "kangaroo"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = import_runs(files, [])
    assert summary(run)["overall"]["cr"] == 3.0 and any("prefill, is no step" in note for note in run.notes)
    assert any(note.startswith(f"{files[1]}: the file does not tell whether") for note in run.notes)


def test_plain_decoding_may_be_a_row_beside_its_own_baseline(spec_bench):
    medusa, vanilla = import_runs([*spec_bench], [spec_bench[1]])
    assert vanilla.method == "vanilla" and summary(vanilla)["overall"]["speedup"] == 1
    assert summary(medusa)["overall"]["speedup"] == pytest.approx(2.0)


def test_failed_turns_leave_both_sides(spec_bench):
    method, vanilla = spec_bench
    lines = [json.loads(line) for line in method.read_text().splitlines()]
    lines[1]["choices"][0]["turns"][0] = "ERROR"
    method.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = import_runs([method], [vanilla])
    found = summary(run)
    assert found["failed_questions"] == 1 and found["overall"]["questions"] == 3


def test_imported_runs_stand_in_the_report_apart_from_measured_ones(spec_bench, tmp_path, capsys):
    write_run(tmp_path / "results", Plan(per_category=1, repeats=1))
    arguments = [f"results_dir={tmp_path / 'results'}", f"import={spec_bench[0]}", f"baseline={spec_bench[1]}"]
    assert main(arguments) == 0
    with (tmp_path / "results" / "report" / "leaderboard.csv").open() as file:
        rows = {(r["machine"], r["model"], r["method"]): r for r in csv.DictReader(file) if r["subtask"] == "overall"}
    assert {key[1:] for key in rows} == {("joey", "kangaroo"), ("vicuna-7b", "medusa")}
    assert len({key[0] for key in rows}) == 2  # another machine's
    page = (tmp_path / "results" / "report" / "index.html").read_text()
    assert "machine not recorded" in page and "imported: machine, settings" in page


def test_only_imported_files_need_no_results(spec_bench, tmp_path):
    out = tmp_path / "out"
    arguments = [f"results_dir={tmp_path / 'none'}", f"output={out}", f"import={spec_bench[0]}", "method=mine"]
    assert main(arguments) == 0
    assert "mine" in (out / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no answers in it"),
        ('{"question_id": 1, "category": "qa"}\n', "line 1: not a Spec-Bench answer, 'choices' is missing"),
        ("nonsense\n{}\n", "line 1: not valid JSON"),
        (
            '{"question_id": 1, "category": "qa", "choices": [{"turns": ["a"], "new_tokens": [], "wall_time": [1]}]}\n',
            "line 1: new_tokens does not hold one value for each of 1 turns",
        ),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        import_runs([path], [])


def test_a_missing_file_and_a_baseline_alone(tmp_path, capsys):
    assert main([f"import={tmp_path / 'none.jsonl'}"]) == 2
    assert main(["baseline=x.jsonl"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "no such file" in lines[0] and "baseline= goes with import=" in lines[1] and len(lines) == 2


def spec_bench_speed(answers: Path, baseline: Path, task: str, tokens_of_text) -> tuple[float, float]:
    """(mean accepted tokens, speedup) as Spec-Bench's evaluation/speed.py takes them from two files.

    It counts the method's tokens by new_tokens, and the baseline's by its text.
    """

    def chosen(path: Path) -> list[dict]:
        records = [json.loads(line) for line in path.open(encoding="utf-8")]
        wanted = MT_BENCH if task == "mt_bench" else (task,)
        return [r["choices"][0] for r in records if task == "overall" or r["category"] in wanted]

    ours = [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in chosen(answers)]
    lengths = [length for choice in chosen(answers) for length in choice["accept_lengths"]]
    theirs = [sum(map(tokens_of_text, c["turns"])) / sum(c["wall_time"]) for c in chosen(baseline)]
    return float(np.mean(lengths)), float(np.mean(ours) / np.mean(theirs))


def spec_bench_equal(answers: Path, baseline: Path) -> bool:
    """As Spec-Bench's evaluation/equal.py: the turns of line after line are the same text."""
    texts = [[str(json.loads(line)["choices"][0]["turns"]) for line in path.open()] for path in (answers, baseline)]
    return len(texts[0]) == len(texts[1]) and texts[0] == texts[1]


@pytest.mark.parametrize("task", ["mt_bench", "translation", "qa", "overall"])
def test_spec_benchs_scripts_read_our_files(tmp_path, task):
    folder = write_run(tmp_path, Plan(repeats=1))
    answers, baseline = folder / "answers.jsonl", folder / "baseline.jsonl"
    cr, speedup = spec_bench_speed(answers, baseline, task, lambda text: len(text.split()))
    found = summary(read_run(folder))
    row = found["overall"] if task == "overall" else found["subtasks"][task]
    assert cr == pytest.approx(row["cr"]) and speedup == pytest.approx(row["speedup"])
    assert spec_bench_equal(answers, baseline)


def test_spec_benchs_equal_sees_a_difference(tmp_path):
    folder = write_run(tmp_path, Plan(repeats=1, mismatched_turns=1))
    assert not spec_bench_equal(folder / "answers.jsonl", folder / "baseline.jsonl")
