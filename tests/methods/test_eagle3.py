"""EAGLE-3 against its definition, draft by draft, and its checkpoints in three dialects."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.decoder import Decoder
from methods.eagle3 import Eagle3, Eagle3Model
from methods.eagle3_formats import default_taps, empty_weights, published, read_shape
from methods.engine import checkpoint
from methods.engine.llama import Llama
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.vanilla import Vanilla
from tests.methods.eagle3_reference import (
    HEAD_DIM,
    Reference3,
    draft_config3,
    random_eagle3,
    tapped,
    with_vocabulary,
    write_specforge,
    write_speculators,
)
from tests.methods.eagle_reference import Recording, write_draft
from tests.methods.test_eagle import CONTEXT, PROMPTS, PUBLISHED, SMALL, VOCAB, check
from tests.tiny import tiny_llama

LAYERS, TAPS = 8, (2, 4, 5)


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration: a draft model that knows every other token."""
    shape = tiny_llama(vocab_size=48).config
    tensors = with_vocabulary(random_eagle3(shape, 24), range(0, 48, 2), 48)
    return {"checkpoint": write_draft(folder, tensors, draft_config3(shape, 24)), "top_k": 4, "depth": 3, "nodes": 20}


def a_target(**shape: Any) -> Llama:
    given: dict[str, Any] = {"vocab_size": VOCAB, "context": CONTEXT, "num_layers": LAYERS, "eos_token_ids": ()}
    return tiny_llama(1, **{**given, **shape})


class Case3:
    """As test_eagle's Case: in float64, free of near ties."""

    def __init__(self, folder: Path, draft_vocab: int, kv_heads: int, **changes: Any) -> None:
        self.target = a_target(dtype=torch.float64)
        plain = Decoder(self.target, Vanilla(self.target))
        texts = [[*prompt, *plain.generate(torch.tensor(prompt), 40).tokens] for prompt in PROMPTS]
        counts = Counter(token for text in texts for token in text)
        ids = sorted(sorted(range(VOCAB), key=lambda token: -counts[token])[:draft_vocab])
        tensors = random_eagle3(self.target.config, draft_vocab, kv_heads=kv_heads)
        tensors = with_vocabulary(tensors, ids, VOCAB) if draft_vocab < VOCAB else tensors
        config = draft_config3(self.target.config, draft_vocab, kv_heads=kv_heads, **changes)
        self.reference = Reference3(self.target, tensors, config, TAPS)
        self.reference.fit(texts, steps=30)
        self.folder = write_draft(folder, self.reference.tensors, config)

    def dynamic(self, settings: dict[str, Any]) -> tuple[Any, Any]:
        numbers = {key: settings[key] for key in ("top_k", "depth", "nodes")}
        if settings["tree"] == "chain":
            numbers |= {"top_k": 1, "nodes": settings["depth"] + 2}
        method = Eagle3(self.target, checkpoint=self.folder, **settings)
        return method, lambda tokens, room: self.reference.dynamic(tokens, room, **numbers)


@pytest.fixture(scope="module", params=[VOCAB, 24])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case3:
    """All tokens, with a rope_theta of the draft's own; fewer, with none."""
    changes: dict[str, Any] = {VOCAB: {"rope_theta": 500.0}, 24: {}}[request.param]
    return Case3(tmp_path_factory.mktemp("draft"), request.param, 2 if request.param == VOCAB else 1, **changes)


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "nodes": 4, "depth": 4}, {**SMALL, "tree": "chain"}], ids=str)
def test_every_step_equals_the_reference(case: Any, settings: dict[str, Any]) -> None:
    assert check(case, *case.dynamic(settings), 20) > 2


def test_the_published_tree_equals_the_reference(case: Any) -> None:
    assert check(case, *case.dynamic(PUBLISHED), 5) > 1


def test_only_the_drafts_own_tokens_are_drafted(case: Any) -> None:
    recording = Recording(case.dynamic(SMALL)[0])
    Decoder(case.target, recording).generate(torch.tensor([5, 9, 11, 3]), 30)
    known = case.reference.tensors.get("t2d", torch.ones(VOCAB, dtype=torch.bool)).nonzero()[:, 0].tolist()
    drafted = {token for _, _, found in recording.drafts for path in found for token in path}
    assert len(drafted) > 3 and drafted <= {*known}


# Dialects


def logits_of(model: Eagle3Model, tokens: list[int]) -> Tensor:
    """Of the tokens' pairs, and of one more on top of the last, [n, draft vocab]."""
    target, size = model.target, len(tokens) - 1
    states = tapped(target, torch.tensor(tokens[:-1]), model.taps)
    cache = target.new_cache(32, config=model.config)
    outputs = model.run(torch.tensor(tokens[1:]), model.features(tuple(states)), Rows.of(torch.arange(size), cache))
    deeper = model.run(torch.tensor([7]), outputs[-1:], Rows.of(torch.tensor([size]), cache))
    return model.logits(torch.cat((outputs, deeper)))


def test_three_dialects_of_the_same_weights_give_the_same_logits(tmp_path: Path) -> None:
    target, tokens = a_target(), [3, 17, 5, 30, 8]
    tensors = with_vocabulary(random_eagle3(target.config, 3), [1, 20, 39], VOCAB)
    config = draft_config3(target.config, 3)
    ids = "eagle_aux_hidden_state_layer_ids"
    folders = [
        write_draft(tmp_path / "authors", tensors, config),
        write_speculators(tmp_path / "speculators", tensors, config),
        write_speculators(tmp_path / "told", tensors, config, **{ids: [2, 4, 5]}),
        write_speculators(tmp_path / "converted", tensors, config, **{ids: [1, 3, 4]}),
        write_specforge(tmp_path / "specforge", tensors, config, eagle_config={ids: [1, 3, 4]}),
        write_specforge(tmp_path / "default", tensors, config, norm_output=True, eagle_config=None),
    ]
    models = [Eagle3Model.load(folder, target) for folder in folders]
    wanted = logits_of(models[0], tokens)
    for model in models:
        assert model.taps == TAPS and model.vocabulary is not None and model.vocabulary.tolist() == [1, 20, 39]
        assert torch.equal(logits_of(model, tokens), wanted)
        assert model.extra_parameters == sum(t.numel() for t in tensors.values() if t.is_floating_point())
    reference = Reference3(target, tensors, config, TAPS)
    torch.testing.assert_close(
        wanted[-1], reference.logits(tokens, (7,))[[1, 20, 39]], rtol=1e-4, atol=1e-5, check_dtype=False
    )


OPTIONS: list[tuple[Any, tuple[str, ...], dict[str, Any]]] = [
    (write_speculators, ("norm_before_residual",), {"norm_before_residual": True}),
    (write_speculators, ("norm_output",), {"norm_output": True}),
    (write_speculators, ("fc_norm", "norm_before_residual"), {"fc_norm": True, "norm_before_residual": True}),
    (write_speculators, ("norm_before_fc",), {"norm_before_fc": True}),
    (write_specforge, ("fc_norm",), {"fc_norm": True, "norm_output": True}),
    (write_specforge, ("no_head_norm",), {"norm_output": False}),
]


@pytest.mark.parametrize(("write", "options", "changes"), OPTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_config_switches_on(
    tmp_path: Path, write: Any, options: tuple[str, ...], changes: dict[str, Any]
) -> None:
    target, tokens = a_target(dtype=torch.float64), [3, 17, 5, 30, 8]
    tensors, generator = random_eagle3(target.config, VOCAB), torch.Generator().manual_seed(4)
    sizes = {f"fc_norm.{place}": 64 for place in range(3)} if "fc_norm" in options else {}
    sizes |= {"input_norm": 192} if "norm_before_fc" in options else {}
    tensors |= {f"{name}.weight": 1 + 0.3 * torch.randn(size, generator=generator) for name, size in sizes.items()}
    config = draft_config3(target.config, VOCAB)
    found = logits_of(Eagle3Model.load(write(tmp_path, tensors, config, **changes), target), tokens)
    for path, row in (((), 3), ((7,), 4)):
        wanted = Reference3(target, tensors, config, TAPS, *options).logits(tokens, path)
        torch.testing.assert_close(found[row].float(), wanted, rtol=1e-4, atol=1e-5)
    plain = Reference3(target, tensors, config, TAPS).logits(tokens, (7,))
    assert not torch.allclose(found[4].float(), plain, rtol=1e-3)


def test_an_embedding_in_the_file_counts_where_it_differs(tmp_path: Path) -> None:
    target, tokens = a_target(), [3, 17, 5, 30, 8]
    tensors, config = random_eagle3(target.config, VOCAB), draft_config3(target.config, VOCAB)
    same = {**tensors, "embed_tokens.weight": target.weights.embedding}
    other = {**tensors, "embed_tokens.weight": target.weights.embedding.flip(0)}
    plain, copied, own = (
        Eagle3Model.load(write_speculators(tmp_path / str(number), held, config), target)
        for number, held in enumerate((tensors, same, other))
    )
    assert copied.extra_parameters == plain.extra_parameters == own.extra_parameters - VOCAB * 64
    assert copied.embedding is target.weights.embedding
    assert torch.equal(logits_of(copied, tokens), logits_of(plain, tokens))
    wanted = Reference3(target, other, config, TAPS).logits(tokens, (7,))
    torch.testing.assert_close(logits_of(own, tokens)[-1], wanted, rtol=1e-4, atol=1e-5)


def test_a_draft_may_be_narrower_than_its_target_with_an_embedding_of_its_own(tmp_path: Path) -> None:
    target = a_target()
    small = replace(target.config, hidden_size=32)
    tensors = random_eagle3(small, VOCAB) | {"fc.weight": torch.randn(32, 3 * 64) * 0.1}
    config = draft_config3(small, VOCAB, target_hidden_size=64)
    with pytest.raises(UserError, match=r"hidden size 32 beside a target's 64 needs embed_tokens.weight"):
        Eagle3Model.load(write_draft(tmp_path / "bare", tensors, config), target)
    tensors["embed_tokens.weight"] = torch.randn(VOCAB, 32)
    folder = write_draft(tmp_path / "whole", tensors, config)
    found = logits_of(Eagle3Model.load(folder, target), [3, 17, 5])
    wanted = Reference3(target, tensors, config, TAPS).logits([3, 17, 5], (7,))
    torch.testing.assert_close(found[-1], wanted, rtol=1e-4, atol=1e-5)
    result = Decoder(target, Eagle3(target, checkpoint=folder, **SMALL)).generate(torch.tensor([5, 6]), 20)
    assert result.tokens == Decoder(target, Vanilla(target)).generate(torch.tensor([5, 6]), 20).tokens


def test_offsets_survive_half_precision_and_are_ignored_without_a_need(tmp_path: Path) -> None:
    """float16 ends at 65504: ids far up must not go through it."""
    target = a_target(vocab_size=70_001, num_layers=7, hidden_size=16, intermediate_size=16, dtype=torch.float16)
    tensors = {n: t.half() for n, t in random_eagle3(target.config, 2).items()}
    folder = write_draft(
        tmp_path / "few", with_vocabulary(tensors, [69_999, 70_000], 70_001), draft_config3(target.config, 2)
    )
    model = Eagle3Model.load(folder, target)
    assert model.vocabulary is not None and model.vocabulary.tolist() == [69_999, 70_000]
    small = a_target()
    full = with_vocabulary(random_eagle3(small.config, VOCAB), range(VOCAB), VOCAB)
    loaded = Eagle3Model.load(write_draft(tmp_path / "all", full, draft_config3(small.config, VOCAB)), small)
    assert loaded.vocabulary is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [2, 4, 9]}, r"before the layers \[2, 4, 9\], the target has 0 to 8"),
        ({"eagle_aux_hidden_state_layer_ids": "2"}, "eagle_aux_hidden_state_layer_ids=2 must be a list of layers"),
        ({"fc_norm": True, "norm_before_fc": True}, "norm_before_fc and fc_norm exclude each other"),
        ({"norm_output": "yes"}, "norm_output=yes must be true or false"),
        ({"draft_vocab_size": 41}, "draft_vocab_size=41 must be a positive integer, the target has 40 tokens"),
        ({"draft_vocab_size": 30}, "30 of the target's 40 tokens need d2t"),
        ({"fc_norm": True}, "do not fit config.json: missing fc_norm.0.weight"),
        ({"transformer_layer_config": 3}, "transformer_layer_config=3 must be a JSON object"),
        ({"head_dim": 16}, rf"mis-shaped .*q_proj.weight \[{4 * HEAD_DIM}, 128\] instead of \[64, 128\]"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 4]}, r"mis-shaped fc.weight \[64, 192\] instead of \[64, 128\]"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    target = a_target()
    config = draft_config3(target.config, VOCAB, **changes)
    folder = write_draft(tmp_path, random_eagle3(target.config, VOCAB), config)
    with pytest.raises(UserError, match=said) as caught:
        Eagle3Model.load(folder, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("midlayer.hidden_norm.weight", "missing midlayer.hidden_norm.weight"),
        ("+layers.1.mlp.up_proj.weight", "extra layers.1.mlp.up_proj.weight"),
        ("+t2d", r"mis-shaped t2d \[64\] instead of \[40\]"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    target = a_target()
    tensors = random_eagle3(target.config, VOCAB)
    if name.startswith("+"):
        tensors[name[1:]] = torch.ones(64)
    else:
        del tensors[name]
    with pytest.raises(UserError, match=said):
        Eagle3Model.load(write_draft(tmp_path, tensors, draft_config3(target.config, VOCAB)), target)


def test_a_target_that_is_too_small_is_one_line(tmp_path: Path) -> None:
    target = a_target(num_layers=2)
    folder = write_draft(tmp_path, random_eagle3(target.config, VOCAB), draft_config3(target.config, VOCAB))
    with pytest.raises(UserError, match=r"states are taken before the layers \[2, 1, -1\], the target has 0 to 2"):
        Eagle3Model.load(folder, target)


@pytest.mark.parametrize(
    ("shape", "draft_vocab", "millions"),
    [((5120, 13824, 40, 40, 40, 32_000), 32_000, 638), ((4096, 14336, 32, 32, 8, 128_256), 32_000, 425)],
    ids=str,
)
def test_size_of_the_published_drafts(tmp_path: Path, shape: tuple[int, ...], draft_vocab: int, millions: int) -> None:
    """Vicuna-13B's and Llama-3.1-8B's, whose configuration says nothing of rope_theta: 10,000, not the target's."""
    hidden, inner, layers, heads, kv_heads, vocab = shape
    config = replace(
        a_target().config,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab,
        head_dim=128,
        rope_theta=500_000.0,
    )
    target = Llama(config, checkpoint.empty_weights(config, torch.float16, torch.device("meta")))
    settings = draft_config3(config, draft_vocab, kv_heads=kv_heads, num_attention_heads=heads, head_dim=None)
    folder = write_draft(tmp_path, {}, settings)
    found = read_shape(folder, target)
    assert found.taps == default_taps(layers) and found.layer.rope_theta == 10_000 and found.layer.head_dim == 128
    draft = Eagle3Model(target, found, empty_weights(found, torch.float16, target.device))
    assert round(draft.extra_parameters / 1e6) == millions
    assert sum(part.numel() for part in published(found, draft.weights).values()) == draft.extra_parameters
