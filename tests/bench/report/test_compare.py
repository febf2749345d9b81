"""Two runs against each other: what the interval allows to say, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bench.records.frame import read_run
from bench.report.command import main
from bench.report.compare import compare, format_comparison
from tests.bench.report.simulate import MACHINE, Plan, Truth, write_run

PLAN = Plan(repeats=2, per_category=8)


def runs(tmp_path, **changes):
    """Kangaroo twice, the second time with other settings."""
    second = replace(PLAN, seed=1, **({"settings": {"eta": 0.4}} | changes))
    return [read_run(write_run(tmp_path, plan)) for plan in (replace(PLAN, settings={"eta": 0.6}), second)]


def test_a_true_difference_is_found_with_its_size(tmp_path):
    a, b = runs(tmp_path, truth=Truth(0.6, 0.3 * 0.5))
    name, rows = compare(a, b)
    overall = rows[-1]
    true = 1.3 / 1.15
    assert name == "speedup" and overall.questions == 48
    assert overall.interval.low < true < overall.interval.high
    assert overall.ratio == pytest.approx(true, rel=0.05) and overall.verdict == "B is faster"
    assert [row.subtask for row in rows] == [
        *("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag", "overall")
    ]


def test_no_difference_is_said_to_be_noise(tmp_path):
    text = format_comparison(*runs(tmp_path))
    assert "is within the noise; nothing shows that A and B differ in speed." in text
    assert "config.method.eta: 0.6 | 0.4" in text and "config.seed: 0 | 1" in text


def test_slower_is_said_the_right_way_round(tmp_path):
    text = format_comparison(*runs(tmp_path, truth=Truth(0.6, 0.6)))
    assert "slower than A, and the interval excludes 1." in text


def test_machine_drift_between_the_runs_cancels(tmp_path):
    """B's machine was slower throughout; its own baseline says so."""
    a, b = runs(tmp_path)
    for turns in (b.answers, b.baseline):
        turns["wall_s"] *= 1.7
    assert compare(a, b)[1][-1].verdict == "within the noise"


def test_without_a_baseline_tokens_per_second_are_compared_and_said(tmp_path):
    text = format_comparison(*runs(tmp_path, baseline=False))
    assert "tokens/s (a baseline is missing)" in text


def test_only_shared_questions_count_and_the_rest_is_said(tmp_path):
    text = format_comparison(*runs(tmp_path, per_category=10))
    assert "12 questions not answered by both, left out" in text


def test_a_failed_question_is_left_out_and_lossless_counts_stand_beside(tmp_path):
    text = format_comparison(*runs(tmp_path, failed_questions=1, mismatched_turns=3))
    assert "1 question not answered by both, left out" in text
    assert re.search(r"B, turns against its baseline's: \d+ equal, 0 near tie, 6 mismatch, 0 unchecked", text)
    assert "6 turns not lossless" in text


def test_other_software_and_other_prompts_are_said(tmp_path):
    a, b = runs(tmp_path)
    b.info["platform"] = "another"
    b.answers.loc[b.answers.question_id == 7, "prompt_sha256"] = "1" * 64
    text = format_comparison(a, b)
    assert "platform: None | 'another'" in text
    assert "1 question asked with another prompt" in text


def test_a_run_against_itself_is_the_same(tmp_path):
    run = read_run(write_run(tmp_path, PLAN))
    text = format_comparison(run, run)
    assert "A and B are equally fast on every question." in text
    assert "Config, commit, environment and checkpoints are the same." in text


def test_one_question_is_too_few(tmp_path):
    a, b = (write_run(tmp_path, replace(PLAN, per_category=1, categories=("qa",), seed=seed)) for seed in (0, 1))
    assert "too few questions to tell A and B apart" in format_comparison(read_run(a), read_run(b))


def test_the_command_prints_it(tmp_path, capsys):
    folders = [str(run.folders[0]) for run in runs(tmp_path)]
    assert main(["--compare", *folders]) == 0
    assert "B over A" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": MACHINE | {"gpu": "NVIDIA H100"}}, "gpu is None in one, 'NVIDIA H100' in the other"),
        ({"model": "vicuna-7b"}, "model is joey and vicuna-7b"),
        ({"question_ids": tuple(range(500, 548))}, "no question was answered in both"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, capsys, changes, message):
    folders = [str(run.folders[0]) for run in runs(tmp_path, **changes)]
    assert main(["--compare", *folders]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_compare_takes_two_run_directories(tmp_path, capsys):
    assert main(["--compare", "one"]) == 2
    assert main(["--compare", str(tmp_path), str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "takes two run directories, not 1" in lines[0] and "no run.json in it" in lines[1] and len(lines) == 2


def test_what_the_words_say_is_what_was_computed(tmp_path):
    a, b = runs(tmp_path, truth=Truth(0.8, 0.1))
    overall = compare(a, b)[1][-1]
    assert overall.cr == pytest.approx((Truth(0.6).cr, Truth(0.8).cr), rel=0.03)
    assert f"Overall: B is {100 * (overall.ratio - 1):.1f} % faster than A" in format_comparison(a, b)
