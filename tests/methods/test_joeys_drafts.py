"""joey's trained drafts against the slow references of their methods, draft by draft and step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from methods.decoder import Decoder
from methods.eagle import Eagle
from methods.eagle2 import Eagle2
from methods.eagle3 import Eagle3
from methods.eagle3_formats import default_taps
from methods.engine import checkpoint
from methods.engine.llama import Llama
from methods.hydra import Hydra
from methods.kangaroo_tree import KangarooTree
from methods.trees import EAGLE_25, MC_SIM_7B_63
from methods.vanilla import Vanilla
from tests import joey
from tests.methods import test_hydra, test_kangaroo
from tests.methods.eagle3_reference import Reference3
from tests.methods.eagle_reference import Paths, Recording, Reference
from tests.methods.test_eagle import PUBLISHED
from tests.methods.test_kangaroo_tree import tree_of

NEW = 9
Says = Callable[[list[int]], int]
Wanted = Callable[[list[int], int], Paths]
NUMBERS = {key: PUBLISHED[key] for key in ("top_k", "depth", "nodes")}
KANGAROO = {"exit_layer": 2, "gamma": 6, "eta": 0.4}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "eagle": (Eagle, {"tree": "mc_sim_7b_63"}),
    "eagle2": (Eagle2, PUBLISHED),
    "eagle3": (Eagle3, PUBLISHED),
    "hydra": (Hydra, {"tree": "mc_sim_7b_63"}),
    "kangaroo_tree": (KangarooTree, {**KANGAROO, "variant": "kangaroo", "width": 10, "nodes": 40}),
}
FOLDERS = {"eagle2": "eagle", "kangaroo_tree": "kangaroo"}


def once(said: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tokens that is asked once for each."""
    known = cache(lambda tokens, *more: said(list(tokens), *more))
    return lambda tokens, *more: known(tuple(tokens), *more)


def reference(name: str, target: Llama) -> tuple[Says, Wanted]:
    """The target's choice after some tokens, and what is drafted there, both without any cache."""
    folder = joey.ASSETS / FOLDERS.get(name, name)
    if name == "kangaroo_tree":
        whole = transformers.AutoModelForCausalLM.from_pretrained(joey.ASSETS, dtype=torch.float64).eval()
        adapter = test_kangaroo.adapter_model(folder).double()
        slow = test_kangaroo.Reference(whole.requires_grad_(False), adapter, *KANGAROO.values())
        return (
            lambda tokens: slow.target(tuple(tokens))[-1],
            lambda tokens, room: tree_of(slow, tokens, room, width=10, nodes=40),
        )
    file = folder / ("hydra_lm_head.pt" if name == "hydra" else "pytorch_model.bin")
    tensors = torch.load(file, weights_only=True)
    if name == "hydra":
        tensors["prefix_embeding_layer.embed_tokens.weight"] = target.weights.embedding  # transformers' layer wants one
        heads = test_hydra.Reference(target, tensors, architecture="prefix-mlp", layers=4)
        return heads.says, lambda tokens, room: heads.draft(tokens, room, list(MC_SIM_7B_63))
    config = json.loads((folder / "config.json").read_text())
    if name == "eagle3":
        taps = default_taps(target.config.num_layers)
        third = Reference3(target, tensors, config, taps)
        return third.says, lambda tokens, room: third.dynamic(tokens, room, **NUMBERS)
    first = Reference(target, tensors, config)
    if name == "eagle":
        return first.says, lambda tokens, room: first.static(tokens, room, EAGLE_25)
    return first.says, lambda tokens, room: first.dynamic(tokens, room, **NUMBERS)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_draft_and_step_equal_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As joey ends, where the context fills up and with an EOS inside a draft; in float64, free of near ties."""
    monkeypatch.setitem(checkpoint.DTYPES, "float64", torch.float64)
    kind, settings = SETTINGS[name]

    def make(target: Llama) -> Any:
        return kind(target, checkpoint=str(joey.ASSETS / FOLDERS.get(name, name)), **settings)

    prompt, longest = joey.prompt(), 0
    endings = joey.endings(make, NEW, "float64")
    says, wanted = map(once, reference(name, endings[0][0]))  # the other endings' targets have the same weights
    for target, context in endings:
        recording = Recording(make(target))
        result = Decoder(target, recording, context=context).generate(torch.tensor(prompt), NEW)
        ends = len(prompt) + len(result.tokens)
        for (tokens, room, found), step in zip(recording.drafts, result.steps, strict=True):
            assert found == wanted(tokens, room), f"after {len(tokens)} tokens"
            emitted = [says(tokens)]
            while tuple(emitted) in found:
                emitted.append(says([*tokens, *emitted]))
            assert (step.drafted, step.emitted) == (len(found), len(emitted[: ends - len(tokens)]))
            longest = max(longest, step.emitted)
        plain = Decoder(target, Vanilla(target), context=context).generate(torch.tensor(prompt), NEW)
        assert result.tokens == plain.tokens
    assert longest > 2
