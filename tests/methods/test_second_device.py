"""Every method on a device that is not the CPU: vanilla's tokens, nothing astray, and no wait too many."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.binder import bind
from bench.config import installed
from bench.measure import timed_generation
from bench.session import top_two_margin
from bench.settings import Run
from methods.decoder import Decoder, Generation, Prefill, Verification
from methods.draft import Draft, Tree, upload
from methods.engine.checkpoint import load_model
from methods.engine.fixed import FixedLlama
from methods.engine.llama import Llama
from methods.proof import Make
from methods.vanilla import Vanilla
from tests.joey import ASSETS, for_joey, prompt
from tests.methods.test_lossless import METHODS, maker
from tests.methods.test_rest import tokenizer_folder
from tests.second_device import Generator, Second, Strayed, moved, waits
from tests.tiny import tiny_llama

PROMPT = (3, 20, 3, 20, 3, 20, 3)
NEW_TOKENS = 20
STOP_BY_CONFIDENCE = ("kangaroo",)  # as configured; they wait for every token that they draft
STOPS_LEVELS = "kangaroo_tree"  # waits for every level, the first included, and for nothing else
Here = Callable[[str, float], tuple[Make, Generation, list[int]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    tiny = tiny_llama(vocab_size=48, eos_token_ids=())
    return Llama(tiny.config, tiny.weights, tokenizer_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def here(model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """Once for both engines, by method and temperature: the method, what it gives on the CPU, and vanilla's tokens."""

    @cache
    def found(name: str, temperature: float) -> tuple[Make, Generation, list[int]]:
        make = maker(name, tmp_path_factory.mktemp(name))
        decoders = (Decoder(model, method, temperature=temperature) for method in (make(model), Vanilla(model)))
        ours, vanilla = (decoder.generate(torch.tensor(PROMPT), NEW_TOKENS) for decoder in decoders)
        return make, ours, vanilla.tokens

    return found


def grown(decoder: Decoder) -> list[Any]:
    """From now on, an entry for every level of a tree that goes on behind the first."""
    levels, through, method = list[Any](), decoder.model.through, decoder.method

    def noted(unit: Any, *arguments: Any) -> Any:
        if unit is getattr(method, "level", None):
            levels.append(unit)
        return through(unit, *arguments)

    decoder.model.through = noted  # type: ignore[method-assign]
    return levels


@pytest.mark.parametrize(
    ("name", "temperature", "engine"),
    [
        *((name, 0.0, engine) for name in METHODS for engine in ("eager", "fixed")),
        *((name, 0.8, "eager") for name in METHODS),
        *((name, 0.8, "fixed") for name in ("eagle", "eagle2", "sps")),
    ],
)
def test_every_method(
    name: str, temperature: float, engine: str, model: Llama, here: Here, second: torch.device
) -> None:
    make, wanted, vanillas = here(name, temperature)
    there = moved(model, second)
    there = FixedLlama.of(there) if engine == "fixed" else there
    decoder = Decoder(there, make(there), temperature=temperature)
    prompt = upload(PROMPT, second)
    with there.preparing():
        decoder.generate(prompt[:3], 2)
    levels = grown(decoder)
    waits.clear()
    found = decoder.generate(prompt, NEW_TOKENS)
    assert found.tokens == vanillas and found.steps == wanted.steps
    drafted = sum(step.drafted for step in found.steps) if name in STOP_BY_CONFIDENCE else 0
    least = 2 + len(found.steps)  # the prompt, the first token, each pass
    if name == STOPS_LEVELS:
        assert len(waits) == least + len(levels) + len(found.steps)
    else:
        assert len(waits) == least + drafted


@pytest.fixture(scope="module")
def joey() -> Llama:
    return load_model(ASSETS, dtype="float32")


@pytest.mark.parametrize("name", [name for name in for_joey() if not name.startswith("hf_")])
def test_joeys_drafts(name: str, joey: Llama, second: torch.device, datastores: Path) -> None:
    """On the eager engine. On the fixed one: tests/bench/test_run_elsewhere.py, in whole runs."""
    run = Run.of(installed().compose("config", [f"method={name}", "model=joey"]))
    fetched = bind(run.method, "method").fetch(model=run.model, cache=datastores)
    wanted, found = (
        Decoder(model, fetched.make(target=model)).generate(upload(prompt(), model.device), 12)
        for model in (joey, moved(joey, second))
    )
    assert (found.tokens, found.steps) == (wanted.tokens, wanted.steps)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_timed_turn_and_the_fidelity_check(temperature: float, model: Llama, second: torch.device) -> None:
    there = moved(model, second)
    timed = timed_generation(Decoder(there, Vanilla(there), temperature=temperature), list(PROMPT), 5, second)
    margins = [top_two_margin(m, [*PROMPT, *timed.generation.tokens], temperature) for m in (there, model)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-4) and timed.peak_memory_bytes is None


class Stray:
    """Drafts on the CPU."""

    taps = ()
    max_rows = 2
    extra_parameters = 0

    def __init__(self, model: Llama, device: torch.device) -> None:
        self.tree, self.tokens = Tree.chain(1, model.device), torch.tensor([7], device=device)

    def start(self, prompt: list[int], prefill: Prefill) -> Stray:
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        return Draft(self.tokens, self.tree)

    def observe(self, verification: Verification) -> None:
        """Nothing."""


def test_a_method_that_strays_is_caught(model: Llama, second: torch.device) -> None:
    there, prompt = moved(model, second), upload(PROMPT, second)
    assert Decoder(there, Stray(there, second)).generate(prompt, 5).tokens
    with pytest.raises(Strayed, match="cat of tensors on the second device and on the CPU"):
        Decoder(there, Stray(there, torch.device("cpu"))).generate(prompt, 5)


def test_values_are_the_cpus(second: torch.device) -> None:
    with torch.inference_mode():
        here = torch.arange(12, dtype=torch.float32).view(3, 4)
        there = here.to(second)
        assert isinstance(there, Second) and there.device == second
        for operation in (
            lambda x: x[1:, ::2].t() @ x[:2],
            lambda x: torch.cat((x, x.new_ones(1, 4))).softmax(-1).topk(2).indices,
            lambda x: x.clone().exponential_(generator=torch.Generator(x.device).manual_seed(3)),
            lambda x: x.index_select(0, torch.arange(2, device=x.device)).to(torch.float16),
        ):
            torch.testing.assert_close(operation(there).cpu(), operation(here))
    assert torch.Generator is Generator


SEEN: dict[str, Any] = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "tolist": lambda x: x.tolist(),
    "copy": lambda x: torch.empty(3).copy_(x),
    "nonzero": torch.nonzero,
    "where": torch.where,
    "mask": lambda x: x[x > 1],
    "unique": torch.unique,
    "equal": lambda x: torch.equal(x, x),
    "repeat": lambda x: x.repeat_interleave(x.long()),
    "tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "upload": lambda x: torch.ones(3).to(x.device),
    "a number's tensor": lambda x: torch.tensor(5.0, device=x.device),
    "a number's assignment": lambda x: x.__setitem__(0, torch.tensor(5.0)),
    "assignment": lambda x: x.__setitem__(slice(None), torch.ones(3)),
}
UNSEEN: dict[str, Any] = {
    "upload": lambda x: upload([1, 2], x.device),
    "number": lambda x: x[1:] * 2 + x.new_full((1,), 3.0) + torch.tensor(2.0),
    "argmax": lambda x: x.argmax(),
    "masked fill": lambda x: x.masked_fill(x > 1, 0.0),
    "move": lambda x: x.to(x.device, torch.float64),
}


@pytest.mark.parametrize(("operation", "count"), [(f, 1) for f in SEEN.values()] + [(f, 0) for f in UNSEEN.values()])
def test_what_the_host_waits_for(operation: Any, count: int, second: torch.device) -> None:
    values: Tensor = upload([0, 1, 2], second).float()
    waits.clear()
    with torch.inference_mode():
        operation(values)
    assert len(waits) == count
