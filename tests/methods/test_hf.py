"""transformers' generate as a method: the same weights, the same tokens, counted by the same rule."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.decoder import Decoder, Step
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.hf import HfGenerate
from methods.vanilla import Vanilla
from tests.tiny import FAMILIES, reference_model, write_checkpoint

SIZES = {"num_hidden_layers": 3, "vocab_size": 48, "eos_token_id": None, "max_position_embeddings": 96}
PROMPTS = ([5, 9, 11, 3], [7], list(range(3, 30)), [i % 9 for i in range(82)])  # the last fills the context


class Recorder:
    """Phases that note their order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def _note(self, name: str):
        self.seen.append(name)
        yield
        self.seen.append("end")

    def prefill(self) -> AbstractContextManager[None]:
        return self._note("prefill")

    def draft(self) -> AbstractContextManager[None]:
        return self._note("draft")

    def verify(self) -> AbstractContextManager[None]:
        return self._note("verify")


def saved(folder: Path, *, looking_back: float) -> tuple[Llama, Path]:
    """A model that looks back little and so repeats itself, which prompt lookup needs."""
    model = reference_model("llama_gqa", seed=1, **SIZES)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(looking_back)
    write_checkpoint(folder, model)
    return load_model(folder), folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    return saved(tmp_path_factory.mktemp("hf"), looking_back=0.05)


def hf(engine: Llama, folder: Path, **changes: Any) -> HfGenerate:
    settings = {"context": None, "temperature": 0, "prompt_lookup": None, **changes}
    return HfGenerate(Llama(engine.config, engine.weights, folder), **settings)


def ending(engine: Llama, *eos: int) -> Llama:
    return Llama(replace(engine.config, eos_token_ids=eos), engine.weights)


@pytest.mark.parametrize("lookup", [None, 1, 10])
def test_tokens_are_vanillas_and_every_one_is_counted(pair, lookup: int | None) -> None:
    engine, folder = pair
    plain, method = Decoder(engine, Vanilla(engine)), hf(engine, folder, prompt_lookup=lookup)
    for prompt in PROMPTS:
        expected, result = plain.generate(torch.tensor(prompt), 60), method.generate(torch.tensor(prompt), 60)
        assert len(result.tokens) == len(expected.tokens) and result.tokens == expected.tokens
        assert result.stop == expected.stop
        assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens)
        assert all(1 <= step.emitted <= step.drafted + 1 for step in result.steps)
        if lookup is None:
            assert result.steps == expected.steps


def lookup_steps(prompt: list[int], output: list[int], most: int) -> list[Step]:
    """Prompt lookup in plain Python: what followed the first place of the longest n-gram (at most 2) at the end."""

    def draft(tokens: list[int], room: int) -> list[int]:
        for size in (2, 1):
            for start in range(len(tokens) - size):
                if tokens[start : start + size] == tokens[-size:]:
                    return tokens[start + size : start + size + most] if room > 1 else []
        return []

    steps, done = [], 0
    while done < len(output):
        drafted = draft([*prompt, *output[:done]], len(output) - done)
        right = 0
        while right < len(drafted) and done + right < len(output) and drafted[right] == output[done + right]:
            right += 1
        emitted = min(right + 1, len(output) - done)
        beyond_first = emitted - (done == 0)
        steps += [Step(drafted=len(drafted), emitted=beyond_first)] if beyond_first else []
        done += emitted
    return steps


def test_prompt_lookup_is_counted_call_by_call(pair) -> None:
    engine, folder = pair
    method, seen = hf(engine, folder, prompt_lookup=5), set()
    for prompt in PROMPTS:
        result = method.generate(torch.tensor(prompt), 60)
        assert list(result.steps) == lookup_steps(prompt, list(result.tokens), 5)
        seen |= {step.emitted for step in result.steps}
    assert len(seen) >= 4, "the test would prove little"


def test_what_the_prompts_own_call_accepts_is_a_step(tmp_path: Path) -> None:
    """A model that never looks back repeats its text for ever: the prompt's last words are followed as before."""
    engine, folder = saved(tmp_path, looking_back=0)
    prompt = list(Decoder(engine, Vanilla(engine)).generate(torch.tensor([5]), 60).tokens)
    recorder = Recorder()
    result = hf(engine, folder, prompt_lookup=5).generate(torch.tensor(prompt), 20, recorder)
    assert list(result.steps) == lookup_steps(prompt, list(result.tokens), 5)
    assert result.steps[0] == Step(drafted=5, emitted=5), "six tokens came with the prompt's call"
    assert len(result.steps) == recorder.seen.count("verify") + 1
    assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens) == 20


@pytest.mark.parametrize("lookup", [None, 10])
def test_tokens_stop_at_the_first_eos(pair, lookup: int | None) -> None:
    engine, folder = pair
    prompt = torch.tensor(PROMPTS[2])
    for eos in sorted(set(Decoder(engine, Vanilla(engine)).generate(prompt, 40).tokens)):
        model = ending(engine, 47, eos)
        expected = Decoder(model, Vanilla(model)).generate(prompt, 40)
        result = hf(model, folder, prompt_lookup=lookup).generate(prompt, 40)
        assert (result.tokens, result.stop) == (expected.tokens, expected.stop)
        assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens)


@pytest.mark.parametrize("lookup", [None, 10])
def test_nearly_full_contexts_and_short_outputs(pair, lookup: int | None) -> None:
    engine, folder = pair
    prompt = torch.tensor(PROMPTS[2])
    for context in range(28, 44, 3):
        expected = Decoder(engine, Vanilla(engine), context=context).generate(prompt, 100)
        result = hf(engine, folder, prompt_lookup=lookup, context=context).generate(prompt, 100)
        assert (result.tokens, result.stop) == (expected.tokens, expected.stop)
    method, tokens = hf(engine, folder, prompt_lookup=lookup), expected.tokens
    for new in range(1, 9):
        result = method.generate(prompt, new)
        assert result.tokens == tokens[:new] and result.stop == "length"
        assert sum(step.emitted for step in result.steps) + 1 == new


def test_every_sequence_starts_afresh(pair) -> None:
    engine, folder = pair
    shared = hf(engine, folder, prompt_lookup=10)
    for prompt in PROMPTS:
        fresh = hf(engine, folder, prompt_lookup=10)
        assert shared.generate(torch.tensor(prompt), 20) == fresh.generate(torch.tensor(prompt), 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_the_targets_weights(tmp_path: Path, family: str) -> None:
    model = reference_model(family, seed=2)
    folder = write_checkpoint(tmp_path, model)
    ours = hf(load_model(folder), folder).model
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(ours(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_random_weights_need_only_a_config(pair, tmp_path: Path) -> None:
    _, folder = pair
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    engine = load_model(tmp_path, weights="random")
    prompt = torch.tensor(PROMPTS[0])
    expected = Decoder(engine, Vanilla(engine)).generate(prompt, 20).tokens
    assert hf(engine, tmp_path).generate(prompt, 20).tokens == expected


def test_in_bfloat16_weights_are_shared(pair) -> None:
    _, folder = pair
    engine = load_model(folder, dtype="bfloat16")
    method = hf(engine, folder)
    assert next(method.model.parameters()).dtype == torch.bfloat16
    down = method.model.model.layers[0].mlp.down_proj.weight
    assert down.data_ptr() == engine.weights.layers[0].down.weight.data_ptr(), "no second copy in memory"
    assert len(method.generate(torch.tensor(PROMPTS[0]), 10).tokens) == 10


def test_phases_are_the_calls_of_the_model(pair) -> None:
    engine, folder = pair
    recorder = Recorder()
    method = hf(engine, folder)
    method.generate(torch.tensor(PROMPTS[0]), 4, recorder)
    assert recorder.seen == ["prefill", "end", *["verify", "end"] * 3]
    assert not method.model._forward_hooks and not method.model._forward_pre_hooks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_lookup": 0}, r"method\.prompt_lookup=0: must be at least 1, or null"),
        ({"temperature": 0.7}, r"temperature=0\.7: .* valid: 0"),
        ({"context": 1}, "context=1: must be between 2 and the model's 96"),
        ({"context": 97}, "context=97: must be between 2 and the model's 96"),
    ],
)
def test_values_out_of_range_are_refused(pair, changes: dict[str, Any], message: str) -> None:
    engine, folder = pair
    with pytest.raises(UserError, match=message):
        hf(engine, folder, **changes)


@pytest.mark.parametrize("length", [0, 96])
def test_prompts_that_leave_no_room_are_refused(pair, length: int) -> None:
    engine, folder = pair
    with pytest.raises(UserError, match=f"prompt of {length} tokens: must be 1 to 95"):
        hf(engine, folder).generate(torch.zeros(length, dtype=torch.int64), 5)
