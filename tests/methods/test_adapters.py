"""The adapters of Table 2: their sizes, and each as a draft model against a slow reference."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from bench.train.kangaroo import initialise, write
from methods.adapters import VARIANTS, Adapter
from methods.decoder import Decoder
from methods.engine.fixed import FixedLlama
from methods.engine.llama import ModelConfig
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.kangaroo import Kangaroo
from methods.kangaroo_tree import KangarooTree
from methods.vanilla import Vanilla
from tests.tiny import tiny_llama

REFERENCE = Path(__file__).parents[2] / "bench" / "reference"
VICUNA = {"vicuna-7b": (4096, 11008, 32), "vicuna-13b": (5120, 13824, 40)}  # hidden, SwiGLU, heads


def vicuna(name: str) -> ModelConfig:
    hidden, intermediate, heads = VICUNA[name]
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=128,
        norm_eps=1e-6,
        context=2048,
    )


def parameters(variant: str, model: str) -> int:
    adapter = Adapter(vicuna(model), variant=variant, dtype=torch.float16, device=torch.device("meta"))
    return sum(parameter.numel() for parameter in adapter.parameters())


def medusa_parameters(model: str) -> int:
    from medusa.model.medusa_model import ResBlock

    hidden = VICUNA[model][0]
    with torch.device("meta"):
        heads = [torch.nn.Sequential(ResBlock(hidden), torch.nn.Linear(hidden, 32000, bias=False)) for _ in range(4)]
    return sum(parameter.numel() for head in heads for parameter in head.parameters())


@pytest.mark.parametrize(("variant", "millions"), [("kangaroo", 67), ("kangaroo_head", 198), ("mlp_only", 165),
                                                   ("one_layer_transformer", 202), ("medusa", 591)])  # fmt: skip
def test_extra_parameters_at_vicuna_7b_are_the_papers(variant: str, millions: int) -> None:
    count = medusa_parameters("vicuna-7b") if variant == "medusa" else parameters(variant, "vicuna-7b")
    assert round(count / 1e6) == millions
    with (REFERENCE / "table2_adapter.csv").open() as file:
        printed = {row["architecture"]: row for row in csv.DictReader(line for line in file if line[0] != "#")}
    assert int(printed[variant]["parameters_millions"]) == millions


@pytest.mark.parametrize(("variant", "millions"), [("kangaroo", 105), ("kangaroo_head", 269), ("mlp_only", 216),
                                                   ("one_layer_transformer", 317), ("medusa", 760)])  # fmt: skip
def test_extra_parameters_at_vicuna_13b(variant: str, millions: int) -> None:
    count = medusa_parameters("vicuna-13b") if variant == "medusa" else parameters(variant, "vicuna-13b")
    assert round(count / 1e6) == millions


def test_the_report_prints_what_is_counted_here() -> None:
    with (REFERENCE / "adapter_parameters.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if line[0] != "#"))
    assert {row["architecture"] for row in rows} == {*VARIANTS, "medusa"}
    for row in rows:
        for model in VICUNA:
            name = row["architecture"]
            assert int(row[model]) == (medusa_parameters(model) if name == "medusa" else parameters(name, model))


@pytest.fixture(scope="module")
def target():
    """A model whose later layers say little, so that a barely trained adapter is often right."""
    model = tiny_llama(seed=3, eos_token_ids=())
    for layer in model.weights.layers[1:]:
        layer.output.weight.mul_(0.1)
        layer.down.weight.mul_(0.1)
    model.weights.lm_head.weight.mul_(1.5)
    return model


def saved(folder: Path, target, variant: str, vocabulary: torch.Tensor | None = None) -> Adapter:
    adapter = Adapter(target.config, variant=variant, dtype=torch.float32, device=target.device, vocabulary=vocabulary)
    initialise(adapter, target, seed=1)
    write(folder, adapter, exit_layer=1, dtype=torch.float32)
    return adapter


SOME = torch.arange(128)[torch.arange(128) % 4 != 1]  # a draft vocabulary


@pytest.mark.parametrize(
    ("variant", "ids"), [*((variant, None) for variant in VARIANTS), ("kangaroo_head", SOME), ("mlp_only", SOME)]
)
def test_every_variant_drafts_what_its_network_says(target, tmp_path: Path, variant: str, ids) -> None:
    """Greedy drafts recomputed from all tokens, without caches; and the tokens are vanilla's."""
    adapter = saved(tmp_path, target, variant, ids)
    method = Kangaroo(target, exit_layer=1, gamma=3, eta=0.2, variant=variant, checkpoint=str(tmp_path))
    assert method.extra_parameters == sum(p.numel() for p in adapter.parameters())
    prompt, plain = torch.tensor([5, 9, 11, 3]), Decoder(target, Vanilla(target))
    result = Decoder(target, method).generate(prompt, 60)
    assert len(result.tokens) == 60 and result.tokens == plain.generate(prompt, 60).tokens
    fixed = FixedLlama.of(target)
    captured = Decoder(fixed, Kangaroo(fixed, exit_layer=1, gamma=3, eta=0.2, variant=variant, checkpoint=tmp_path))
    with fixed.preparing():
        captured.generate(prompt[:2], 9)
    assert captured.generate(prompt, 60) == result and not fixed.unprepared

    tokens, head = [*prompt.tolist(), *result.tokens], adapter.lm_head
    head = target.weights.lm_head.weight if head is None else head
    place, checked = len(prompt), set()
    for step in result.steps:
        drafted: list[int] = []
        while len(drafted) < 3:
            so_far = torch.tensor(tokens[: place + 1] + drafted)
            positions = torch.arange(len(so_far))
            states = target.run(target.embed(so_far), positions, None, slice(0, 1))
            confidence, token = (adapter(states, target.rope, Rows(positions))[-1] @ head.T).softmax(-1).max(-1)
            drafted.append(int(token if ids is None else ids[token]))
            if confidence < 0.2:
                break
        accepted = 0
        following = tokens[place + 1 :]
        while accepted < min(len(drafted), len(following)) and drafted[accepted] == following[accepted]:
            accepted += 1
        last = place + step.emitted == len(tokens) - 1
        assert step.drafted == len(drafted) and (last or step.emitted == accepted + 1)
        place += step.emitted
        checked.add(step.emitted)
    assert len(checked) >= 2, "the comparison would prove little"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tree_over_every_variant_loses_nothing(target, tmp_path: Path, variant: str) -> None:
    """Of one node a level it is the chain; a tree of two rows, and contexts with hardly any room, are trees as well."""
    ids = SOME if VARIANTS[variant].own_head else None
    saved(tmp_path, target, variant, ids)
    settings = {"exit_layer": 1, "eta": 0.1, "variant": variant, "checkpoint": tmp_path}
    prompt, plain = torch.tensor([5, 9, 11, 3]), Vanilla(target)
    chain = Decoder(target, Kangaroo(target, gamma=4, **settings)).generate(prompt, 40)
    for engine in (target, FixedLlama.of(target)):
        narrow = KangarooTree(engine, gamma=4, width=1, nodes=5, **settings)
        assert Decoder(engine, narrow).generate(prompt, 40) == chain
        for width, nodes in ((3, 12), (3, 2), (200, 300)):
            method = KangarooTree(engine, gamma=3, width=width, nodes=nodes, **settings)
            for context in (44, 9, 7, 6):
                wanted = Decoder(target, plain, context=context).generate(prompt, 40).tokens
                assert Decoder(engine, method, context=context).generate(prompt, 40).tokens == wanted


def test_only_the_published_adapter_goes_without_a_variant_in_its_config(target, tmp_path: Path) -> None:
    for variant in VARIANTS:
        saved(tmp_path / variant, target, variant)
        config = json.loads((tmp_path / variant / "config.json").read_text())
        assert config.get("variant", "kangaroo") == variant and ("variant" in config) == (variant != "kangaroo")
        tensors = torch.load(tmp_path / variant / "pytorch_model.bin", weights_only=True)
        assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_another_variants_checkpoint_is_refused(target, tmp_path: Path) -> None:
    saved(tmp_path, target, "mlp_only")
    with pytest.raises(UserError, match=r"an adapter of variant mlp_only, but method\.variant=kangaroo$"):
        Adapter.load(tmp_path, target, "kangaroo")


def test_a_head_of_another_vocabulary_is_named(target, tmp_path: Path) -> None:
    saved(tmp_path, tiny_llama(vocab_size=96), "kangaroo_head")
    with pytest.raises(UserError, match=r"mis-shaped lm_head\.weight \[96, 64\] instead of \[128, 64\]"):
        Adapter.load(tmp_path, target, "kangaroo_head")


@pytest.mark.parametrize(
    ("variant", "ids", "message"),
    [
        ("kangaroo_head", [0, 3, 200], "d2t must lead to different tokens of the target's 128"),
        ("kangaroo_head", [0, 3, 3], "d2t must lead to different tokens of the target's 128"),
        ("kangaroo_head", [-1, 3, 4], "d2t must lead to different tokens of the target's 128"),
        ("kangaroo_head", [[0], [3], [4]], "d2t must lead to different tokens of the target's 128"),
        ("kangaroo_head", [0, 3], r"mis-shaped lm_head\.weight \[3, 64\] instead of \[2, 64\]"),
        ("kangaroo_head", [0.0, 3.0, 4.0], "d2t holds torch.float32, integers are wanted"),
        ("kangaroo", [0, 3, 4], "d2t is for a head, and kangaroo has none of its own"),
    ],
)
def test_a_draft_vocabulary_that_does_not_fit_is_refused(target, tmp_path: Path, variant, ids, message) -> None:
    saved(tmp_path, target, variant, torch.tensor([0, 3, 4]) if variant == "kangaroo_head" else None)
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    tensors["d2t"] = torch.tensor(ids) - (torch.arange(len(ids)).view_as(torch.tensor(ids)))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        Adapter.load(tmp_path, target, variant)
