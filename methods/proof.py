"""Proof that a method is lossless: random tiny models, EOS at every place, full contexts, sampling, side by side.

For methods from outside as well: `check_lossless(make)` in a test of theirs raises AssertionError otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from methods.decoder import Decoder, Generation
from methods.engine.checkpoint import empty_weights, randomise
from methods.engine.llama import Llama, ModelConfig
from methods.vanilla import Vanilla

PROMPTS = ((5, 6, 7), (9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9), (3, 20, 3, 20, 3, 20, 3), (40,))
NEW_TOKENS = 40
TEMPERATURES = (0.3, 1.0)
Make = Callable[[Llama], Any]  # a method on a target


def tiny_model(seed: int = 0, *, std: float = 0.2, dtype: torch.dtype = torch.float32, **shape: Any) -> Llama:
    """A random model on the CPU, quick to make; `shape` overrides fields of ModelConfig.

    With the default spread greedy text of the default shape wanders through many tokens instead of repeating one.
    """
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "norm_eps": 1e-6,
        "context": 256,
        "eos_token_ids": (2,),
    }
    config = ModelConfig(**{**fields, **shape})
    weights = empty_weights(config, dtype, torch.device("cpu"))
    randomise(weights, seed, std)
    return Llama(config, weights)


def check_lossless(make: Make, model: Llama | None = None, prompts: Sequence[Sequence[int]] = PROMPTS) -> None:
    """Hold a method against vanilla on one model, in float32 on a CPU, where nothing but equal will do.

    make is called with the model (None: a tiny random one) and with copies of it that end a sequence at other tokens.
    Raises AssertionError that says which prompt, and where the first difference stands.
    """
    model = model or tiny_model()
    for prompt in prompts:
        plain = _generated(model, Vanilla, prompt, NEW_TOKENS)
        _same("a whole answer", prompt, _generated(model, make, prompt, NEW_TOKENS), plain)
        for new in (1, 2, 3):
            _same(f"max_new_tokens={new}", prompt, _generated(model, make, prompt, new), _cut(plain, new))
        for eos in sorted(set(plain.tokens)):
            ending = model.alike(replace(model.config, eos_token_ids=(eos,)), model.weights, model.folder)
            wanted = _generated(ending, Vanilla, prompt, NEW_TOKENS)
            _same(f"EOS {eos}", prompt, _generated(ending, make, prompt, NEW_TOKENS), wanted)
        for room in (1, 2, 5, 11):
            context = min(len(prompt) + room, model.config.context)
            wanted = _generated(model, Vanilla, prompt, NEW_TOKENS, context)
            _same(f"a context of {context}", prompt, _generated(model, make, prompt, NEW_TOKENS, context), wanted)
        for temperature in TEMPERATURES:
            wanted = _generated(model, Vanilla, prompt, NEW_TOKENS, temperature=temperature)
            found = _generated(model, make, prompt, NEW_TOKENS, temperature=temperature)
            _same(f"temperature {temperature}", prompt, found, wanted)
    check_side_by_side(make, model, prompts)


def check_side_by_side(make: Make, model: Llama, prompts: Sequence[Sequence[int]] = PROMPTS) -> None:
    """Sequences of one method, a step of each in turn, give what each gives alone. Raises AssertionError."""
    decoder = Decoder(model, make(model))
    alone = [decoder.generate(torch.tensor(prompt, device=model.device), NEW_TOKENS) for prompt in prompts]
    under_way = [
        decoder.begin(torch.tensor(prompt, device=model.device), NEW_TOKENS, cache=decoder.new_cache())
        for prompt in prompts
    ]
    while waiting := [sequence for sequence in under_way if not sequence.ended]:
        for sequence in waiting:
            sequence.step()
    for prompt, sequence, wanted in zip(prompts, under_way, alone, strict=True):
        found = sequence.generation()
        _same("side by side with others", prompt, found, wanted)
        assert found.steps == wanted.steps, f"prompt {list(prompt)}: other steps side by side than alone"


def _generated(
    model: Llama, make: Make, prompt: Sequence[int], new: int, context: int | None = None, temperature: float = 0.0
) -> Generation:
    decoder = Decoder(model, make(model), context=context, temperature=temperature, seed=7)
    return decoder.generate(torch.tensor(prompt, device=model.device), new)


def _cut(plain: Generation, new: int) -> Generation:
    stop = plain.stop if len(plain.tokens) <= new else "length"
    return replace(plain, tokens=plain.tokens[:new], stop=stop)


def _same(case: str, prompt: Sequence[int], found: Generation, wanted: Generation) -> None:
    where = f"prompt {list(prompt)}, {case}"
    pairs = enumerate(zip(found.tokens, wanted.tokens, strict=False))
    first = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    assert first is None, f"{where}: token {first} is {found.tokens[first]}, vanilla's is {wanted.tokens[first]}"
    lengths = len(found.tokens), len(wanted.tokens)
    assert lengths[0] == lengths[1], f"{where}: {lengths[0]} tokens, vanilla has {lengths[1]}"
    assert found.stop == wanted.stop, f"{where}: ends by {found.stop}, vanilla by {wanted.stop}"
    emitted = sum(step.emitted for step in found.steps)
    assert emitted + 1 == len(found.tokens), f"{where}: steps emit {emitted} + 1 tokens of {len(found.tokens)}"
