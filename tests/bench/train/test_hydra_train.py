"""Training Hydra's heads: what they learn, and the checkpoint that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.train import hydra, packing
from methods.decoder import Decoder
from methods.engine.checkpoint import load_model
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.hydra import Hydra
from methods.vanilla import Vanilla
from tests.bench.train.chat_model import basics, interrupt_at, settings
from tests.bench.train.test_eagle_train import conversations
from tests.tiny import tiny_llama

SHAPE: Any = {"architecture": "prefix-mlp", "heads": 2, "layers": 3}


def arguments(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return basics(world, output, **{"loop_settings": settings(epochs=4), "dropout": 0.0, **SHAPE, **changes})


@pytest.mark.parametrize("architecture", ["prefix-mlp", "mlp"])
def test_it_learns_and_writes_what_the_method_reads(world: Path, tmp_path: Path, architecture: Any) -> None:
    target = load_model(world / "model", device="cpu")
    hydra.train(**arguments(world, tmp_path, architecture=architecture))
    fresh = hydra.GroundedTraining(
        hydra.build_draft(target, **{**SHAPE, "architecture": architecture}, seed=0), dropout=0.0, chunk=16
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hydra_head_arch"] == architecture and config["hydra_num_layers"] == 3
    saved = torch.load(tmp_path / "hydra_lm_head.pt", weights_only=True)
    first, again = ("2", "1") if architecture == "mlp" else ("5", "3")
    assert torch.equal(saved[f"hydra_mlp.1.{first}.linear.weight"], saved[f"hydra_mlp.1.{again}.linear.weight"])
    method = Hydra(target, checkpoint=tmp_path, tree="chain")
    assert method.extra_parameters == sum(weight.numel() for weight in fresh.parameters())
    generations = [Decoder(target, m).generate(torch.arange(3, 30), 20) for m in (method, Vanilla(target))]
    assert generations[0].tokens == generations[1].tokens
    trained = hydra.GroundedTraining(method.model, dropout=0.0, chunk=16)
    row = packing.build_row(conversations())
    with torch.no_grad():
        assert trained(row).loss < fresh(row).loss


def test_the_loss_is_the_heads_own_one_place_at_a_time() -> None:
    """Every head reads what it reads in drafting: the state, and the true tokens behind it."""
    target = tiny_llama()
    draft = hydra.build_draft(target, **SHAPE, seed=0)
    training = hydra.GroundedTraining(draft, dropout=0.0, chunk=7)
    losses: list[list[float]] = [[], []]
    with torch.no_grad():
        for weight in training.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        for conversation in conversations():
            tokens = torch.from_numpy(conversation.tokens).long()
            positions = torch.arange(len(tokens))
            features = target.norm(target.run(target.embed(tokens), positions, None, slice(0, None)))
            states = draft.states(features, Rows(positions))
            for k, head in enumerate(draft.heads):
                for at in range(len(tokens) - 2 - k):
                    if conversation.assistant[at + 1 : at + 3 + k].all():
                        read = torch.cat((states[at], *target.embed(tokens[at + 1 : at + 2 + k])))[None]
                        wanted = target.lm_head(features[at + 1 + k][None]).softmax(-1)
                        losses[k].append(F.cross_entropy(head.logits(read, draft.repeats), wanted).item())
    sums = training(packing.build_row(conversations()))
    assert sums.loss.item() == pytest.approx(sum(map(sum, losses)), rel=1e-4)
    assert sums.positions.item() == sum(map(len, losses)) / 2
    sums.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.parameters())
    assert not any(tensor.requires_grad for tensor in target.weights.tensors())


def test_what_is_dropped_out_stands_before_every_block_and_the_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the published Sequentials have it: their dropouts are at 0, 2, 4 ... of a head, and at 0 of its linear."""
    target = tiny_llama()
    draft = hydra.build_draft(target, **SHAPE, seed=0)
    blocks, width = SHAPE["layers"], target.config.hidden_size
    seen: list[tuple[int, float]] = []

    def dropped(states: Tensor, rate: float) -> Tensor:
        seen.append((states.shape[1] // width, rate))
        return states

    monkeypatch.setattr("methods.hydra.F.dropout", dropped)
    training = hydra.GroundedTraining(draft, dropout=0.2, chunk=16)
    row = packing.build_row(conversations())
    training(row)
    widths = [width for head in range(SHAPE["heads"]) for width in (head + 2, *[1] * blocks)]
    assert seen == [(width, 0.2) for width in widths]
    with torch.no_grad():
        training(row)
    draft.heads[0].logits(torch.zeros(1, 2 * width), draft.repeats)
    assert len(seen) == len(widths)  # neither where it is judged nor where it drafts


def test_dropped_out_numbers_follow_from_the_seed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped, none = (tmp_path / name for name in ("whole", "stopped", "none"))
    hydra.train(**arguments(world, whole, dropout=0.2))
    hydra.train(**arguments(world, none))
    interrupt_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        hydra.train(**arguments(world, stopped, dropout=0.2))
    monkeypatch.undo()
    hydra.train(**arguments(world, stopped, dropout=0.2))
    weights = [torch.load(folder / "hydra_lm_head.pt") for folder in (whole, stopped, none)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not torch.equal(weights[0]["hydra_mlp.0.1.linear.weight"], weights[2]["hydra_mlp.0.1.linear.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "train.heads=0, train.layers=3: must be 1 to 64"),
        ({"dropout": 1.0}, "train.dropout=1.0: must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        hydra.train(**arguments(world, tmp_path, **changes))
    assert str(refused.value).startswith(message)
