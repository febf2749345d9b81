"""Every method that configuration offers is lossless, and its sequences know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import choices, installed
from methods.decoder import Decoder, Prefill, Verification
from methods.draft import Draft, Resumed, Tree
from methods.engine.llama import Llama
from methods.proof import Make, check_lossless, check_side_by_side
from methods.sam import Sam
from tests.methods.eagle3_reference import draft_config3, random_draft3, with_vocabulary
from tests.methods.eagle_reference import draft_config, random_draft, write_draft
from tests.methods.test_medusa import random_heads, write_heads
from tests.methods.test_rest import tokenizer_folder, write_datastore
from tests.methods.test_sps import write_drafter
from tests.tiny import adapter_checkpoint, tiny_llama

# Without a draft model of their own; hf_... stands beside the loop and has tests of its own.
METHODS = [name for name in choices("method") if not name.startswith("hf_")]


def kangaroo(folder: Path) -> dict[str, Any]:
    return {"checkpoint": adapter_checkpoint(folder, hidden=64), "exit_layer": 1, "eta": 0.03}


def medusa(folder: Path) -> dict[str, Any]:
    return {"checkpoint": write_heads(folder, random_heads(4, 64, 48), claimed=4)}


def rest(folder: Path) -> dict[str, Any]:
    text = [[token % 48 for token in range(start, 400, step)] for start, step in ((3, 1), (5, 7), (9, 17))]
    return {"datastore": write_datastore(folder, text, tokenizer_folder(folder))}


def sps(folder: Path) -> dict[str, Any]:
    return {"drafter": write_drafter(folder, tiny_llama(vocab_size=48, num_layers=2))}


def eagle(folder: Path) -> dict[str, Any]:
    shape = tiny_llama(vocab_size=48).config
    return {"checkpoint": write_draft(folder, random_draft(shape), draft_config(shape))}


def eagle3(folder: Path) -> dict[str, Any]:
    """It knows every other token."""
    shape = tiny_llama(vocab_size=48).config
    tensors = with_vocabulary(random_draft3(shape, 24), range(0, 48, 2), 48)
    return {"checkpoint": write_draft(folder, tensors, draft_config3(shape, 24)), "top_k": 4, "depth": 3, "nodes": 20}


# What a method needs besides its configuration, made in a folder. A new method with weights adds a line.
DRAFTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "eagle": eagle,
    "eagle2": lambda folder: {**eagle(folder), "top_k": 4, "depth": 3, "nodes": 20},  # a tree as large is in test_eagle
    "eagle3": eagle3,
    "kangaroo": kangaroo,
    "medusa": medusa,
    "rest": rest,
    "sps": sps,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    tiny = tiny_llama(vocab_size=48, eos_token_ids=(2,))
    return Llama(tiny.config, tiny.weights, tokenizer_folder(tmp_path_factory.mktemp("model")))


def maker(name: str, folder: Path) -> Make:
    """The method as configured, with a random draft."""
    from hydra.utils import get_object

    settings = dict(installed().compose("config", [f"method={name}", "model=custom", "model.path=x"]).values["method"])
    target = get_object(settings.pop("_target_"))
    settings |= DRAFTS[name](folder) if name in DRAFTS else {}
    lacking = [key for key in ("checkpoint", "datastore", "drafter") if settings.get(key, "") is None]
    assert not lacking, f"{name}: add what makes its {lacking[0]} to DRAFTS"
    return lambda model: target(model, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_lossless_behind_lookups(name: str, model: Llama, tmp_path: Path) -> None:
    make = maker(name, tmp_path)
    settings: dict[str, Any] = {"predict": 6, "threshold": 2, "bias": 0, "static": None}
    check_side_by_side(lambda target: Sam(target, fallback=make(target), **settings), model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_lossless(name: str, model: Llama, tmp_path: Path) -> None:
    check_lossless(maker(name, tmp_path), model)


class Cheat:
    """Accepts what the target did not say: it drafts from states of its own making."""

    taps = ()
    max_rows = 2
    extra_parameters = 0

    def __init__(self, model: Llama) -> None:
        self.model = model

    def start(self, prompt: list[int], prefill: Prefill) -> Cheat:
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        states = self.model.embed(torch.tensor([7, 7]))  # of other tokens than the ones it drafts
        return Draft(torch.tensor([7]), Tree.chain(1, states.device), hidden=Resumed(states, 0))

    def observe(self, verification: Verification) -> None:
        """Nothing."""


def test_a_method_that_cheats_is_caught(model: Llama) -> None:
    with pytest.raises(AssertionError, match=r"prompt \[5, 6, 7\], a whole answer: token \d+ is \d+, vanilla's is"):
        check_lossless(Cheat, model)


class Drifting(Cheat):
    """Cheats only where it is sampled: it shifts the noise of the sequence."""

    def start(self, prompt: list[int], prefill: Prefill) -> Drifting:
        prefill.sampler.seed += 1
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        return Draft.empty(self.model.device)


def test_a_method_that_cheats_above_temperature_0_is_caught(model: Llama) -> None:
    with pytest.raises(AssertionError, match=r"temperature 0.3: token \d+ is \d+, vanilla's is"):
        check_lossless(Drifting, model)


class Shared:
    """Keeps its sequence on the method, where the next one overwrites it."""

    taps = (0,)
    max_rows = 2
    extra_parameters = 0

    def __init__(self, model: Llama) -> None:
        self.device = model.device

    def start(self, prompt: list[int], prefill: Prefill) -> Shared:
        self.last = prompt[0]
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        drafted = min(1, room) if self.last == tokens[0] else 0
        return Draft(torch.tensor([self.last] * drafted, dtype=torch.int64), Tree.chain(drafted, self.device))

    def observe(self, verification: Verification) -> None:
        """Nothing."""


def test_a_method_that_keeps_a_sequence_is_caught(model: Llama) -> None:
    with pytest.raises(AssertionError, match="other steps side by side than alone"):
        check_side_by_side(Shared, model)


def test_taps_are_the_states_before_each_layer(model: Llama) -> None:
    class Tapping(Shared):
        taps = (4, 0, 2)  # in any order; 4: what the last layer gives

        def start(self, prompt: list[int], prefill: Prefill) -> Shared:
            self.prefill = prefill
            return super().start(prompt, prefill)

        def observe(self, verification: Verification) -> None:
            self.seen = verification

    method = Tapping(model)
    sequence = Decoder(model, method).begin(torch.tensor([5, 6, 7]), 20)
    tokens = torch.tensor(sequence.tokens[:3])
    with torch.inference_mode():
        hidden = model.embed(tokens)
        states = [model.run(hidden, torch.arange(3), None, slice(0, layer)) for layer in method.taps]
        for found, wanted in zip(method.prefill.tapped, states, strict=True):
            torch.testing.assert_close(found, wanted)
        sequence.step()
        last, embedded, middle = method.seen.tapped
        torch.testing.assert_close(model.norm(last), method.seen.final)
        torch.testing.assert_close(model.lm_head(method.seen.final), method.seen.logits)
        assert torch.equal(embedded[0], model.embed(torch.tensor(sequence.tokens[3]))) and middle.shape == last.shape
