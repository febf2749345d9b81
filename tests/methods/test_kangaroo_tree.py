"""Kangaroo's tree against a slow reference without any cache, and its chain against Kangaroo itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.train.kangaroo import initialise, write
from methods.adapters import Adapter
from methods.decoder import Decoder
from methods.engine.fixed import FixedLlama
from methods.errors import UserError
from methods.kangaroo import Kangaroo
from methods.kangaroo_tree import KangarooTree
from methods.sam import Sam
from tests.methods import test_kangaroo
from tests.methods.eagle_reference import Paths, Recording
from tests.methods.test_kangaroo import Reference, adapter_model
from tests.tiny import adapter_checkpoint, tiny_llama

random_pair = test_kangaroo.random_pair
joey = test_kangaroo.joey


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    return {**test_kangaroo.random_draft(folder), "width": 3, "nodes": 12}


def tree_of(reference: Reference, tokens: list[int], room: int, *, width: int, nodes: int) -> Paths:
    """The definition in the module's docstring, node by node."""
    found: list[tuple[tuple[int, ...], float]] = []
    frontier: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(min(reference.gamma, room)):
        level = []
        for path, score in frontier:
            chances, choices = reference.draft_distribution((*tokens, *path)).sort(descending=True)
            level += [
                ((*path, choice), score + chance.log().item(), chance.item())
                for chance, choice in zip(chances[:width], choices[:width].tolist(), strict=True)
            ]
        level.sort(key=lambda node: -node[1])
        found += [node[:2] for node in level]
        frontier = [node[:2] for node in level[:width]]
        if level[0][2] < reference.eta:
            break
    return frozenset(path for path, _ in sorted(found, key=lambda node: -node[1])[: nodes - 1])


def longest_path(reference: Reference, tokens: list[int], drafted: Paths) -> list[int]:
    emitted = [reference.target(tuple(tokens))[-1]]
    while tuple(emitted) in drafted:
        emitted.append(reference.target((*tokens, *emitted))[-1])
    return emitted


@pytest.mark.parametrize(
    ("exit_layer", "gamma", "eta", "width", "nodes"),
    [(0, 4, 0.1, 3, 12), (1, 6, 0.25, 4, 9), (2, 3, 0.0, 2, 40), (2, 6, 0.4, 10, 40), (1, 1, 0.0, 5, 4)],
)
def test_every_draft_and_step_equal_the_reference(
    random_pair: Any, exit_layer: int, gamma: int, eta: float, width: int, nodes: int
) -> None:
    model, engine, folder = random_pair
    settings = {"exit_layer": exit_layer, "gamma": gamma, "eta": eta}
    method = KangarooTree(engine, **settings, variant="kangaroo", checkpoint=folder, width=width, nodes=nodes)
    reference = Reference(model, adapter_model(folder), exit_layer, gamma, eta)
    for prompt in ([5, 9, 11, 3], [i % 48 for i in range(82)]):  # the second fills the context
        recording = Recording(method)
        result = Decoder(engine, recording).generate(torch.tensor(prompt), 16)
        ends = len(prompt) + len(result.tokens)
        for (tokens, room, found), step in zip(recording.drafts, result.steps, strict=True):
            assert found == tree_of(reference, tokens, room, width=width, nodes=nodes), f"after {len(tokens)} tokens"
            emitted = longest_path(reference, tokens, found)[: ends - len(tokens)]
            assert (step.drafted, step.emitted) == (len(found), len(emitted))


@pytest.mark.parametrize(("gamma", "eta"), [(1, 0.0), (6, 0.3), (6, 0.0)])
def test_one_node_a_level_is_kangaroo_step_for_step(random_pair: Any, gamma: int, eta: float) -> None:
    _, engine, folder = random_pair
    settings = {"exit_layer": 1, "gamma": gamma, "eta": eta, "variant": "kangaroo", "checkpoint": folder}
    chain, tree = Kangaroo(engine, **settings), KangarooTree(engine, **settings, width=1, nodes=gamma + 1)
    same(engine, chain, tree, [5, 9, 11, 3], 40)
    same(engine, chain, tree, [i % 48 for i in range(82)], 40)


def test_one_node_a_level_is_kangaroo_on_joey(joey: Any) -> None:
    _, engine, _, prompt, _, folder = joey
    settings = {"exit_layer": 2, "gamma": 6, "eta": 0.6, "variant": "kangaroo", "checkpoint": folder}
    chain, tree = Kangaroo(engine, **settings), KangarooTree(engine, **settings, width=1, nodes=40)
    same(engine, chain, tree, prompt, 60)


def same(engine: Any, chain: Any, tree: Any, prompt: list[int], new: int) -> None:
    recorded = []
    for method in (chain, tree):
        recording = Recording(method)
        result = Decoder(engine, recording).generate(torch.tensor(prompt), new)
        recorded.append((result.tokens, result.steps, recording.drafts))
    assert recorded[0] == recorded[1]


def test_a_tree_accepts_more_than_the_chain(joey: Any) -> None:
    _, engine, _, prompt, _, folder = joey
    settings = {"exit_layer": 2, "gamma": 6, "eta": 0.4, "variant": "kangaroo", "checkpoint": folder}
    passes = [
        len(Decoder(engine, method).generate(torch.tensor(prompt), 80).steps)
        for method in (Kangaroo(engine, **settings), KangarooTree(engine, **settings, width=10, nodes=40))
    ]
    assert passes[1] < passes[0]


def test_passes_that_another_method_drafted_are_caught_up_with(random_pair: Any) -> None:
    model, engine, folder = random_pair
    method = KangarooTree(
        engine, exit_layer=1, gamma=3, eta=0.1, variant="kangaroo", checkpoint=folder, width=3, nodes=9
    )
    reference, recording = Reference(model, adapter_model(folder), 1, 3, 0.1), Recording(method)
    mixed = Sam(engine, predict=6, threshold=2, bias=0, static=None, fallback=recording)
    result = Decoder(engine, mixed).generate(torch.tensor([3, 20, 3, 20, 3]), 50)
    lengths = [len(tokens) for tokens, _, _ in recording.drafts]
    assert len(lengths) < len(result.steps)
    assert max(after - before for before, after in pairwise(lengths)) > max(step.emitted for step in result.steps)
    for tokens, room, found in recording.drafts:
        assert found == tree_of(reference, tokens, room, width=3, nodes=9)


@pytest.mark.parametrize(("settings", "said"), [({"width": 0}, "method.width=0: "), ({"nodes": 1}, "method.nodes=1: ")])
def test_settings_out_of_range_are_one_line(tmp_path: Path, settings: dict[str, int], said: str) -> None:
    values: Any = {"exit_layer": 1, "gamma": 3, "eta": 0.4, "variant": "kangaroo", "width": 2, "nodes": 9, **settings}
    with pytest.raises(UserError, match=said):
        KangarooTree(tiny_llama(), **values, checkpoint=adapter_checkpoint(tmp_path, hidden=64))


@pytest.mark.parametrize(("variant", "exit_layer"), [("kangaroo", 4), ("mlp_only", 0), ("mlp_only", 4)])
def test_a_pass_that_no_cache_takes_in_is_fixed_too(tmp_path: Path, variant: str, exit_layer: int) -> None:
    """Behind the last layer verification is norm and head; without attention, on the embeddings, so is drafting."""
    target = tiny_llama(num_layers=4, vocab_size=48, eos_token_ids=())
    adapter = Adapter(target.config, variant=variant, dtype=torch.float32, device=target.device)
    initialise(adapter, target, seed=1)
    write(tmp_path, adapter, exit_layer=exit_layer, dtype=torch.float32)
    settings = {"exit_layer": exit_layer, "variant": variant, "gamma": 3, "eta": 0.0, "width": 3, "nodes": 12}
    fixed, prompt = FixedLlama.of(target), torch.tensor([5, 9, 11, 3])
    plain, captured = (
        Decoder(engine, KangarooTree(engine, **settings, checkpoint=tmp_path)) for engine in (target, fixed)
    )
    with fixed.preparing():
        captured.generate(prompt[:2], 9)
    wanted = plain.generate(prompt, 40)
    assert captured.generate(prompt, 40) == wanted and not fixed.unprepared
    assert max(step.emitted for step in wanted.steps) > 1 or exit_layer == 0
