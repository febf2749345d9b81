"""The built-in model for tests of methods, ending in every way that a sequence can."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer

from bench.binder import draft_key
from bench.config import installed
from bench.joey.tokenizer import ASSISTANT, rendered
from bench.places import BENCH
from methods.decoder import Decoder
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama

ASSETS = BENCH / "assets" / "joey"


@cache
def for_joey() -> tuple[str, ...]:
    """Methods that joey can be measured with: they need no draft, or it has one."""
    found = list[str]()
    for name in installed().choices("method"):
        node = installed().compose("config", [f"method={name}", "model=joey"]).values["method"]
        key = draft_key(node)
        found += [] if key is not None and node[key] is None else [name]
    return tuple(found)


@cache
def prompt() -> list[int]:
    """joey's shortest arithmetic question, whose answer says much of it again, as joey reads it."""
    questions = [json.loads(line) for line in (ASSETS / "question.jsonl").read_text().splitlines()]
    shortest = min((q["turns"][0] for q in questions if q["category"] == "math_reasoning"), key=len)
    text = rendered({"conversations": [{"from": "human", "value": shortest}]}) + ASSISTANT
    ids: list[int] = Tokenizer.from_file(str(ASSETS / "tokenizer.json")).encode(text).ids
    return ids


def endings(make: Callable[[Llama], Any], new: int = 120, dtype: str = "float32") -> list[tuple[Llama, int]]:
    """joey and a context: as it is, for `new` tokens at most; one that fills up; with an EOS that is drafted."""
    model, size = load_model(ASSETS, device="cpu", dtype=dtype), len(prompt())
    found = Decoder(model, make(model)).generate(torch.tensor(prompt()), new)
    inside, place = [], 1
    for step in found.steps:
        inside += [p for p in range(place, place + step.emitted - 1) if found.tokens.index(found.tokens[p]) == p]
        place += step.emitted
    ending = replace(model.config, eos_token_ids=(found.tokens[inside[-1]],))
    room = len(found.tokens) * 2 // 3
    return [(model, size + new), (model, size + room), (Llama(ending, model.weights, model.folder), size + new)]
