"""Every method that configuration offers is lossless, and its sequences know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hydra.utils import get_object

from bench.binder import draft_key
from bench.config import installed
from methods import proof
from methods.decoder import Decoder, Generation, Prefill, Verification
from methods.draft import Draft, Resumed, Tree
from methods.engine import checkpoint
from methods.engine.llama import Llama
from methods.proof import OFTEN, Make, check_lossless, check_side_by_side
from methods.sam import Sam
from methods.vanilla import Vanilla
from tests.methods.test_rest import tokenizer_folder
from tests.tiny import tiny_llama

# Without a draft model of their own; hf_... stands beside the loop and has tests of its own.
METHODS = [name for name in installed().choices("method") if not name.startswith("hf_")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    tiny = tiny_llama(vocab_size=48, eos_token_ids=(2,))
    return Llama(tiny.config, tiny.weights, tokenizer_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", autouse=True)
def once_for_all() -> Iterator[None]:
    """What vanilla says is found out once for all methods: they have one model, and copies that end elsewhere. So is
    what a draft's .bin file holds, which is read for every copy.
    """
    generated, known = proof._generated, {}

    def once(model: Llama, make: Make, prompt: Sequence[int], *case: Any, **settings: Any) -> Generation:
        if make is not Vanilla:
            return generated(model, make, prompt, *case, **settings)
        key = (id(model.weights), model.config, tuple(prompt), case, tuple(settings.items()))
        if key not in known:
            known[key] = generated(model, make, prompt, *case, **settings)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proof, "_generated", once)
        patched.setattr(checkpoint, "_load_bin", cache(checkpoint._load_bin))
        yield


def drawn(name: str, folder: Path) -> dict[str, Any]:
    """Settings that a method needs besides its configuration: what `random_draft` of tests/methods/test_NAME.py makes.

    A random draft, put into a folder, for a target like `model`: 48 tokens, hidden size 64, 4 layers.
    """
    module = f"tests.methods.test_{name}"
    make = getattr(import_module(module), "random_draft", None) if find_spec(module) else None
    return make(folder) if make else {}


@cache
def configured(name: str) -> Mapping[str, Any]:
    """A method's settings for any model."""
    return MappingProxyType(
        installed().compose("config", [f"method={name}", "model=custom", "model.path=x"]).values["method"]
    )


def maker(name: str, folder: Path) -> Make:
    """The method as configured, with a random draft. One from outside of which there is none is skipped."""
    node = configured(name)
    settings = {**node, **drawn(name, folder)}
    target = get_object(settings.pop("_target_"))
    key = draft_key(node)
    if key is not None and settings.get(key) is None:
        ours = target.__module__.startswith("methods.")
        lacks = f"{name}: no random_draft(folder) in tests/methods/test_{name}.py that gives its {key}"
        (pytest.fail if ours else pytest.skip)(lacks)
    return lambda model: target(model, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_lossless_behind_lookups(name: str, model: Llama, tmp_path: Path) -> None:
    make = maker(name, tmp_path)
    check_side_by_side(lambda target: Sam(target, fallback=make(target), **OFTEN), model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_lossless(name: str, model: Llama, tmp_path: Path) -> None:
    check_lossless(maker(name, tmp_path), model)


@pytest.mark.parametrize(("module", "outcome"), [("methods.kangaroo", pytest.fail), ("outside", pytest.skip)])
def test_a_draft_that_nobody_makes_is_named(module: str, outcome: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("methods.kangaroo.Kangaroo.__module__", module)
    monkeypatch.setitem(globals(), "drawn", lambda *_: {})
    monkeypatch.setitem(globals(), "draft_key", lambda node: "checkpoint")
    with pytest.raises(outcome.Exception, match=r"kangaroo: no random_draft\(folder\) .* that gives its checkpoint"):
        maker("kangaroo", tmp_path)


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


class Deep(Cheat):
    """Drafts as deep as it likes."""

    max_rows = 8

    def propose(self, tokens: list[int], room: int) -> Draft:
        return Draft(torch.full((7,), 5), Tree.chain(7, self.model.device))


class Uneven(Deep):
    """One token too many for its tree."""

    def propose(self, tokens: list[int], room: int) -> Draft:
        return Draft(torch.full((3,), 5), Tree.chain(min(2, room), self.model.device))


class Proud(Deep):
    """Takes every draft for its own."""

    def propose(self, tokens: list[int], room: int) -> Draft:
        self.drafted = min(1, room)
        return Draft(torch.full((self.drafted,), 5), Tree.chain(self.drafted, self.model.device))

    def observe(self, verification: Verification) -> None:
        if len(verification.rows) != 1 + self.drafted:
            raise ValueError("rows that nobody drafted")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Deep, r"prompt \[5, 6, 7\], .*: AssertionError: a draft 7 deep, with room for \d$"),
        (Uneven, r"prompt \[5, 6, 7\], a whole answer: AssertionError: a draft of 3 tokens, and a tree of 2$"),
        (Proud, r"prompt \[.*\], between another's drafts: ValueError: rows that nobody drafted$"),
    ],
)
def test_what_a_method_raises_is_said_with_its_place(model: Llama, method: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_lossless(method, model)
