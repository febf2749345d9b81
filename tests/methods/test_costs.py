"""What a step may cost: nothing allocated in the cache path, one wait for the device a pass (or a drafted token)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from methods.decoder import Decoder
from methods.draft import upload
from methods.eagle import Eagle
from methods.eagle2 import Eagle2
from methods.eagle3 import Eagle3
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama
from methods.hydra import Hydra
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
from tests.methods.test_hydra import config_of, tensors_of
from tests.methods.test_hydra import write as write_hydra
from tests.methods.test_layerskip import agreeing
from tests.methods.test_medusa import random_heads, write_heads
from tests.methods.test_sps import near, write_drafter
from tests.methods.test_sps import target as with_tokenizer
from tests.second_device import moved, waits
from tests.tiny import adapter_checkpoint, tiny_llama

Make = Callable[[Llama, Path], Any]  # a method on a target, with a folder for its draft


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def test_the_cache_only_copies_in_place() -> None:
    cache = KVCache(torch.zeros(2, 2, 2, 32, 8), 32)
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


def plain(folder: Path) -> Llama:
    return tiny_llama(vocab_size=40, eos_token_ids=())


def agreeing_early(folder: Path) -> Llama:
    model = plain(folder)
    agreeing(model)
    return model


def kangaroo(model: Llama, folder: Path) -> Kangaroo:
    folder = adapter_checkpoint(folder / "adapter", hidden=model.config.hidden_size)
    return Kangaroo(model, exit_layer=1, gamma=4, eta=0.02, checkpoint=folder, variant="kangaroo")


def medusa(model: Llama, folder: Path) -> Medusa:
    heads = write_heads(folder, random_heads(2, model.config.hidden_size, model.config.vocab_size), claimed=2)
    tree = [[0], [1], [0, 0], [0, 1], [1, 0]]
    return Medusa(model, checkpoint=heads, heads=2, tree=tree, nodes=5, calibration=None)


def lookahead(window: int, level: int) -> Make:
    return lambda model, folder: Lookahead(model, window=window, level=level, guesses=3, max_accept=None, seed=0)


def recycling(model: Llama, folder: Path) -> Recycling:
    return Recycling(model, memory="sequence", prompt=False)


def lookups(model: Llama, folder: Path) -> PromptLookup:
    return PromptLookup(model, max_ngram=3, length=5, match="last", partial=True)


def automaton(model: Llama, folder: Path) -> Sam:
    return Sam(model, predict=8, threshold=3, bias=0, static=None, fallback=recycling(model, folder))


def early_exit(model: Llama, folder: Path) -> LayerSkip:
    return LayerSkip(model, exit_layer=3, gamma=3)


def eagle(tree: str) -> Make:
    def make(model: Llama, folder: Path) -> Any:
        target, vocab = model.config, model.config.vocab_size
        if tree == "eagle3":
            tensors = with_vocabulary(random_eagle3(target, vocab // 2), range(0, vocab, 2), vocab)
            write_draft(folder, tensors, draft_config3(target, vocab // 2))
            return Eagle3(model, checkpoint=folder, tree="dynamic", top_k=5, depth=3, nodes=20)
        write_draft(folder, random_eagle(target), draft_config(target))
        if tree == "mc_sim_7b_63":
            return Eagle(model, checkpoint=folder, tree=tree)
        return Eagle2(model, checkpoint=folder, tree=tree, top_k=5, depth=3, nodes=20)  # type: ignore[arg-type]

    return make


def hydra(model: Llama, folder: Path) -> Hydra:
    return Hydra(model, checkpoint=write_hydra(folder, tensors_of(model.config), config_of()), tree="mc_sim_7b_63")


def small_model(schedule: Literal["heuristic", "constant", "confidence"]) -> Make:
    def make(model: Llama, folder: Path) -> SmallModel:
        drafter = write_drafter(folder, near(with_tokenizer(folder), 0.1))
        return SmallModel(model, drafter=drafter, gamma=4, schedule=schedule, threshold=0.1, max_gamma=8)

    return make


@pytest.mark.parametrize(
    ("target", "make", "confidence"),
    [
        pytest.param(plain, kangaroo, True, id="kangaroo"),
        pytest.param(plain, medusa, False, id="medusa"),
        pytest.param(plain, lookahead(5, 3), False, id="lookahead"),
        pytest.param(plain, lookahead(1, 2), False, id="lookahead-narrow"),
        pytest.param(plain, recycling, False, id="recycling"),
        pytest.param(plain, lookups, False, id="lookups"),
        pytest.param(plain, automaton, False, id="automaton"),
        pytest.param(agreeing_early, early_exit, False, id="early-exit"),
        pytest.param(plain, eagle("mc_sim_7b_63"), False, id="eagle"),
        pytest.param(plain, eagle("dynamic"), False, id="eagle2"),
        pytest.param(plain, eagle("chain"), False, id="eagle2-chain"),
        pytest.param(plain, eagle("eagle3"), False, id="eagle3"),
        pytest.param(plain, hydra, False, id="hydra"),
        pytest.param(with_tokenizer, small_model("heuristic"), False, id="small-model"),
        pytest.param(with_tokenizer, small_model("constant"), False, id="small-model-constant"),
        pytest.param(with_tokenizer, small_model("confidence"), True, id="small-model-confidence"),
    ],
)
def test_the_host_waits_once_a_pass_and_for_confidence_once_a_drafted_token(
    target: Callable[[Path], Llama], make: Make, confidence: bool, second: torch.device, tmp_path: Path
) -> None:
    model = moved(target(tmp_path), second)
    decoder, prompt = Decoder(model, make(model, tmp_path)), upload([5, 6, 7], second)
    waits.clear()
    generation = decoder.generate(prompt, 40)
    drafted = sum(step.drafted for step in generation.steps)
    assert max(step.drafted for step in generation.steps) > 1, "drafts of one token say little"
    assert max(step.emitted for step in generation.steps) > 1 or make in (kangaroo, medusa), "nor do rejected ones"
    assert len(waits) == 2 + len(generation.steps) + (drafted if confidence else 0)
