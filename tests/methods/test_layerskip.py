"""LayerSkip against its definition: the first layers, the final norm and the LM head, run anew on every prefix."""

from __future__ import annotations

import pytest
import torch

from methods.engine.llama import Llama
from methods.errors import UserError
from methods.layerskip import LayerSkip
from methods.vanilla import Vanilla
from tests.methods.test_pld import generated, steps_of
from tests.tiny import tiny_llama

PROMPTS = ([5, 6, 7], [9], [3, 4, 5, 6] * 8)


def agreeing(model: Llama) -> None:
    """Let the last layer say little, as early exits are trained to have it."""
    for matrix in (model.weights.layers[-1].output, model.weights.layers[-1].down):
        matrix.weight.mul_(0.1)


@torch.inference_mode()
def drafted(model: Llama, tokens: list[int], exit_layer: int, gamma: int) -> list[int]:
    known = tokens[:]
    for _ in range(gamma):
        states = model.run(model.embed(torch.tensor(known)), torch.arange(len(known)), None, slice(0, exit_layer))
        known.append(int(model.head(states)[-1].argmax()))
    return known[len(tokens) :]


@pytest.mark.parametrize(("exit_layer", "eos"), [(3, ()), (1, (3, 17, 30))])
def test_every_step_is_the_definitions(exit_layer: int, eos: tuple[int, ...]) -> None:
    model = tiny_llama(seed=3, vocab_size=40, eos_token_ids=eos, context=64)
    agreeing(model)
    accepted = 0
    for prompt in PROMPTS:
        output = generated(model, Vanilla(model), prompt, 60).tokens
        found = generated(model, LayerSkip(model, exit_layer=exit_layer, gamma=4), prompt, 60)
        assert found.tokens == output
        wanted = steps_of(lambda tokens: drafted(model, tokens, exit_layer, 4), prompt, output, 60)
        assert list(found.steps) == wanted
        accepted += sum(step.emitted - 1 for step in found.steps)
    assert accepted > 10 or eos


@pytest.mark.parametrize("exit_layer", [0, 4])
def test_an_exit_before_or_behind_all_layers_is_refused(exit_layer: int) -> None:
    with pytest.raises(UserError, match=f"method.exit_layer={exit_layer}: must be between 1 and 3"):
        LayerSkip(tiny_llama(), exit_layer=exit_layer, gamma=4)


def test_a_gamma_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.gamma=0: must be at least 1"):
        LayerSkip(tiny_llama(), exit_layer=1, gamma=0)
