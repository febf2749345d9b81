"""Speculation with a small model against its definition: the drafter run anew on every prefix, without a cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.decoder import Decoder, Step
from methods.engine.checkpoint import published_weights
from methods.engine.config import published_config
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.sam import Sam
from methods.sampling import Sampler
from methods.sps import SmallModel
from methods.vanilla import Vanilla
from tests.methods.test_pld import generated
from tests.methods.test_rest import tokenizer_folder
from tests.tiny import tiny_llama

SETTINGS: dict[str, Any] = {"gamma": 5, "schedule": "heuristic", "threshold": 0.4, "max_gamma": 32}
PROMPTS = ([5, 6, 7], [9], [3, 4, 5, 6] * 8)


def write_drafter(folder: Path, model: Llama) -> Path:
    """A checkpoint of a model of the engine, with the tokenizer of all tests."""
    tokenizer_folder(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in published_weights(model).items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(published_config(model.config)))
    return folder


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    return {"drafter": write_drafter(folder, tiny_llama(vocab_size=48, num_layers=2))}


def target(folder: Path, **shape: Any) -> Llama:
    """A model with a tokenizer, which says the same things again."""
    tiny = tiny_llama(**{"seed": 3, "vocab_size": 48, "std": 0.5, "eos_token_ids": (), "context": 128, **shape})
    return Llama(tiny.config, tiny.weights, tokenizer_folder(folder / "tokenizer"))


def near(model: Llama, noise: float) -> Llama:
    """Another model that often agrees."""
    weights = tiny_llama(seed=3, vocab_size=48, std=0.5, context=128).weights
    generator = torch.Generator().manual_seed(1)
    for own, tensor in zip(model.weights.tensors(), weights.tensors(), strict=True):
        tensor.copy_(own + noise * own.std() * torch.randn(own.shape, generator=generator) if own.dim() == 2 else own)
    return Llama(model.config, weights)


@torch.inference_mode()
def said(model: Llama, tokens: list[int], temperature: float) -> tuple[int, float]:
    """What the model says behind the tokens with the first sequence's noise, and its probability."""
    hidden = model.run(model.embed(torch.tensor(tokens)), torch.arange(len(tokens)), None, slice(0, None))
    logits = model.head(hidden[-1:])
    token = int(Sampler(temperature, 0, model.config.vocab_size, model.device).choose(logits, len(tokens)))
    return token, float((logits[0] / (temperature or 1)).softmax(-1)[token])


def steps(
    small: Llama, prompt: list[int], output: tuple[int, ...], eos: tuple[int, ...], temperature: float, **settings: Any
) -> list[Step]:
    """transformers' way: gamma changes by what was accepted, a draft ends with its EOS, and is then not a whole one."""
    found, done, gamma = [], 1, settings["gamma"]
    while done < len(output):
        tokens, chain = [*prompt, *output[:done]], list[int]()
        while len(chain) < min(gamma, 100 - len(tokens)):
            token, sure = said(small, [*tokens, *chain], temperature)
            chain.append(token)
            if settings["schedule"] == "confidence" and sure < settings["threshold"]:
                break
        emitted, drafted = 0, len(chain)
        if any(token in eos for token in chain):
            chain = chain[: next(i for i, token in enumerate(chain) if token in eos) + 1]
        while emitted < len(chain) and done + emitted < len(output) and chain[emitted] == output[done + emitted]:
            emitted += 1
        whole = emitted == gamma
        emitted = min(emitted + 1, len(output) - done)
        found.append(Step(drafted=drafted, emitted=emitted))
        done += emitted
        if settings["schedule"] == "heuristic":
            gamma = min(gamma + 2, settings["max_gamma"]) if whole else max(gamma - 1, 1)
    return found


@pytest.mark.parametrize(("eos", "temperature"), [((), 0.0), ((3, 17, 30), 0.0), ((), 0.7)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_gamma": 6},
        {"schedule": "constant", "gamma": 3},
        {"schedule": "confidence", "gamma": 8, "threshold": 0.3},
    ],
    ids=lambda changes: changes.get("schedule", f"heuristic-{changes.get('max_gamma', 32)}"),
)
def test_every_step_is_the_definitions(
    tmp_path: Path, changes: dict[str, Any], eos: tuple[int, ...], temperature: float
) -> None:
    model, settings = target(tmp_path, eos_token_ids=eos), {**SETTINGS, **changes}
    small = near(model, 0.1)
    folder, drafted = write_drafter(tmp_path / "drafter", small), set()
    for prompt in PROMPTS:
        output = generated(model, Vanilla(model), prompt, 100, temperature).tokens
        found = generated(model, SmallModel(model, drafter=folder, **settings), prompt, 100, temperature)
        assert found.tokens == output
        assert list(found.steps) == steps(small, prompt, output, eos, temperature, **settings)
        drafted |= {step.drafted for step in found.steps}
    assert settings["schedule"] == "constant" or eos or len(drafted) > 3


def test_the_schedule_is_that_of_transformers_and_begins_anew(tmp_path: Path) -> None:
    model = target(tmp_path)
    decoder = Decoder(model, SmallModel(model, drafter=write_drafter(tmp_path, model), **SETTINGS))
    for _ in range(2):  # a drafter that is the target is always right
        found = decoder.generate(torch.tensor([5, 6, 7]), 1 + 6 + 8 + 10 + 12)
        assert [step.drafted for step in found.steps] == [5, 7, 9, 11]
    wrong = write_drafter(tmp_path / "wrong", tiny_llama(seed=9, vocab_size=48, context=128))
    decoder = Decoder(model, SmallModel(model, drafter=wrong, **SETTINGS))
    found = decoder.generate(torch.tensor([5, 6, 7]), 30)
    assert [step.drafted for step in found.steps][:6] == [5, 4, 3, 2, 1, 1]


@pytest.mark.parametrize("eos", [(), (3, 17, 30)])
def test_a_drafter_that_is_the_target_is_always_right_when_both_draw(tmp_path: Path, eos: tuple[int, ...]) -> None:
    model = target(tmp_path, eos_token_ids=eos)
    method = SmallModel(model, drafter=write_drafter(tmp_path / "itself", model), **SETTINGS)
    for prompt in PROMPTS:
        found = generated(model, method, prompt, temperature=1.0)
        assert found.tokens == generated(model, Vanilla(model), prompt, temperature=1.0).tokens
        assert all(step.emitted == step.drafted + 1 for step in found.steps[:-1])
        assert found.tokens != generated(model, Vanilla(model), prompt).tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("vocabulary", "context"), [(64, 128), (48, 20), (56, 20)])
def test_a_drafter_may_be_padded_further_and_have_less_context(
    tmp_path: Path, vocabulary: int, context: int, temperature: float
) -> None:
    """The rows beyond the target's vocabulary are never drafted, even where they are the likeliest."""
    model = target(tmp_path)
    small = tiny_llama(seed=3, vocab_size=vocabulary, std=0.5, context=context)
    small.weights.lm_head.weight[48:] = 9 * small.weights.lm_head.weight[: vocabulary - 48]
    method = SmallModel(model, drafter=write_drafter(tmp_path / "small", small), **SETTINGS)
    assert method.extra_parameters == sum(tensor.numel() for tensor in small.weights.tensors())
    for prompt in PROMPTS:
        ours, plain = (generated(model, m, prompt, 100, temperature) for m in (method, Vanilla(model)))
        assert ours.tokens == plain.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_may_be_padded_further_than_its_drafter(tmp_path: Path, temperature: float) -> None:
    model = target(tmp_path, vocab_size=64)  # random, so that it says padding too
    small = tiny_llama(vocab_size=48, context=128)
    method = SmallModel(model, drafter=write_drafter(tmp_path / "small", small), **SETTINGS)
    ours, plain = (generated(model, m, [5, 6, 7], 100, temperature) for m in (method, Vanilla(model)))
    assert max(ours.tokens) >= 48 and ours.tokens == plain.tokens


def test_its_cache_holds_the_accepted_tokens_whatever_was_verified_between(tmp_path: Path) -> None:
    model = target(tmp_path)
    method = SmallModel(model, drafter=write_drafter(tmp_path / "small", near(model, 0.3)), **SETTINGS)
    for sides in (method, Sam(model, predict=6, threshold=2, bias=0, static=None, fallback=method)):
        sequence = Decoder(model, sides).begin(torch.tensor([5, 6, 7]), 90)
        while not sequence.ended:
            sequence.step()
            drafter = getattr(sequence.drafter, "inner", sequence.drafter)
            held = drafter.cache.lengths[0]
            assert held < len(sequence.tokens) or sequence.ended
            anew = method.start(sequence.tokens[:held], sequence_prefill(sequence))
            ours, theirs = (c.storage[:, :, :, :held] for c in (drafter.cache, anew.cache))
            if not sequence.ended:
                # Rounding is that of the largest number in the sums, about 20; another token's row differs by as much.
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


def sequence_prefill(sequence: Any) -> Any:
    """What `start` reads of a prefill."""
    return type("Prefill", (), {"cache": sequence.cache, "sampler": sequence.sampler})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0}, "method.gamma=0: must be between 1 and method.max_gamma=32"),
        ({"gamma": 40}, "method.gamma=40: must be between 1 and method.max_gamma=32"),
        ({"threshold": 1.5}, "method.threshold=1.5: must be between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        SmallModel(target(tmp_path), drafter=tmp_path, **{**SETTINGS, **changes})


def test_a_drafter_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model = target(tmp_path)
    tokenizer_folder(tmp_path / "other", first="b")
    with pytest.raises(UserError, match=r"^method\.drafter=.*other: has another tokenizer \(48 tokens, sha256"):
        SmallModel(model, drafter=tmp_path / "other", **SETTINGS)
    bare = Llama(replace(model.config), model.weights)
    with pytest.raises(UserError, match=r"^method\.drafter=.*: the target has no folder"):
        SmallModel(bare, drafter=tmp_path / "other", **SETTINGS)
