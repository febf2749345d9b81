"""Training EAGLE's draft model: what it learns, and the checkpoint that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.train import eagle, packing
from bench.train.conversations import Encoded
from bench.train.packing import Row
from methods.decoder import Decoder
from methods.eagle import Eagle, EagleModel
from methods.engine.checkpoint import load_model
from methods.errors import UserError
from methods.vanilla import Vanilla
from tests.bench.train.chat_model import basics, interrupt_at, settings
from tests.methods.eagle_reference import features, layer
from tests.tiny import tiny_llama

OBJECTIVE = {"feature": 1.0, "token": 0.1, "noise": 0.2}


def arguments(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return basics(world, output, **{"loop_settings": settings(epochs=4), "bias": True, **OBJECTIVE, **changes})


def conversations() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(
            torch.randint(0, 128, (n,), generator=generator).int().numpy(),
            torch.rand(n, generator=generator).numpy() < 0.6,
        )
        for n in (17, 9, 23)
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_it_learns_and_writes_what_the_method_reads(world: Path, tmp_path: Path, bias: bool) -> None:
    target = load_model(world / "model", device="cpu")
    points = {point.part: point for point in eagle.train(**arguments(world, tmp_path, bias=bias))}
    training = eagle.FeatureTraining(
        eagle.build_draft(target, bias=bias, seed=0), eagle.Objective(**OBJECTIVE), chunk=16
    )
    assert points["held_out"].loss < points["train"].loss * 1.5  # without noise
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["bias"] is bias
    method = Eagle(target, checkpoint=tmp_path, tree="mc_sim_7b_63")
    assert method.extra_parameters == sum(weight.numel() for weight in training.parameters())
    generations = [Decoder(target, m).generate(torch.arange(3, 30), 20) for m in (method, Vanilla(target))]
    assert generations[0].tokens == generations[1].tokens
    trained, row = eagle.FeatureTraining(method.model, training.objective, chunk=16), packing.build_row(conversations())
    with torch.no_grad():
        assert trained(row).loss < training(row).loss


def test_the_loss_is_the_published_one_conversation_by_conversation() -> None:
    """Pair i is the feature of token i and token i + 1; its output is compared with feature i + 1."""
    target = tiny_llama()
    draft = eagle.build_draft(target, bias=True, seed=1)
    tensors = {name: tensor.clone() for name, tensor in draft.published().items()}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "rms_norm_eps": 1e-6}
    distance = entropy = positions = 0.0
    for conversation in conversations():
        tokens = torch.from_numpy(conversation.tokens).long()
        known = features(target, tokens)
        outputs = layer(tensors, config, torch.cat((target.embed(tokens[1:]), known[:-1]), -1))
        for i in range(len(tokens) - 2):
            if conversation.assistant[i + 2]:
                apart = (outputs[i] - known[i + 1]).abs()
                distance += float(torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean())
                wanted, said = target.lm_head(known[i + 1]).softmax(-1), target.lm_head(outputs[i]).log_softmax(-1)
                entropy -= float((wanted * said).sum())
                positions += 1
    training = eagle.FeatureTraining(draft, eagle.Objective(feature=0.7, token=0.3, noise=0.0), chunk=7)
    sums = training(packing.build_row(conversations()))
    assert sums.positions.item() == positions
    assert sums.loss.item() == pytest.approx(0.7 * distance + 0.3 * entropy, rel=1e-4)
    sums.loss.backward()
    assert len(list(training.parameters())) == 7
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.parameters())
    assert not any(tensor.requires_grad for tensor in target.weights.tensors())


def test_noise_is_uniform_and_wider_in_shorter_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (64, 512)
    row = packing.build_row([Encoded(torch.zeros(n).int().numpy(), torch.ones(n).bool().numpy()) for n in lengths])
    for drawn, length in zip(eagle.noise(row, 400).split(lengths), lengths, strict=True):
        width = 512 / length
        assert drawn.abs().max() <= width / 2 and drawn.abs().max() > 0.49 * width
        assert drawn.std().item() == pytest.approx(width / 12**0.5, rel=0.02) and abs(drawn.mean()) < 0.01 * width

    draft = eagle.build_draft(tiny_llama(), bias=False, seed=1)
    seen: list[Tensor] = []
    plain = EagleModel.run

    def run(self: EagleModel, tokens: Tensor, given: Tensor, *rest: Any) -> Tensor:
        seen.append(given)
        return plain(self, tokens, given, *rest)

    monkeypatch.setattr(EagleModel, "run", run)
    training = eagle.FeatureTraining(draft, eagle.Objective(**OBJECTIVE), chunk=7)
    small: Row = packing.build_row(conversations())
    torch.manual_seed(5)
    training(small)
    with torch.no_grad():  # as when it is judged
        training(small)
    torch.manual_seed(5)
    torch.testing.assert_close(seen[0] - seen[1], 0.2 * eagle.noise(small, 64), rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    eagle.train(**arguments(world, whole, save_dtype="bfloat16"))
    interrupt_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        eagle.train(**arguments(world, stopped, save_dtype="bfloat16"))
    monkeypatch.undo()
    eagle.train(**arguments(world, stopped, save_dtype="bfloat16"))
    kept = [torch.load(folder / "pytorch_model.bin") for folder in (whole, stopped)]
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": -0.1}, "train.noise=-0.1: must be 0 or above"),
        ({"token": float("nan")}, "train.token=nan: must be 0 or above"),
        ({"feature": 0, "token": 0}, "train.feature=0 and train.token=0: one of them must be above 0"),
        ({"save_dtype": "int64"}, "train.save_dtype=int64 is unknown; valid: auto, bfloat16, float16, float32"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        eagle.train(**arguments(world, tmp_path, **changes))
