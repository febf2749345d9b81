"""Metrics against hand-computed values, simulated truth, and the odd runs that a results folder holds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import metrics
from bench.records.frame import merge, read_run
from bench.words import figure_warnings, format_table, summary
from methods.errors import UserError
from tests.bench.report.simulate import MACHINE, Plan, Truth, write_run

EMPTY = ["steps", "emitted", "drafted", "prefill_s", "draft_s", "verify_s"]
EMPTY += ["peak_memory_bytes", "energy_millijoules", "sm_mhz", "temperature_c", "throttled"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_acceptance_by_hand():
    lengths = [1, 3, 2, 7, 1]
    assert metrics.compression_ratio(lengths) == 14 / 5
    assert [metrics.ctar(lengths, w) for w in (1, 2, 3, 6, 7)] == [3 / 5, 2 / 5, 1 / 5, 1 / 5, 0]
    assert metrics.compression_ratio(lengths) == pytest.approx(
        1 + sum(metrics.ctar(lengths, w) or 0 for w in range(1, 8))
    )


def test_no_steps_is_missing():
    assert metrics.compression_ratio([]) is None
    assert metrics.ctar([], 1) is None
    assert metrics.spread([1.3]) is None


def test_the_three_speedups_by_hand():
    rates, baseline = np.array([20.0, 60.0]), np.array([10.0, 20.0])
    assert metrics.speedup(rates, baseline) == 80 / 30
    assert metrics.geometric_mean(rates / baseline) == pytest.approx(6**0.5)


def test_speedup_is_spec_benchs(tmp_path):
    folder = write_run(tmp_path, Plan())
    rates = {}
    for name in ("answers", "baseline"):
        choices = [line["choices"][0] for line in lines(folder / f"{name}.jsonl")]
        rates[name] = np.mean([sum(c["new_tokens"]) / sum(c["wall_time"]) for c in choices])
    assert summary(read_run(folder))["overall"]["speedup"] == pytest.approx(rates["answers"] / rates["baseline"])


def test_pooled_speedup_is_all_tokens_over_all_seconds(tmp_path):
    folder = write_run(tmp_path, Plan())
    pooled = {}
    for name in ("answers", "baseline"):
        choices = [line["choices"][0] for line in lines(folder / f"{name}.jsonl")]
        pooled[name] = sum(sum(c["new_tokens"]) for c in choices) / sum(sum(c["wall_time"]) for c in choices)
    found = summary(read_run(folder))["overall"]["speedup_pooled"]
    assert found == pytest.approx(pooled["answers"] / pooled["baseline"])


def test_known_truth_is_found(tmp_path):
    truth = Truth(acceptance=0.7, step_cost=0.4, gamma=5, noise=0.01, question_noise=0.01)
    found = summary(read_run(write_run(tmp_path, Plan(truth=truth, per_category=40, tokens=400, repeats=1))))
    overall = found["overall"]
    assert overall["cr"] == pytest.approx(truth.cr, rel=0.02)
    assert overall["ctar"] == pytest.approx(truth.ctar, abs=0.015)
    assert overall["ctar"][5] == 0  # beyond gamma: measured, and zero
    assert overall["step_cost"] == pytest.approx(truth.step_cost, abs=0.01)
    assert overall["decode_speedup"] == pytest.approx(truth.decode_speedup, rel=0.02)
    assert overall["cr"] / overall["decode_speedup"] - 1 == pytest.approx(overall["step_cost"])
    parts = overall["draft_ms"] + overall["verify_ms"] + overall["overhead_ms"]
    assert parts == pytest.approx(overall["step_ms"])
    assert list(found["subtasks"]) == ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"]


def test_average_is_the_mean_of_six_subtasks_or_missing(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan())))
    six = [row["speedup"] for row in found["subtasks"].values()]
    assert found["overall"]["speedup_average"] == pytest.approx(np.mean(six))
    partial = summary(read_run(write_run(tmp_path, Plan(categories=("qa", "rag"), seed=1))))
    assert partial["overall"]["speedup_average"] is None


def test_repeats_do_not_narrow_the_interval(tmp_path):
    """Repeats of a question are no new questions: three copies of each measurement leave the interval as it is."""
    folder = write_run(tmp_path, Plan(repeats=1))
    once = summary(read_run(folder))["overall"]
    for name in ("answers.jsonl", "baseline.jsonl"):
        copies = [json.dumps(line | {"repeat": repeat}) for repeat in range(3) for line in lines(folder / name)]
        (folder / name).write_text("".join(copy + "\n" for copy in copies))
    thrice = summary(read_run(folder))["overall"]
    assert thrice["repeats"] == 3
    for name in ("speedup", "speedup_paired"):
        assert thrice[f"{name}_low"] == pytest.approx(once[f"{name}_low"])
        assert thrice[f"{name}_high"] == pytest.approx(once[f"{name}_high"])


def test_interval_covers_the_truth_in_95_of_100():
    """1,000 simulated benchmarks of 80 questions, a subtask of Spec-Bench; question effects, three noisy repeats."""
    rng, covered, true = np.random.default_rng(7), 0, np.log(1.5)
    for _ in range(1000):
        effect = rng.gamma(2.0, 0.1, 80) - 0.2  # skewed: some questions gain much
        ratios = np.exp(true + effect + rng.normal(0, 0.1, (80, 3)).mean(axis=1))
        interval = metrics.ratio_interval(ratios, resamples=1000)
        covered += interval.low <= np.exp(true) <= interval.high
    assert 930 <= covered <= 970


def test_speedup_interval_covers_the_truth_in_95_of_100():
    rng, covered = np.random.default_rng(8), 0
    for _ in range(1000):
        baseline = rng.normal(40, 4, 80)
        rates = 1.5 * baseline + rng.gamma(2.0, 6.0, 80) - 12
        interval = metrics.bca_interval(
            lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis), rates, baseline, resamples=1000
        )
        covered += interval.low <= 1.5 <= interval.high
    assert 930 <= covered <= 970


@pytest.mark.slow
@pytest.mark.parametrize("questions", [10, 40])
def test_intervals_of_whole_benchmarks_cover_the_truth_in_95_of_100(questions):
    """1,000 simulated benchmarks through summarise_turns: questions of two turns, three noisy repeats, both sides.

    A repeat's noise is a question's own, the same in both turns, so counting turns or repeats as new questions would
    show as coverage that is too low.
    """
    rng, covered = np.random.default_rng(9), {"speedup": 0, "speedup_paired": 0}
    repeats, turns = 3, 2
    place = np.indices((questions, repeats, turns)).reshape(3, -1)
    frame = pd.DataFrame({"question_id": place[0], "repeat": place[1], "turn": place[2], "new_tokens": 100})
    frame = frame.assign(**dict.fromkeys(EMPTY, np.nan), verdict=None)
    for _ in range(1000):
        baseline = rng.normal(40, 4, questions)
        log_ratio = np.log(1.5) + rng.normal(0, 0.2, questions)
        sides = []
        for rates in (baseline * np.exp(log_ratio), baseline):
            noisy = rates[:, None] * np.exp(rng.normal(0, 0.05, (questions, repeats)))
            sides.append(frame.assign(wall_s=100 / noisy[place[0], place[1]]))
        found = metrics.summarise_turns(*sides)
        # E[exp(N(m, s))] = exp(m + s^2 / 2): the mean's truth is larger than the geometric mean's
        for name, truth in (("speedup", 1.5 * np.exp(0.2**2 / 2)), ("speedup_paired", 1.5)):
            covered[name] += found[f"{name}_low"] <= truth <= found[f"{name}_high"]
    assert all(930 <= count <= 970 for count in covered.values()), covered


def test_vanilla_has_cr_exactly_one(tmp_path):
    plan = Plan(method="vanilla", truth=Truth(gamma=0, step_cost=0.0))
    found = summary(read_run(write_run(tmp_path, plan)))
    assert found["overall"]["cr"] == 1
    assert found["overall"]["ctar"] == [0] * 6
    assert "interval includes 1" not in str(found["warnings"])


def test_no_baseline_is_missing_not_one(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan(baseline=False))))
    for name in metrics.SPEED_FIGURES:
        assert found["overall"][name] is None
    assert found["overall"]["cr"] > 1
    assert any("no baseline" in w["text"] for w in found["warnings"])
    assert "1.00" not in format_table(found)


def test_one_question_has_no_interval(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan(per_category=1, categories=("qa",)))))
    assert found["overall"]["speedup"] is not None
    assert found["overall"]["speedup_low"] is None and found["overall"]["speedup_paired_high"] is None
    assert any(w["text"] == "1 question: no interval" for w in found["warnings"])


def test_one_repeat_has_no_spread(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan(repeats=1))))
    assert found["overall"]["spread"] is None
    assert any("one repeat" in w["text"] for w in found["warnings"])


def test_unstable_repeats_and_an_interval_around_one_are_warned_of(tmp_path):
    plan = Plan(truth=Truth(acceptance=0.3, step_cost=0.43, noise=0.5), categories=("qa",), per_category=6)
    found = summary(read_run(write_run(tmp_path, plan)))
    texts = [w["text"] for w in found["warnings"] if w["scope"] == "overall"]
    assert found["overall"]["spread"] > 0.1
    assert any("repeats differ" in text for text in texts)
    assert any("interval includes 1" in text for text in texts)
    assert any("too narrow" in text for text in texts)


def test_failed_questions_leave_both_sides(tmp_path):
    folder = write_run(tmp_path, Plan(failed_questions=2))
    found = summary(read_run(folder))
    assert (found["overall"]["questions"], found["failed_questions"], found["skipped_questions"]) == (58, 2, 0)
    # a question that failed in one repeat only, and stands in answers and baseline for the others
    failure = {"question_id": 9, "category": "qa", "subtask": "qa", "repeat": 0, "turn": 0, "status": "skipped"}
    with (folder / "failures.jsonl").open("a") as file:
        file.write(json.dumps(failure | {"error": "prompt of 900 tokens"}) + "\n")
    again = summary(read_run(folder))
    assert again["skipped_questions"] == 1
    assert again["overall"]["questions"] == 57


def test_a_repeat_that_was_not_finished_makes_no_spread(tmp_path):
    plan = Plan(repeats=2, truth=Truth(noise=0.001))
    folder = write_run(tmp_path, plan)
    whole = summary(read_run(folder))["overall"]["spread"]
    for name in ("answers.jsonl", "baseline.jsonl"):
        by_repeat = {0: [], 1: []}
        for line in (folder / name).read_text().splitlines(keepends=True):
            by_repeat[json.loads(line)["repeat"]].append(line)
        (folder / name).write_text("".join(by_repeat[0] + by_repeat[1][:3]))
    found = summary(read_run(folder))
    assert whole < 0.01 and found["overall"]["spread"] < 0.01
    assert any(w["text"] == "repeat 2 of 2 is incomplete: 3 of 60 questions" for w in found["warnings"])


def test_two_questions_have_an_interval():
    assert metrics.expanded_confidence(2) < 1
    found = metrics.ratio_interval(np.array([2.0, 3.0]))
    assert found is not None and found.low <= np.sqrt(6) <= found.high


def test_a_paired_interval_around_one_is_warned_of():
    row = dict.fromkeys([*metrics.SPEED_FIGURES, "overhead_share", "mismatch"]) | {"questions": 60}
    row |= {"speedup": 1.2, "speedup_low": 1.1, "speedup_high": 1.4}
    row |= {"speedup_paired": 1.05, "speedup_paired_low": 0.9, "speedup_paired_high": 1.2}
    found = {"subtasks": {}, "overall": row, "method": "rest", "demonstration": False}
    assert [w["text"] for w in figure_warnings(found)] == [
        "the paired speedup's interval includes 1: some questions are faster, others slower"
    ]


def test_answers_without_a_partner_are_left_out(tmp_path):
    folder = write_run(tmp_path, Plan(repeats=1))
    path = folder / "baseline.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-4]))
    found = summary(read_run(folder))
    assert found["unpaired"] == 4 and found["overall"]["questions"] == 56
    assert any("without a partner" in w["text"] for w in found["warnings"])


@pytest.mark.parametrize("change", ["prompt", "turns"])
def test_answers_and_baselines_that_were_not_asked_the_same_are_no_pairs(tmp_path, change):
    folder = write_run(tmp_path, Plan(repeats=2, categories=("writing",)))
    path = folder / "baseline.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    choice = lines[0]["choices"][0]
    if change == "prompt":
        choice["prompt_sha256"][1] = "1" * 64
    else:
        cut = choice["decoding_steps"][0]
        choice |= {key: value[:1] for key, value in choice.items() if isinstance(value, list) and len(value) == 2}
        choice["accept_lengths"] = choice["accept_lengths"][:cut]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    answers, baseline, odd = metrics.paired_turns(run)
    assert odd == 1 and len(answers) == len(baseline) == 2 * 2 * 10 - 2
    said = "1 answer without a partner in the baseline that was asked the same, left out"
    assert said in [warning["text"] for warning in summary(run)["warnings"]]


def test_lossless_counts(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan(repeats=2, mismatched_turns=1, tied_turns=2))))
    overall = found["overall"]
    assert (overall["mismatch"], overall["near_tie"], overall["equal"]) == (2, 4, 2 * 70 - 6)
    assert any("not lossless" in w["text"] for w in found["warnings"])


def test_a_mismatch_counts_though_its_question_failed_in_another_repeat(tmp_path):
    run = read_run(write_run(tmp_path, Plan(repeats=2, categories=("qa",), mismatched_turns=1)))
    failure = pd.DataFrame([(1, "qa", 1, 0, "failed", "x")], columns=run.failures.columns)
    found = summary(replace(run, failures=failure))
    for row in (found["overall"], found["subtasks"]["qa"]):
        assert (row["questions"], row["mismatch"], row["equal"]) == (9, 2, 18)


def test_torn_last_line_is_left_out_and_said(tmp_path):
    folder = write_run(tmp_path, Plan(repeats=1))
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-50])
    found = summary(read_run(folder))
    assert found["overall"]["questions"] == 59
    assert any("cut off" in w["text"] for w in found["warnings"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: "{" + json.dumps(record), "not valid JSON"),
        (lambda record: "7", "expected a JSON object"),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "category"}), "'category' is missing"),
        (lambda record: json.dumps(_miscounted(record)), "new_tokens is"),
        (lambda record: json.dumps(record | {"question_id": 1}), "stands already in line 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path, damage, message):
    folder = write_run(tmp_path, Plan(repeats=1))
    path = folder / "answers.jsonl"
    text = path.read_text().splitlines()
    text[2] = damage(json.loads(text[2]))
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(UserError, match=f"answers.jsonl line 3: .*{message}"):
        summary(read_run(folder))


def _miscounted(record: dict) -> dict:
    record["choices"][0]["new_tokens"][0] += 1
    return record


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no run\.json"):
        summary(read_run(tmp_path))


def test_shards_merge_into_the_whole(tmp_path):
    whole = Plan(per_category=4)
    ids = tuple(range(1, 25))
    first = write_run(tmp_path, replace(whole, per_category=2, question_ids=ids[:12], config={"shard": "0/2"}))
    second = write_run(tmp_path, replace(whole, per_category=2, question_ids=ids[12:], config={"shard": "1/2"}, seed=0))
    merged = merge([read_run(first), read_run(second)])
    found = summary(merged)
    assert found["overall"]["questions"] == 24
    parts = [summary(read_run(folder))["overall"]["steps"] for folder in (first, second)]
    assert found["overall"]["steps"] == sum(parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": MACHINE | {"gpu": "NVIDIA H100"}}, "gpu is None in one, 'NVIDIA H100' in the other"),
        ({"machine": MACHINE | {"packages": {"torch": "2.1.0"}}}, r"packages.torch is '2.0.0' in one, '2.1.0'"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' in one, 'bfloat16' in the other"),
        ({"machine": MACHINE | {"checkpoint_sha256": {"x": "1"}}}, "checkpoint_sha256 is not the same in both"),
        ({"machine": MACHINE | {"chat_sha256": {"x": "1"}}}, "chat_sha256 is not the same in both"),
        ({"machine": MACHINE | {"commit": "1"}}, "commit is None in one, 1 in the other"),
    ],
)
def test_merging_other_machines_files_or_code_is_refused(tmp_path, change, message):
    plan = Plan(repeats=1)
    runs = [read_run(write_run(tmp_path, p)) for p in (plan, replace(plan, config={"shard": "1/2"}, **change))]
    with pytest.raises(UserError, match=message):
        merge(runs)


def test_merging_the_same_questions_twice_is_refused(tmp_path):
    runs = [read_run(write_run(tmp_path, Plan(repeats=1, config={"shard": s}))) for s in ("0/2", "1/2")]
    with pytest.raises(UserError, match="question 1 stands in more than one"):
        merge(runs)


def test_metrics_are_json_and_the_table_shows_them(tmp_path):
    found = summary(read_run(write_run(tmp_path, Plan(mismatched_turns=1))))
    again = json.loads(json.dumps(found, allow_nan=False))
    table = format_table(again)
    assert "joey / kangaroo (demonstration)" in table
    row = again["overall"]
    assert f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" in table
    assert f"{row['cr']:.2f}" in table and "mismatch" in table
    assert all(len(line) < 180 for line in table.splitlines() if not line.startswith("!"))


def test_metrics_and_report_do_not_import_torch():
    code = "import sys, bench.metrics, bench.report.command; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_baselines_share_of_what_memory_gives() -> None:
    turns = pd.DataFrame(
        {"wall_s": [1.1], "prefill_s": [0.1], "steps": [10], "prompt_tokens": [90.0], "new_tokens": [20]}
    )
    info = {"weight_bytes": 900, "kv_bytes_per_token": 1, "read_bytes_per_s": 20_000}
    assert metrics.memory_share(info, turns) == pytest.approx(10 * (900 + 100) / 20_000 / 1.0)
    assert metrics.memory_share({**info, "step_bytes": 800}, turns) == pytest.approx(10 * (800 + 100) / 20_000 / 1.0)
    assert metrics.memory_share({}, turns) is None and metrics.memory_share(info, None) is None
    assert metrics.memory_share(info, turns.assign(prefill_s=np.nan)) is None, "not recorded is missing"


def test_a_slow_baseline_is_said_beside_the_speedup(tmp_path: Path) -> None:
    found = summary(read_run(write_run(tmp_path, Plan()))) | {"demonstration": False}
    found["overall"]["baseline_memory_share"] = 0.31
    texts = [(w["scope"], w["figure"]) for w in figure_warnings(found) if "31% of what memory gives" in w["text"]]
    assert texts == [("overall", "speedup")]
    fast = found | {"overall": found["overall"] | {"baseline_memory_share": 0.5}}
    for quiet in (fast, found | {"demonstration": True}):
        assert not [w for w in figure_warnings(quiet) if "memory" in w["text"]]
