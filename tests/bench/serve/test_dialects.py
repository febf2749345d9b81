"""Each engine's way of saying what is asked and answered."""

from __future__ import annotations

from typing import Any

import pytest

from bench.serve.dialects import DIALECTS, Request

CHAT = [{"role": "user", "content": "w1"}]


@pytest.mark.parametrize(
    ("dialect", "prompt", "said"),
    [
        ("openai", [5], {"logprobs": 3}),
        ("openai", CHAT, {"logprobs": True, "top_logprobs": 3}),
        ("llama_cpp", [5], {"n_probs": 3}),
        ("sglang", [5], {"return_logprob": True, "top_logprobs_num": 3}),
    ],
)
def test_the_likeliest_tokens_are_asked_for_in_each_engines_words(dialect: str, prompt: Any, said: dict) -> None:
    plain, asked = (DIALECTS[dialect].body(Request("m", prompt, 4, top=top)) for top in (0, 3))
    assert asked == plain | said and not said.keys() & plain.keys()


COMPLETION, GENERATED = {"content": "a", "stop": False}, {"completion_tokens": 1}


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        ("openai", {"choices": [{"text": "a", "logprobs": {"top_logprobs": [{"b": -2.0, "a": -0.5}, {"c": -9.0}]}}]}),
        ("openai", {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [
            {"top_logprobs": [{"logprob": -2.0}, {"logprob": -0.5}]}, {"top_logprobs": [{"logprob": -9.0}]}]}}]}),
        ("llama_cpp", COMPLETION | {"completion_probabilities": [
            {"top_logprobs": [{"logprob": -0.5}, {"logprob": -2.0}]}, {"top_logprobs": [{"logprob": -9.0}]}]}),
        ("sglang", {"meta_info": GENERATED | {
            "output_top_logprobs": [[[-0.5, 7, None], [-2.0, 8, None]], [[-9.0, 9, None]]]}}),
    ],
    ids=["completions", "chat", "llama_cpp", "sglang"],
)  # fmt: skip
def test_the_likeliest_tokens_are_those_of_an_events_first_place(dialect: str, event: dict[str, Any]) -> None:
    assert DIALECTS[dialect].read(event).top == [-0.5, -2.0]


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        ("vllm", {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 4,
                                           "prompt_tokens_details": {"cached_tokens": 16}}}),
        ("llama_cpp", COMPLETION | {"stop": True, "stop_type": "limit", "tokens_predicted": 4, "tokens_evaluated": 30,
                                    "timings": {"predicted_n": 4, "cache_n": 16}}),
        ("sglang", {"meta_info": {"completion_tokens": 4, "prompt_tokens": 30, "cached_tokens": 16}}),
    ],
    ids=["vllm", "llama_cpp", "sglang"],
)  # fmt: skip
def test_tokens_of_answer_prompt_and_cache_are_told_apart(dialect: str, event: dict[str, Any]) -> None:
    piece = DIALECTS[dialect].read(event)
    assert (piece.total, piece.prompt_tokens, piece.cached_tokens) == (4, 30, 16)


def test_an_ending_is_eos_or_length_and_any_other_no_answers() -> None:
    def ending(reason: str | None) -> str | None:
        return DIALECTS["openai"].read({"choices": [{"text": "", "finish_reason": reason}]}).stop

    said = {"stop": "eos", "eos": "eos", "word": "eos", "length": "length", "limit": "length", "none": None, None: None}
    assert {reason: ending(reason) for reason in said} == said
    with pytest.raises(ValueError, match="the server ended the answer with content_filter"):
        ending("content_filter")


def test_a_conversation_with_llama_cpp_tells_its_drafts() -> None:
    event = {"choices": [], "timings": {"predicted_n": 12, "draft_n": 16, "draft_n_accepted": 7}}
    found = DIALECTS["llama_cpp"].read(event).acceptance
    assert found is not None and (found.drafted, found.accepted) == (16, 7)


def test_a_sampled_request_to_llama_cpp_is_cut_by_nothing_and_a_greedy_one_takes_the_best() -> None:
    for temperature, samplers, top_k in ((0.0, ["top_k"], 1), (0.7, ["temperature"], 0)):
        body = DIALECTS["llama_cpp"].body(Request("m", [5], 4, temperature=temperature, seed=3))
        assert (body["samplers"], body["top_k"], body["seed"]) == (samplers, top_k, 3)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("prompt", [[5], CHAT], ids=["ids", "chat"])
def test_what_a_user_adds_to_a_request_has_the_last_word(dialect: str, prompt: Any) -> None:
    extra = {"temperature": 9, "cache_prompt": "x", "cache_salt": "y", "sampling_params": "z"}
    body = DIALECTS[dialect].body(Request("m", prompt, 4, salt="s", extra=extra))
    assert body == body | extra
