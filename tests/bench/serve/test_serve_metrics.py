"""Statistics of load: recorded answers with known times in, known figures out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.serve.acceptance import Acceptance
from bench.serve.metrics import crossing, summarise
from bench.serve.records import Records
from bench.serve.words import crossing_text, format_table


def rates(level_speedups: dict[int, float], questions: int = 30, noise: float = 0.0) -> dict[int, pd.DataFrame]:
    rng = np.random.default_rng(1)
    found = {}
    for level, speedup in level_speedups.items():
        plain = rng.uniform(50, 100, questions) / level
        ours = plain * speedup * np.exp(rng.normal(-(noise**2) / 2, noise, questions)) if noise else plain * speedup
        found[level] = pd.DataFrame({"speculative": ours, "baseline": plain}, index=range(questions))
    return found


def test_the_crossing_lies_on_the_line_between_two_levels() -> None:
    found = crossing(rates({1: 2.0, 4: 1.0 / 0.5**0.5, 16: 2**-0.5, 32: 0.5}))
    assert found is not None and found["at"] == pytest.approx(8.0)
    assert found["low"] == pytest.approx(8.0) and found["high"] == pytest.approx(8.0)


def test_a_curve_that_stays_on_one_side_has_no_crossing() -> None:
    above, below = crossing(rates({1: 2.0, 8: 1.5})), crossing(rates({1: 0.9, 8: 0.5}))
    assert above is not None and (above["at"], above["low"], above["high"]) == (None, None, None)
    assert below is not None and (below["at"], below["low"], below["high"]) == (0.0, 0.0, 0.0)
    assert "falls to 1: > 8 (95 % interval: > 8 to > 8)" in crossing_text(above)
    assert "falls to 1: ≤ 1" in crossing_text(below)
    assert crossing(rates({1: 2.0})) is None and crossing({}) is None


def test_the_crossings_interval_holds_the_truth_and_narrows_with_questions() -> None:
    truth = {1: 1.8, 4: 1.3, 16: 0.8}  # log-linear between 4 and 16
    at = 4 * 4 ** (np.log(1.3) / np.log(1.3 / 0.8))
    widths = []
    for questions in (10, 300):
        found = crossing(rates(truth, questions, noise=0.3))
        assert found is not None and found["low"] <= at <= found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0]


def line(question: int, side: str, seconds: float, **more: Any) -> dict[str, Any]:
    found = {
        "question_id": question, "category": "qa", "subtask": "qa", "repeat": 0, "turn": 0, "level": 2,
        "block": question // 2, "side": side, "attempt": side, "status": "ok", "prompt_sha256": "p", "new_tokens": 11,
        "wall_s": seconds, "ttft_s": 0.1 * (1 + question), "times_s": [0.1 * (1 + question), seconds],
        "cached_tokens": None, "miscounted": False, "acceptance": None,
    }  # fmt: skip
    return found | more


def block(number: int, side: str, wall_s: float, **more: Any) -> dict[str, Any]:
    found = {"level": 2, "repeat": 0, "block": number, "side": side, "wall_s": wall_s, "client_cpu_share": 0.1}
    return {**found, "acceptance": None, "counted_tokens": None, **more}


def records(requests: list[dict[str, Any]], blocks: list[dict[str, Any]], **config: Any) -> Records:
    info = {"model": "m", "method": "x", "config": {"concurrency": [2], **config}}
    return Records(Path("nowhere"), info, requests, blocks, [])


SIDES = ("speculative", "baseline")
FOUR = [line(q, side, 1.0 if side == "speculative" else 2.0) for q in range(4) for side in SIDES]
BLOCKS = [block(n, side, 1.5 if side == "speculative" else 2.5) for n in range(2) for side in SIDES]


def test_a_levels_figures() -> None:
    (row,) = summarise(records(FOUR, BLOCKS))["levels"]
    assert row["speedup"] == pytest.approx(2.0) and row["questions"] == 4 and row["unchecked"] == 4
    assert row["tokens_per_s"] == pytest.approx(11.0) and row["baseline_tokens_per_s"] == pytest.approx(5.5)
    assert row["throughput"] == pytest.approx(44 / 3) and row["throughput_ratio"] == pytest.approx(5 / 3)
    assert row["ttft_ms_p50"] == pytest.approx(250) and row["ttft_ms_p99"] == pytest.approx(397)
    assert row["gap_ms_p50"] == pytest.approx(750) and row["baseline_wall_ms_p90"] == pytest.approx(2000)
    assert row["token_ms_p50"] == pytest.approx(75) and row["baseline_token_ms_p50"] == pytest.approx(175)
    assert row["cr"] is None and row["ctar"] == [None] * 6 and row["cached_share"] is None


def test_time_by_token_counts_what_the_first_event_brought_and_skips_answers_of_one_event() -> None:
    told = [one | {"counts": [3, 8]} if one["side"] == SIDES[0] else one | {"times_s": [0.1]} for one in FOUR]
    (row,) = summarise(records(told, BLOCKS))["levels"]
    assert row["token_ms_p50"] == pytest.approx(750 / 8) and row["baseline_token_ms_p50"] is None


def test_a_failed_question_is_out_of_both_sides_and_an_unpaired_block_too() -> None:
    failed = line(1, "baseline", 0.0, status="failed", new_tokens=None, wall_s=None, ttft_s=None, times_s=None)
    requests = [one for one in FOUR if (one["question_id"], one["side"]) != (1, "baseline")] + [failed]
    (row,) = summarise(
        records([*requests, line(9, "speculative", 9.0, block=7)], [*BLOCKS, block(7, "speculative", 9)])
    )["levels"]
    assert (row["questions"], row["failed"], row["blocks"]) == (3, 1, 1)


def test_acceptance_of_answers_and_else_of_counters() -> None:
    said = {"accepted": 5, "drafted": 10, "steps": None, "deeper": [3, 2]}
    told = [one | {"acceptance": said} if one["side"] == "speculative" else one for one in FOUR]
    (row,) = summarise(records(told, BLOCKS))["levels"]
    assert (
        row["cr"] == pytest.approx(10 / 5) and row["ctar"][:3] == [3 / 5, 2 / 5, 0] and row["draft_acceptance"] == 0.5
    )
    assert row["acceptance_from"] == "answers"
    counted = [one | {"acceptance": {**said, "accepted": 10, "drafted": 20}} for one in BLOCKS]
    (row,) = summarise(records(FOUR, counted))["levels"]
    assert row["cr"] == pytest.approx(40 / 20) and row["acceptance_from"] == "counters"


def test_an_answer_of_llama_cpp_without_a_draft_has_as_many_steps_as_tokens() -> None:
    said = {"accepted": 5, "drafted": 10, "steps": None, "deeper": None}
    told = [one | {"acceptance": said} if one["side"] == SIDES[0] and one["question_id"] < 2 else one for one in FOUR]
    for engine, cr in (("llama_cpp", 40 / 30), ("vllm", 20 / 10)):
        found = records(told, BLOCKS)
        found.info["servers"] = {"speculative": {"engine": engine}}
        assert summarise(found)["levels"][0]["cr"] == pytest.approx(cr)


@pytest.mark.parametrize(
    ("blocks", "requests", "said"),
    [
        ({"client_cpu_share": 0.8}, {}, "the client itself used 80% of a processor"),
        ({"counted_tokens": 30}, {}, "the servers counted 32 tokens beyond these answers'"),
        ({}, {"miscounted": True}, "8 answers with another number of token ids"),
        ({}, {"cached_tokens": 5}, "part of some prompts came from a cache"),
    ],
)
def test_what_a_reader_must_know_is_said(blocks: dict[str, Any], requests: dict[str, Any], said: str) -> None:
    found = summarise(records([one | requests for one in FOUR], [one | blocks for one in BLOCKS]))
    warning = [text for text in found["warnings"] if said.removeprefix("8 ") in text]
    assert warning and warning[0].startswith("2 at a time: ") and said.removeprefix("8 ") in format_table(found)


def test_a_throughput_of_one_block_has_no_interval_and_that_is_said() -> None:
    one = [line | {"block": 0} for line in FOUR]
    for blocks, count in ((BLOCKS[:2], 1), (BLOCKS, 0)):
        found = summarise(records(one if count else FOUR, blocks))
        assert sum("one block: the throughput has no interval" in text for text in found["warnings"]) == count


def test_nothing_finished_yet_has_a_table_too() -> None:
    found = summarise(records([], []))
    assert found["levels"] == [] and "no block was finished by both servers yet" in format_table(found)


def counters(accepted: int = 6, tokens: int = 22, **more: Any) -> dict[str, Any]:
    """What a server counted of a block of FOUR: two answers of 11 tokens."""
    said = {"accepted": accepted, "drafted": 20, "steps": None, "deeper": [4, 2], "drafts": 7}
    return {"acceptance": said, "counted_tokens": tokens, **more}


def test_verdicts_of_failed_questions_count_no_more_than_their_turns() -> None:
    verdicts = [{"level": 2, "repeat": 0, "question_id": q, "turn": 0, "verdict": "equal"} for q in range(4)]
    (row,) = summarise(replace(records(FOUR, BLOCKS), verdicts=verdicts))["levels"]
    assert (row["turns"], row["equal"], row["unchecked"]) == (4, 4, 0)
    later = line(1, SIDES[0], 0.0, turn=1, status="failed", new_tokens=None)
    (row,) = summarise(replace(records([*FOUR, later], BLOCKS), verdicts=verdicts))["levels"]
    assert (row["failed"], row["turns"], row["equal"], row["unchecked"]) == (1, 3, 3, 0)


@pytest.mark.parametrize("side", SIDES)
def test_a_block_with_a_failed_request_is_in_no_sum_over_blocks(side: str) -> None:
    """Its seconds and the server's counts have the request, its tokens are known to nobody."""
    blocks = [one | counters() if one["side"] == SIDES[0] else one | {"counted_tokens": 22} for one in BLOCKS]
    (whole,) = summarise(records(FOUR, blocks))["levels"]
    assert whole["cr"] == pytest.approx(40 / 28) and whole["acceptance_from"] == "counters"
    lost = {"status": "failed", "new_tokens": None}
    requests = [one | lost if (one["question_id"], one["side"]) == (1, side) else one for one in FOUR]
    found = summarise(records(requests, [blocks[0] | counters(15), blocks[1] | {"wall_s": 99}, *blocks[2:]]))
    (row,) = found["levels"]
    for name in ("cr", "ctar", "throughput_ratio", "baseline_throughput", "foreign_tokens"):
        assert row[name] == whole[name], name
    assert "; throughput and the servers' counts are of the blocks without them" in format_table(found)
    requests = [one | lost if one["side"] == side and one["question_id"] in (1, 2) else one for one in FOUR]
    (row,) = summarise(records(requests, blocks))["levels"]
    assert (row["throughput"], row["throughput_ratio"], row["cr"], row["foreign_tokens"]) == (None,) * 4


LEFT_OUT = "1 block left out of CR and CTAR: the server's counters were not to be had, began anew, or count what others"


def with_counters(*ours: dict[str, Any]) -> list[dict[str, Any]]:
    """BLOCKS with what the speculative server counted of each of the two, and with all that the plain one counted."""
    told = iter(ours)
    return [one | (next(told) if one["side"] == SIDES[0] else {"counted_tokens": 22}) for one in BLOCKS]


def test_a_block_whose_counters_do_not_fit_its_answers_is_in_no_cr_and_said() -> None:
    none = {"acceptance": None, "counted_tokens": None}
    for odd, foreign in (
        (counters(1, tokens=9), 0),
        (counters(tokens=30), 8),
        (none, 0),
        (none | {"counted_tokens": -9}, 0),
    ):
        found = summarise(records(FOUR, with_counters(odd, counters())))
        (row,) = found["levels"]
        assert (row["foreign_tokens"], row["uncounted_blocks"]) == (foreign, 1)
        assert row["cr"] == pytest.approx(20 / 14) and LEFT_OUT in format_table(found)
        assert ("8 tokens beyond these answers': others used them too" in format_table(found)) is bool(foreign)
    (row,) = summarise(records(FOUR, with_counters(counters(1, tokens=9), counters(1, tokens=9))))["levels"]
    assert (row["cr"], row["acceptance_from"], row["uncounted_blocks"]) == (None, None, 2)
    anew = none | {"counted_tokens": -9}
    found = summarise(records(FOUR, with_counters(anew, anew)))
    assert found["levels"][0]["cr"] is None and LEFT_OUT.replace("1 block", "2 blocks") in format_table(found)


def test_the_plain_servers_counters_say_nothing_of_cr() -> None:
    for tokens, foreign in ((9, 0), (52, 60), (None, 0)):
        blocks = [one | ({} if one["side"] == SIDES[0] else {"counted_tokens": tokens})
                  for one in with_counters(counters(), counters())]  # fmt: skip
        found = summarise(records(FOUR, blocks))
        (row,) = found["levels"]
        assert (row["cr"], row["uncounted_blocks"], row["foreign_tokens"]) == (pytest.approx(40 / 28), 0, foreign)
        assert "left out of CR" not in format_table(found)


def test_counters_that_lag_a_little_count_tokens_and_accepted_drafts_alike() -> None:
    """True are 1,000 tokens of two answers in 200 steps of 5; four of these are not counted yet."""
    requests = [one | {"new_tokens": 501} for one in FOUR]
    late = {"accepted": 4 * 196, "drafted": 4 * 196, "steps": None, "deeper": [196] * 4, "drafts": 196}
    told = {"acceptance": late, "counted_tokens": 982}
    blocks = [one | {"counted_tokens": 1002} if one["side"] == SIDES[1] else one for one in with_counters(told, told)]
    (row,) = summarise(records(requests, blocks))["levels"]
    assert (row["uncounted_blocks"], row["foreign_tokens"]) == (0, 0)
    assert row["cr"] == pytest.approx(5) and row["ctar"][:5] == [1, 1, 1, 1, 0]


def test_a_step_that_comes_late_is_no_restart_and_made_up_for_by_nobody_else() -> None:
    late = counters(4, tokens=19) | {"acceptance": counters(4)["acceptance"] | {"deeper": [3, 1], "drafts": 6}}
    more = counters(8, tokens=25) | {"acceptance": counters(8)["acceptance"] | {"deeper": [5, 3], "drafts": 8}}
    (row,) = summarise(records(FOUR, with_counters(late, more)))["levels"]
    assert (row["uncounted_blocks"], row["foreign_tokens"]) == (0, 0)
    assert row["cr"] == pytest.approx((17 + 23) / (13 + 15))
    (row,) = summarise(records(FOUR, with_counters(more, late)))["levels"]
    assert row["uncounted_blocks"] == 1, "nothing was late yet"


LATE = counters(8, tokens=25) | {"acceptance": counters(8)["acceptance"] | {"deeper": [5, 3], "drafts": 8}}


def test_what_a_warm_up_owes_is_nobody_elses() -> None:
    (row,) = summarise(records(FOUR, with_counters(LATE | {"unrecorded": True}, counters())))["levels"]
    assert (row["cr"], row["uncounted_blocks"], row["foreign_tokens"]) == (pytest.approx(43 / 29), 0, 0)


def test_what_one_level_owes_another_makes_up_for() -> None:
    fewer = counters(4, tokens=19) | {"acceptance": counters(4)["acceptance"] | {"deeper": [3, 1], "drafts": 6}}
    blocks = [*with_counters(counters(), fewer), *(one | {"level": 4} for one in with_counters(LATE, counters()))]
    requests = [one | {"level": level} for level in (2, 4) for one in FOUR]
    rows = summarise(records(requests, blocks, concurrency=[2, 4]))["levels"]
    assert [(row["uncounted_blocks"], row["foreign_tokens"]) for row in rows] == [(0, 0), (0, 0)]


def test_what_a_block_with_a_failed_request_owes_is_not_known() -> None:
    lost = {"status": "failed", "new_tokens": None}
    requests = [one | lost if (one["question_id"], one["side"]) == (1, SIDES[0]) else one for one in FOUR]
    (row,) = summarise(records(requests, with_counters(counters(2, tokens=8), LATE)))["levels"]
    assert (row["cr"], row["uncounted_blocks"], row["foreign_tokens"]) == (pytest.approx(23 / 15), 0, 0)


def test_whose_tokens_are_in_cr() -> None:
    """The plain server's are not, and those that a block has too many are, though a later one has too few."""
    fewer = counters(4, tokens=19) | {"acceptance": counters(4)["acceptance"] | {"deeper": [3, 1], "drafts": 6}}
    blocks = [one | {"counted_tokens": 522} if one["side"] == SIDES[1] else one for one in with_counters(fewer, LATE)]
    found = summarise(records(FOUR, blocks))
    assert found["levels"][0]["foreign_tokens"] == 1000 and "count some of theirs" not in format_table(found)
    requests = [one | {"new_tokens": 501} for one in FOUR]
    told = {"acceptance": counters(800)["acceptance"] | {"deeper": [200] * 4, "drafts": 200}}
    blocks = [one | {"counted_tokens": 1002} if one["side"] == SIDES[1] else one
              for one in with_counters(told | {"counted_tokens": 1009}, told | {"counted_tokens": 995})]  # fmt: skip
    found = summarise(records(requests, blocks))
    assert "7 tokens beyond these answers': others used them too, and CR and CTAR count some" in format_table(found)


def test_some_tokens_of_others_are_in_cr_and_that_is_said() -> None:
    requests = [one | {"new_tokens": 501} for one in FOUR]
    told = {"acceptance": counters(800)["acceptance"] | {"deeper": [200] * 4, "drafts": 200}}
    for tokens, left_out in ((1002, 0), (1020, 0), (1030, 1), (970, 1)):
        blocks = with_counters(told | {"counted_tokens": tokens}, told | {"counted_tokens": 1002})
        blocks = [one | {"counted_tokens": 1002} if one["side"] == SIDES[1] else one for one in blocks]
        found = summarise(records(requests, blocks))
        (row,) = found["levels"]
        assert row["uncounted_blocks"] == left_out and row["foreign_tokens"] == max(0, tokens - 1002)
        assert ("and CR and CTAR count some of theirs" in format_table(found)) is (tokens == 1020)


def test_tokens_of_others_are_summed_for_each_server() -> None:
    blocks = [one | {"counted_tokens": 26 if one["side"] == SIDES[0] else 21} for one in BLOCKS]
    (row,) = summarise(records(FOUR, blocks))["levels"]
    assert (row["foreign_tokens"], row["uncounted_blocks"]) == (8, 0), "what one counts too few is not taken off"


def test_a_divergence_counts_though_its_question_failed_elsewhere() -> None:
    requests = [one | {"repeat": repeat} for one in FOUR for repeat in range(2)]
    lost = {"status": "failed", "new_tokens": None}
    requests = [one | lost if (one["repeat"], one["question_id"]) == (1, 1) else one for one in requests]
    blocks = [one | {"repeat": repeat} for one in BLOCKS for repeat in range(2)]
    said = [(q, repeat, "equal") for q in (0, 2, 3) for repeat in range(2)] + [(1, 0, "divergent")]
    verdicts = [{"level": 2, "repeat": repeat, "question_id": q, "turn": 0, "verdict": v} for q, repeat, v in said]
    found = summarise(replace(records(requests, blocks), verdicts=verdicts))
    (row,) = found["levels"]
    assert (row["equal"], row["divergent"], row["failed"], row["unchecked"]) == (6, 1, 1, 0)
    assert "1 turn divergent from the plain server: not shown to be lossless" in format_table(found)


def test_answers_that_do_not_tell_their_steps_are_said() -> None:
    told = [one | {"acceptance": {"accepted": 5, "drafted": 10, "steps": None, "deeper": None}} for one in FOUR]
    found = summarise(records([told[0], *FOUR[1:]], BLOCKS))
    assert "CR and CTAR are of 1 of 4 answers: the others do not tell their steps" in format_table(found)
    assert "do not tell" not in format_table(summarise(records(told, BLOCKS)))
    short = [one | {"new_tokens": 1} if one["question_id"] == 3 else one for one in told]  # has no step to tell of
    found = summarise(records(short, BLOCKS))
    assert "do not tell" not in format_table(found) and found["levels"][0]["cr"] == 2
    said = Acceptance(0, 4, steps=1)
    assert said.row(1)["steps"] is None and said.row(2)["steps"] == 1
