"""Proof that a method is lossless on a random tiny model.

EOS at every place, full contexts, sampling, side by side, the fixed engine, another method's drafts in between. For
methods from outside as well: `check_lossless(make)` in a test of theirs raises AssertionError otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from methods.decoder import Decoder, Generation
from methods.engine.checkpoint import empty_weights, randomise
from methods.engine.fixed import FixedLlama
from methods.engine.llama import Llama, ModelConfig
from methods.sam import Sam
from methods.vanilla import Vanilla

PROMPTS = ((5, 6, 7), (9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9), (3, 20, 3, 20, 3, 20, 3), (40,))
NEW_TOKENS = 40
TEMPERATURES = (0.3, 1.0)
OFTEN: dict[str, Any] = {"predict": 6, "threshold": 2, "bias": 0, "static": None}  # of lookups that draft in between
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
    Raises AssertionError that says which prompt and case, and where the first difference stands or what was raised.
    """
    model = model or tiny_model()
    for prompt in prompts:
        plain = _generated(model, Vanilla, prompt)
        _hold("a whole answer", model, make, prompt, plain)
        for new in (1, 2, 3):
            _hold(f"max_new_tokens={new}", model, make, prompt, _cut(plain, new), new=new)
        for eos in sorted(set(plain.tokens)):
            _hold(f"EOS {eos}", _changed(model, eos_token_ids=(eos,)), make, prompt)
        for room in (1, 2, 5, 11):
            context = min(len(prompt) + room, model.config.context)
            _hold(f"a context of {context}", _changed(model, context=context), make, prompt)
        for temperature in TEMPERATURES:
            _hold(f"temperature {temperature}", model, make, prompt, temperature=temperature)
        _hold("on the fixed engine", FixedLlama.of(model), make, prompt, plain)
        _hold(
            "between another's drafts", model, lambda target: Sam(target, fallback=make(target), **OFTEN), prompt, plain
        )
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


def _changed(model: Llama, **shape: Any) -> Llama:
    return model.alike(replace(model.config, **shape), model.weights, model.folder)


def _generated(
    model: Llama, make: Make, prompt: Sequence[int], new: int = NEW_TOKENS, temperature: float = 0.0
) -> Generation:
    decoder = Decoder(model, make(model), temperature=temperature, seed=7)
    return decoder.generate(torch.tensor(prompt, device=model.device), new)


def _hold(
    case: str, model: Llama, make: Make, prompt: Sequence[int], wanted: Generation | None = None, **settings: Any
) -> None:
    """Against `wanted`, or what vanilla gives in the same case."""
    wanted = wanted or _generated(model, Vanilla, prompt, **settings)
    try:
        found = _generated(model, make, prompt, **settings)
    except Exception as error:
        raise AssertionError(f"prompt {list(prompt)}, {case}: {type(error).__name__}: {error}") from error
    _same(case, prompt, found, wanted)


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
