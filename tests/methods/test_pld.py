"""Prompt lookup against its definition: the whole context searched anew at every step."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch

from methods.decoder import Decoder, Generation, Step
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.pld import PromptLookup
from methods.vanilla import Vanilla
from tests import joey
from tests.tiny import tiny_llama

SETTINGS = {"max_ngram": 3, "length": 10, "match": "first", "partial": False}
PROMPTS = ([5, 6, 7], [9], [3, 4, 5, 6] * 8, [i % 11 + 3 for i in range(60)])


def searched(tokens: list[int], *, max_ngram: int, length: int, match: str, partial: bool) -> list[int]:
    """The draft after `tokens`, by looking at every place."""
    for size in range(max_ngram, 0, -1):
        places = [p for p in range(len(tokens) - size) if tokens[p : p + size] == tokens[-size:]]
        places = [p for p in places if partial or p + size < len(tokens) - size]  # Spec-Bench's start < len - N
        drafts = [tokens[p + size :][:length] for p in places]
        drafts = [draft for draft in drafts if partial or len(draft) == length]
        if len(tokens) >= size and drafts:
            return drafts[0 if match == "first" else -1]
    return []


def steps_of(draft: Any, prompt: list[int], output: tuple[int, ...], context: int) -> list[Step]:
    """Steps that emit `output`, the target's own tokens, when `draft(tokens)` gives the chains."""
    steps, done = [], 1
    while done < len(output):
        tokens = [*prompt, *output[:done]]
        chain = draft(tokens)[: context - len(tokens)]
        rest = output[done:]
        agreed = next((i for i, (a, b) in enumerate(zip(chain, rest, strict=False)) if a != b), None)
        emitted = min((len(chain) if agreed is None else agreed) + 1, len(rest))
        steps.append(Step(drafted=len(chain), emitted=emitted))
        done += emitted
    return steps


def generated(model: Llama, method: Any, prompt: list[int], context: int = 128, temperature: float = 0.0) -> Generation:
    return Decoder(model, method, context=context, temperature=temperature).generate(torch.tensor(prompt), 120)


@pytest.mark.parametrize(
    ("max_ngram", "length", "match", "partial"), list(product((3, 1), (10, 3, 1), ("first", "last"), (False, True)))
)
def test_it_drafts_what_a_search_finds(max_ngram: int, length: int, match: str, partial: bool) -> None:
    settings: dict[str, Any] = {"max_ngram": max_ngram, "length": length, "match": match, "partial": partial}
    numbers = random.Random(0)
    method = PromptLookup(tiny_llama(), **settings)
    for most in (2, 4, 9):
        tokens = [numbers.randrange(most) for _ in range(numbers.randrange(1, 30))]
        drafter = method.start(tokens[:], None)  # type: ignore[arg-type]
        for _ in range(40):
            assert drafter.propose(tokens, 100).tokens.tolist() == searched(tokens, **settings), tokens
            tokens += [numbers.randrange(most) for _ in range(numbers.randrange(1, 12))]


@pytest.mark.parametrize("eos", [(), (3, 17, 30)])
@pytest.mark.parametrize("match", ["first", "last"])
def test_every_step_is_the_definitions(match: str, eos: tuple[int, ...]) -> None:
    settings = {**SETTINGS, "match": match, "partial": match == "last", "length": 4}
    model = tiny_llama(seed=3, vocab_size=40, std=0.5, eos_token_ids=eos, context=128)
    accepted = 0
    for prompt in PROMPTS:
        output = generated(model, Vanilla(model), prompt).tokens
        found = generated(model, PromptLookup(model, **settings), prompt)
        assert found.tokens == output
        assert list(found.steps) == steps_of(lambda tokens: searched(tokens, **settings), prompt, output, 128)
        accepted += sum(step.emitted - 1 for step in found.steps)
    assert accepted > 10 or eos, "nothing was accepted: this says little"


@pytest.mark.parametrize("match", ["first", "last"])
def test_every_step_is_the_definitions_on_joey(match: str) -> None:
    settings: dict[str, Any] = {**SETTINGS, "match": match, "partial": True}
    for model, context in joey.endings(lambda model: PromptLookup(model, **settings)):
        output = generated(model, Vanilla(model), joey.prompt(), context).tokens
        found = generated(model, PromptLookup(model, **settings), joey.prompt(), context)
        assert found.tokens == output
        wanted = steps_of(lambda tokens: searched(tokens, **settings), joey.prompt(), output, context)
        assert list(found.steps) == wanted


def test_a_draft_does_not_reach_beyond_the_context() -> None:
    drafter = PromptLookup(tiny_llama(), **SETTINGS).start([3] * 20, None)  # type: ignore[arg-type]
    assert [drafter.propose([3] * 20, room).tree.size for room in (1, 4, 10, 50)] == [1, 4, 10, 10]


@pytest.mark.parametrize("key", ["max_ngram", "length"])
def test_a_size_below_one_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"method.{key}=0: must be at least 1"):
        PromptLookup(tiny_llama(), **{**SETTINGS, key: 0})
