"""What a step may cost: nothing allocated in the cache path, one host transfer a verify and one a drafted token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from methods.decoder import Decoder
from methods.eagle import Eagle
from methods.eagle2 import Eagle2
from methods.eagle3 import Eagle3
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama
from methods.kangaroo import Kangaroo
from methods.layerskip import LayerSkip
from methods.lookahead import Lookahead
from methods.medusa import Medusa
from methods.pld import PromptLookup
from methods.recycling import Recycling
from methods.sam import Sam
from methods.sps import SmallModel
from methods.vanilla import Vanilla
from tests.methods.eagle3_reference import draft_config3, random_eagle3, with_vocabulary
from tests.methods.eagle_reference import draft_config, random_eagle, write_draft
from tests.methods.test_layerskip import agreeing
from tests.methods.test_medusa import random_heads, write_heads
from tests.methods.test_sps import near, write_drafter
from tests.methods.test_sps import target as sps_target
from tests.tiny import adapter_checkpoint, tiny_llama

TO_HOST = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
WAITING = ("item", "is_nonzero", "nonzero", "equal", "masked_select")  # as operations, called from within torch too


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def waiting(self) -> int:
        """How many of them make a GPU wait for the host, `tolist` apart."""
        return sum(self.names.count(name) for name in WAITING)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def test_the_cache_only_copies_in_place() -> None:
    cache = KVCache(layers=2, kv_heads=2, capacity=32, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
    rows = torch.randn(5, 2, 8)
    with Operations() as operations:
        for layer in (0, 1):
            keys, _ = cache.append(layer, rows, rows)
        cache.keep(1, (0, 2, 4))
        cache.truncate(2)
    assert set(operations.names) <= {"copy_", "slice", "select", "transpose", "view"} and "copy_" in operations.names
    assert keys.untyped_storage().data_ptr() == cache.storage.untyped_storage().data_ptr()


def test_the_cache_stays_where_it_was_built() -> None:
    model = tiny_llama()
    decoder = Decoder(model, Vanilla(model))
    before = decoder.cache.storage.data_ptr()
    decoder.generate(torch.tensor([5, 6, 7]), 20)
    assert decoder.cache.storage.data_ptr() == before and decoder.cache.lengths == [22] * model.config.num_layers


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call that would make a GPU wait for the host."""
    seen: list[str] = []

    def watched(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            seen.append(name)
            return original(self, *arguments, **keywords)

        return call

    for name in TO_HOST:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    return seen


def test_vanilla_waits_once_a_step(transfers: list[str]) -> None:
    model = tiny_llama()
    decoder, prompt = Decoder(model, Vanilla(model)), torch.tensor([5, 6, 7])
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 20)
    # The prompt's ids and the first token, then each verify.
    assert transfers == ["tolist"] * (2 + len(generation.steps)) and operations.waiting() == 0


def test_kangaroo_waits_once_a_step_and_once_a_drafted_token(tmp_path: Path, transfers: list[str]) -> None:
    model = tiny_llama()
    adapter_checkpoint(tmp_path, hidden=model.config.hidden_size)
    method = Kangaroo(model, exit_layer=1, gamma=4, eta=0.02, checkpoint=str(tmp_path), variant="kangaroo")
    decoder, prompt = Decoder(model, method), torch.tensor([5, 6, 7])
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 20)
    drafted = sum(step.drafted for step in generation.steps)
    assert drafted > len(generation.steps), "the drafts must be longer than one token for this to say anything"
    assert transfers.count("item") == drafted and transfers.count("tolist") == 2 + len(generation.steps)
    assert len(transfers) == drafted + 2 + len(generation.steps) and operations.waiting() == drafted


def test_medusa_waits_once_a_step(tmp_path: Path, transfers: list[str]) -> None:
    model = tiny_llama()
    heads = random_heads(2, model.config.hidden_size, model.config.vocab_size)
    nodes = [[0], [1], [0, 0], [0, 1], [1, 0]]
    folder = write_heads(tmp_path, heads, claimed=2)
    method = Medusa(model, checkpoint=str(folder), heads=2, tree=nodes, nodes=5, calibration=None)
    decoder, prompt = Decoder(model, method), torch.tensor([5, 6, 7])
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 20)
    assert transfers == ["tolist"] * (2 + len(generation.steps)) and operations.waiting() == 0


@pytest.mark.parametrize(("window", "level"), [(5, 3), (1, 2)])
def test_lookahead_waits_once_a_step(transfers: list[str], window: int, level: int) -> None:
    model = tiny_llama()
    method = Lookahead(model, window=window, level=level, guesses=3, max_accept=None, seed=0)
    decoder, prompt = Decoder(model, method), torch.tensor([5, 6, 7])
    decoder.generate(prompt, 40)  # lays out its masks
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 40)
    assert transfers == ["tolist"] * (2 + len(generation.steps)) and operations.waiting() == 0


def recycling(model: Llama) -> Recycling:
    return Recycling(model, memory="sequence", prompt=False)


def lookups(model: Llama) -> PromptLookup:
    return PromptLookup(model, max_ngram=3, length=5, match="last", partial=True)


def automaton(model: Llama) -> Sam:
    return Sam(model, predict=8, threshold=3, bias=0, static=None, fallback=recycling(model))


def early_exit(model: Llama) -> LayerSkip:
    agreeing(model)
    return LayerSkip(model, exit_layer=3, gamma=3)


def eagle(model: Llama, folder: Path, *, tree: str) -> Any:
    if tree == "eagle3":
        tensors = with_vocabulary(random_eagle3(model.config, 20), range(0, 40, 2), 40)
        write_draft(folder, tensors, draft_config3(model.config, 20))
        return Eagle3(model, checkpoint=folder, tree="dynamic", top_k=5, depth=3, nodes=20)
    write_draft(folder, random_eagle(model.config), draft_config(model.config))
    if tree == "mc_sim_7b_63":
        return Eagle(model, checkpoint=folder, tree=tree)
    return Eagle2(model, checkpoint=folder, tree=tree, top_k=5, depth=3, nodes=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("tree", ["mc_sim_7b_63", "dynamic", "chain", "eagle3"])
def test_eagle_waits_once_a_step(tmp_path: Path, transfers: list[str], tree: str) -> None:
    model = tiny_llama(vocab_size=40, eos_token_ids=())
    decoder, prompt = Decoder(model, eagle(model, tmp_path, tree=tree)), torch.tensor([5, 6, 7])
    decoder.generate(prompt, 10)  # lays out chains
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 40)
    assert transfers == ["tolist"] * (2 + len(generation.steps)) and operations.waiting() == 0


@pytest.mark.parametrize("make", [recycling, lookups, automaton, early_exit])
def test_what_needs_no_confidence_waits_once_a_step(transfers: list[str], make: Callable[[Llama], Any]) -> None:
    model = tiny_llama(vocab_size=40, eos_token_ids=())
    decoder, prompt = Decoder(model, make(model)), torch.tensor([5, 6, 7])
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 80)
    assert max(step.emitted for step in generation.steps) > 1
    assert transfers == ["tolist"] * (2 + len(generation.steps)) and operations.waiting() == 0


@pytest.mark.parametrize("schedule", ["heuristic", "constant", "confidence"])
def test_a_small_model_waits_once_a_step_and_for_confidence_once_a_drafted_token(
    tmp_path: Path, transfers: list[str], schedule: str
) -> None:
    model = sps_target(tmp_path)
    folder = write_drafter(tmp_path, near(model, 0.1))
    method = SmallModel(model, drafter=folder, gamma=4, schedule=schedule, threshold=0.1, max_gamma=8)  # type: ignore[arg-type]
    decoder, prompt = Decoder(model, method), torch.tensor([5, 6, 7])
    transfers.clear()
    with Operations() as operations:
        generation = decoder.generate(prompt, 60)
    drafted = sum(step.drafted for step in generation.steps) if schedule == "confidence" else 0
    assert transfers.count("item") == drafted == operations.waiting()
    assert len(transfers) == drafted + 2 + len(generation.steps)
