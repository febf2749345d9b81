"""What engines tell of acceptance, in their own forms, against one trace of steps."""

from __future__ import annotations

from typing import Any

import pytest

from bench.metrics import compression_ratio, ctar
from bench.serve.acceptance import (
    DEFINITIONS,
    TRACE,
    Acceptance,
    of_counters,
    of_llama_cpp,
    of_sglang,
    of_vllm,
    read_counters,
)
from bench.serve.records import counted

LENGTHS = [emitted for _, emitted in TRACE]
TOKENS = 1 + sum(LENGTHS)  # the prefill's token and those of the steps
ACCEPTED = [emitted - 1 for _, emitted in TRACE]
HISTOGRAM = [2, 1, 1, 0, 1]  # steps that accepted 0, 1, ... drafts, the one without a draft included
DRAFTED = sum(drafted for drafted, _ in TRACE)


def test_every_definition_of_one_trace() -> None:
    found = {(one.where, one.name): one.value(TRACE) for one in DEFINITIONS}
    assert found == {
        ("Kangaroo's paper, and here", "CR"): pytest.approx(12 / 5),
        ("Spec-Bench", "mean accepted tokens"): pytest.approx(13 / 6),
        ("SPEED-Bench (specdec_bench)", "Average AL"): pytest.approx(13 / 6),
        ("vLLM", "mean acceptance length"): pytest.approx(1 + 7 / 4),
        ("vLLM", "draft acceptance rate"): pytest.approx(7 / 14),
        ("SGLang", "spec_accept_length"): pytest.approx(13 / 5),
        ("SGLang", "spec_accept_rate"): pytest.approx(7 / 20),
        ("llama.cpp", "draft acceptance"): pytest.approx(7 / 14),
    }


VLLM = {
    "acceptance_histogram": [1, 1, 1, 0, 1],
    "num_spec_steps": 4,
    "num_accepted_draft_tokens": 7,
    "num_draft_tokens": DRAFTED,
    "num_spec_tokens": 4,
}
SGLANG = {
    "completion_tokens": TOKENS,
    "spec_verify_ct": 5,
    "spec_accept_length": TOKENS / 5,
    "spec_accept_token_num": 7,
    "spec_draft_token_num": 20,
    "spec_accept_histogram": HISTOGRAM,
}
PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {drafted}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
vllm:spec_decode_num_accepted_tokens_created{{engine="0",model_name="m"}} 1.79e+09
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} {p0}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} {p1}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="2"}} 1e+00
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="3"}} 1.0
vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}
"""
BEFORE = PAGE.format(drafts=100.0, drafted=400.0, accepted=90.0, p0=50.0, p1=40.0, tokens=1000.0)
AFTER = PAGE.format(drafts=104.0, drafted=414.0, accepted=97.0, p0=53.0, p1=42.0, tokens=1013.0)


def counters() -> Acceptance | None:
    before, after = read_counters(BEFORE), read_counters(AFTER)
    # positions 2 and 3 do not move in this page, so the deepest step is told apart below
    return of_counters({**before, "position_2": 0.0, "position_3": 0.0}, after)


@pytest.mark.parametrize(
    "found",
    [of_vllm(VLLM), of_sglang(SGLANG), counters()],
    ids=["vllm", "sglang", "counters"],
)
def test_cr_and_ctar_of_every_engine_are_the_traces(found: Acceptance) -> None:
    row = found.row(TOKENS)
    assert row["steps"] == len(TRACE) and row["emitted"] == sum(LENGTHS)
    assert row["emitted"] / row["steps"] == compression_ratio(LENGTHS)  # type: ignore[operator]
    for w in range(1, 7):
        assert row[f"over_{w}"] == ctar(LENGTHS, w) * len(TRACE)  # type: ignore[operator]


def test_llama_cpp_tells_cr_alone() -> None:
    found = of_llama_cpp({"predicted_n": TOKENS, "draft_n": DRAFTED, "draft_n_accepted": 7})
    assert found is not None
    row = found.row(TOKENS)
    assert (row["steps"], row["drafted"], row["emitted"], row["over_1"]) == (5, DRAFTED, 12, None)
    assert of_llama_cpp({"predicted_n": TOKENS}) is None


@pytest.mark.parametrize("names", ["spec_accept_token_num", "spec_accepted_drafts", "spec_num_correct_drafts"])
def test_sglangs_counts_under_each_of_their_names(names: str) -> None:
    found = of_sglang({"spec_verify_ct": 5, names: 7})
    assert found is not None and (found.accepted, found.steps, found.deeper) == (7, 5, None)
    assert of_sglang({"completion_tokens": 3}) is None


def test_counters_of_a_server_that_began_anew_are_none() -> None:
    assert of_counters(read_counters(AFTER), read_counters(BEFORE)) is None
    assert of_counters({}, {"tokens": 3.0}) is None


def test_counters_that_could_not_be_read_once_say_nothing_of_a_block() -> None:
    before, after = read_counters(BEFORE), read_counters(AFTER)
    assert counted(before, after)["counted_tokens"] is not None
    for pair in ((before, {}), ({}, after), ({}, {})):
        assert counted(*pair) == {"acceptance": None, "counted_tokens": None}


@pytest.mark.parametrize("accepted", [12, 30])
def test_more_accepted_than_emitted_is_no_count_of_steps(accepted: int) -> None:
    """Engines count what they accepted beyond an answer's end too."""
    assert Acceptance(accepted).row(TOKENS)["steps"] is None
    assert Acceptance(accepted, drafts=4).row(TOKENS)["steps"] == 4, "but those with a draft were steps"


@pytest.mark.parametrize(
    ("counts", "tokens", "cr", "ctar"),
    [
        ([0, 0, 0, 1], 4, 3.0, 1.0),  # one step, whose last token is beyond the end
        ([0, 0, 0, 2], 8, 3.5, 1.0),
        ([3, 0, 0, 0], 4, 1.0, 0.0),
        ([1, 0, 0, 1], 7, 2.0, 1 / 3),  # the third step had no draft
    ],
)
def test_what_was_accepted_beyond_the_end_makes_no_step_fewer(
    counts: list[int], tokens: int, cr: float, ctar: float
) -> None:
    found = of_vllm({"acceptance_histogram": counts, "num_draft_tokens": 3 * sum(counts)}).row(tokens)
    assert found["emitted"] / found["steps"] == cr and found["over_1"] / found["steps"] == ctar


@pytest.mark.parametrize("wrong", [{"acceptance_histogram": [1, "2"], "num_draft_tokens": 1}, {}])
def test_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        of_vllm(wrong)
