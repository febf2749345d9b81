"""EAGLE-1 and EAGLE-2 against their definitions, draft by draft, and their published checkpoints."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.decoder import Decoder
from methods.eagle import Eagle, EagleModel
from methods.eagle2 import Eagle2
from methods.engine.checkpoint import empty_weights
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.sam import Sam
from methods.trees import EAGLE_25, Level
from methods.vanilla import Vanilla
from tests.methods.eagle_reference import (
    Paths,
    Recording,
    Reference,
    draft_config,
    fit,
    random_eagle,
    write_draft,
)
from tests.tiny import tiny_llama

VOCAB, CONTEXT = 40, 80
PROMPTS = ([5, 9, 11, 3], [7], [i % VOCAB for i in range(70)])  # the last fills the context
OWN_TREE = [[1], [0], [0, 2], [0, 0], [1, 0], [0, 0, 1], [3]]
PUBLISHED: Any = {"tree": "dynamic", "top_k": 10, "depth": 5, "nodes": 60}
SMALL: Any = {"tree": "dynamic", "top_k": 3, "depth": 2, "nodes": 9}


def random_draft(folder: Path) -> dict[str, Any]:
    """What tests of every method configure this one with."""
    shape = tiny_llama(vocab_size=48).config
    return {"checkpoint": write_draft(folder, random_eagle(shape), draft_config(shape))}


class Case:
    """A target, a draft model that has learnt some of its text, and the reference; in float64, free of near ties."""

    def __init__(self, folder: Path, kv_heads: int, **changes: Any) -> None:
        shape = {"vocab_size": VOCAB, "context": CONTEXT, "num_layers": 3, "num_kv_heads": kv_heads}
        self.target = tiny_llama(kv_heads, dtype=torch.float64, eos_token_ids=(), **shape)
        tensors = random_eagle(self.target.config, kv_heads=kv_heads, bias=changes.get("bias", True))
        config = draft_config(self.target.config, kv_heads=kv_heads, **changes)
        plain = Decoder(self.target, Vanilla(self.target))
        texts = [[*prompt, *plain.generate(torch.tensor(prompt), 40).tokens] for prompt in PROMPTS]
        tensors = fit(self.target, tensors, config, texts, steps=30)
        self.folder = write_draft(folder, tensors, config)
        self.reference = Reference(self.target, tensors, config)


@pytest.fixture(scope="module", params=[4, 2, 1])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Groups of one, two and four heads; the first without a bias and with a rope_theta of its own."""
    changes = {4: {"bias": False, "rope_theta": 500.0}, 2: {}, 1: {"bias": True}}[request.param]
    return Case(tmp_path_factory.mktemp("draft"), request.param, **changes)


def test_the_published_tree_has_25_nodes_of_which_10_run() -> None:
    assert [sum(len(node) == depth for node in EAGLE_25) for depth in range(1, 7)] == [4, 8, 8, 3, 2, 0]
    levels = Level.build_all(EAGLE_25, 4, torch.device("cpu"))
    assert [len(level.runs) for level in levels] == [4, 4, 1, 1, 0]
    # The last that runs is 0000, the first of all levels: it sees the first node of each.
    assert levels[3].sees.nonzero()[:, 1].tolist() == [0, 4, 8, 9]


def static(case: Case, tree: Any) -> tuple[Any, Any]:
    named = {"mc_sim_7b_63": EAGLE_25, "chain": [(0,) * depth for depth in range(1, 6)]}
    nodes = named[tree] if isinstance(tree, str) else [tuple(node) for node in tree]
    method = Eagle(case.target, checkpoint=case.folder, tree=tree)
    return method, lambda tokens, room: case.reference.static(tokens, room, nodes)


def dynamic(case: Case, settings: dict[str, Any]) -> tuple[Any, Any]:
    method = Eagle2(case.target, checkpoint=case.folder, **settings)
    numbers = {key: settings[key] for key in ("top_k", "depth", "nodes")}
    if settings["tree"] == "chain":
        numbers |= {"top_k": 1, "nodes": settings["depth"] + 2}
    return method, lambda tokens, room: case.reference.dynamic(tokens, room, **numbers)


def check(case: Case, method: Any, wanted: Any, new: int) -> int:
    """Holds every draft and every step against the reference; returns the longest step."""
    longest = 0
    for prompt in PROMPTS:
        recording = Recording(method)
        result = Decoder(case.target, recording).generate(torch.tensor(prompt), new)
        ends = len(prompt) + len(result.tokens)
        for (tokens, room, found), step in zip(recording.drafts, result.steps, strict=True):
            drafted: Paths = wanted(tokens, room)
            assert found == drafted, f"after {len(tokens)} tokens"
            emitted = case.reference.accepted(tokens, drafted)[: ends - len(tokens)]
            assert step.emitted == len(emitted) and step.drafted == len(drafted)
            longest = max(longest, step.emitted)
        assert recording.drafts[0][0] == [*prompt, result.tokens[0]]
    return longest


@pytest.mark.parametrize("tree", ["mc_sim_7b_63", "chain", OWN_TREE], ids=str)
def test_every_step_of_a_static_tree_equals_the_reference(case: Case, tree: Any) -> None:
    assert check(case, *static(case, tree), 20) > 2


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "nodes": 4, "depth": 4}, {**SMALL, "tree": "chain"}], ids=str)
def test_every_step_of_a_dynamic_tree_equals_the_reference(case: Case, settings: dict[str, Any]) -> None:
    assert check(case, *dynamic(case, settings), 20) > 2


@pytest.mark.parametrize("make", [lambda case: static(case, OWN_TREE), lambda case: dynamic(case, SMALL)])
def test_passes_that_another_method_drafted_are_caught_up_with(case: Case, make: Any) -> None:
    method, wanted = make(case)
    recording = Recording(method)
    mixed = Sam(case.target, predict=6, threshold=2, bias=0, static=None, fallback=recording)
    result = Decoder(case.target, mixed).generate(torch.tensor([3, 20, 3, 20, 3]), 50)
    lengths = [len(tokens) for tokens, _, _ in recording.drafts]
    assert len(lengths) < len(result.steps)
    assert max(after - before for before, after in pairwise(lengths)) > max(step.emitted for step in result.steps)
    for tokens, room, found in recording.drafts:
        assert found == wanted(tokens, room)


def test_equals_are_taken_in_their_order(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=VOCAB, num_layers=1)
    target.weights.lm_head.weight.zero_()
    folder = write_draft(tmp_path, random_eagle(target.config), draft_config(target.config))
    drafts = []
    methods = Eagle(target, checkpoint=folder, tree="mc_sim_7b_63"), Eagle2(target, checkpoint=folder, **PUBLISHED)
    for recording in map(Recording, methods):
        Decoder(target, recording).generate(torch.tensor([5, 6]), 2)
        drafts.append(recording.drafts[0][2])
    assert drafts[0] == {*EAGLE_25}
    # All of a level are equals, and a level's are better than those of the next.
    assert drafts[1] == {(i,) for i in range(10)} | {(i, j) for i in range(5) for j in range(10)} - {(4, 9)}


def test_a_vocabulary_smaller_than_the_width(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=4, num_layers=1, eos_token_ids=())
    folder = write_draft(tmp_path, random_eagle(target.config), draft_config(target.config))
    recording = Recording(Eagle2(target, checkpoint=folder, **PUBLISHED))
    Decoder(target, recording).generate(torch.tensor([1, 2]), 12)
    assert all(len(found) == 59 for _, room, found in recording.drafts if room > 5)


def test_above_temperature_0_the_draft_is_drawn_with_the_targets_noise(tmp_path: Path) -> None:
    """A draft model that knows the target's distribution drafts what it says, however random."""
    target = tiny_llama(vocab_size=VOCAB, num_layers=1, eos_token_ids=())
    target.weights.lm_head.weight.zero_()  # the one distribution there is: uniform
    folder = write_draft(tmp_path, random_eagle(target.config), draft_config(target.config))
    method = Eagle(target, checkpoint=folder, tree="chain")
    result = Decoder(target, method, temperature=1.0, seed=3).generate(torch.tensor([5, 6]), 31)
    assert [step.emitted for step in result.steps] == [6] * 5 and len({*result.tokens}) > 10


# The published format


def model(shape: Llama, folder: Path) -> EagleModel:
    return EagleModel.load(folder, shape)


def test_the_targets_embeddings_in_a_checkpoint_are_skipped_and_both_file_formats_are_read(tmp_path: Path) -> None:
    target = tiny_llama(vocab_size=VOCAB)
    tensors, config = random_eagle(target.config), draft_config(target.config)
    copy = {**tensors, "embed_tokens.weight": torch.full_like(target.weights.embedding, torch.nan)}
    plain = model(target, write_draft(tmp_path / "bin", tensors, config))
    full = model(target, write_draft(tmp_path / "full", copy, config))
    safe = write_draft(tmp_path / "safe", copy, config)
    (safe / "pytorch_model.bin").unlink()
    save_file({name: tensor.contiguous() for name, tensor in copy.items()}, safe / "model.safetensors")
    assert plain.extra_parameters == full.extra_parameters == sum(tensor.numel() for tensor in tensors.values())
    for other in (full, model(target, safe)):
        for name, tensor in plain.published().items():
            assert torch.equal(tensor, tensors[name]) and torch.equal(tensor, other.published()[name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": False}, r"do not fit config.json: extra fc.bias"),
        ({"bias": "no"}, r"config.json says bias='no'; valid: true, false"),
        ({"num_hidden_layers": 2}, r"an EAGLE draft model has one layer, config.json says 2"),
        ({"hidden_size": 96, "num_attention_heads": 6}, r"a draft model for hidden size 96, the target has 64"),
        ({"vocab_size": 41}, r"a draft model for a vocabulary of 41, the target has 40"),
        ({"num_key_value_heads": 4}, r"mis-shaped layers.0.self_attn.k_proj.weight \[32, 64\] instead of \[64, 64\]"),
        ({"rms_norm_eps": None}, r"config.json: rms_norm_eps is missing"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    target = tiny_llama(vocab_size=VOCAB)
    config = draft_config(target.config) | changes
    folder = write_draft(tmp_path, random_eagle(target.config), {k: v for k, v in config.items() if v is not None})
    with pytest.raises(UserError, match=said) as caught:
        model(target, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fc.bias", r"missing fc.bias"),  # no `bias` in config.json means that there is one
        ("layers.0.mlp.up_proj.weight", r"missing layers.0.mlp.up_proj.weight"),
        ("+layers.0.input_layernorm.weight", r"extra layers.0.input_layernorm.weight"),
        ("+embed_tokens.weight", r"mis-shaped embed_tokens.weight \[64\] instead of \[40, 64\]"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    target = tiny_llama(vocab_size=VOCAB)
    tensors = random_eagle(target.config)
    if name.startswith("+"):
        tensors[name[1:]] = torch.ones(64)
    else:
        del tensors[name]
    with pytest.raises(UserError, match=said):
        model(target, write_draft(tmp_path, tensors, draft_config(target.config)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 0}, "method.top_k=0: must be at least 1"),
        ({"depth": -1}, "method.depth=-1: must be at least 0"),
        ({"nodes": 1}, "method.nodes=1: must be at least 2"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_one_line(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    target = tiny_llama(vocab_size=VOCAB)
    folder = write_draft(tmp_path, random_eagle(target.config), draft_config(target.config))
    with pytest.raises(UserError, match=said):
        Eagle2(target, checkpoint=folder, **{**PUBLISHED, **settings})
    with pytest.raises(UserError, match=r"method.tree=mc_sim: unknown; .*valid: chain, mc_sim_7b_63, or a list"):
        Eagle(target, checkpoint=folder, tree="mc_sim")


@pytest.mark.parametrize(("shape", "millions"), [((4096, 11008, 32), 236), ((5120, 13824, 40), 370)], ids=str)
def test_size_of_the_published_drafts(shape: tuple[int, int, int], millions: int) -> None:
    hidden, inner, heads = shape
    config = replace(
        tiny_llama(num_layers=1).config,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
    )
    target = Llama(config, empty_weights(config, torch.float16, torch.device("meta")))
    draft = EagleModel(config, target, bias=True, dtype=torch.float16)
    assert round(draft.extra_parameters / 1e6) == millions
