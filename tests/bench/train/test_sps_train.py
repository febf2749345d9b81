"""Training a small model for methods.sps: what it learns, and the checkpoint that it leaves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import one_hot
from transformers import LlamaForCausalLM

from bench.train import packing, sps
from bench.train.conversations import Encoded
from methods.decoder import Decoder
from methods.engine.checkpoint import load_model, published_weights
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.sps import SmallModel
from methods.vanilla import Vanilla
from tests.bench.train.chat_model import WORDS, basics, interrupt_at, settings, write_chat_model
from tests.tiny import tiny_llama

SHAPE: Any = {"hidden": 16, "layers": 2, "heads": 2, "feed_forward": 3, "tied": True}
FORM = sps.Form(**SHAPE)


def arguments(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    own = {"loop_settings": settings(epochs=6), "learns": "distribution", "start_from": None}
    return basics(world, output, **{**own, **SHAPE, **changes})


@torch.inference_mode()
def logits_of(model: Llama, tokens: torch.Tensor) -> torch.Tensor:
    return model.head(model.run(model.embed(tokens), torch.arange(len(tokens)), None, slice(0, None)))


def test_it_learns_and_writes_what_the_method_and_transformers_read(world: Path, tmp_path: Path) -> None:
    target, tokens = load_model(world / "model", device="cpu"), torch.arange(3, 30)
    points = {point.part: point for point in sps.train(**arguments(world, tmp_path))}
    fresh = sps.build_drafter(target, FORM, 0)
    assert points["held_out"].loss < math.log(target.config.vocab_size) - 0.05
    method = SmallModel(target, drafter=tmp_path, gamma=3, schedule="constant", threshold=0.0, max_gamma=3)
    assert method.extra_parameters == sum(tensor.numel() for tensor in fresh.weights.tensors())
    generations = [Decoder(target, m).generate(tokens, 20) for m in (method, Vanilla(target))]
    assert generations[0].tokens == generations[1].tokens
    ours = logits_of(load_model(tmp_path, device="cpu"), tokens)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)(tokens[None]).logits[0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learns", ["text", "distribution"])
def test_the_loss_is_the_cross_entropy_conversation_by_conversation(learns: str) -> None:
    target = tiny_llama(num_kv_heads=4)
    drafter = sps.build_drafter(target, FORM, 1)
    generator, expected, agreed = torch.Generator().manual_seed(0), 0.0, 0
    conversations = [
        Encoded(
            torch.randint(0, 128, (n,), generator=generator).int().numpy(),
            torch.rand(n, generator=generator).numpy() < 0.6,
        )
        for n in (17, 9, 23)
    ]
    for conversation in conversations:
        tokens = torch.from_numpy(conversation.tokens).long()
        big, small = logits_of(target, tokens).softmax(-1), logits_of(drafter, tokens).log_softmax(-1)
        predicting = torch.from_numpy(conversation.assistant[1:])
        wanted = big[:-1] if learns == "distribution" else one_hot(tokens[1:], 128)
        expected -= float((wanted * small[:-1]).sum(-1)[predicting].sum())
        agreed += int((big.argmax(-1) == small.argmax(-1))[:-1][predicting].sum())  # with the target, in either case
    training = sps.Lesson(target, drafter, learns=learns, chunk=7)
    sums = training(packing.build_row(conversations))
    assert sums.loss.item() == pytest.approx(expected, rel=1e-4)
    assert sums.agree.item() == agreed
    sums.loss.backward()
    assert len(list(training.parameters())) == 2 + 6 * 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.parameters())
    assert not any(tensor.requires_grad for tensor in target.weights.tensors())


def test_an_interrupted_run_ends_with_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sps.train(**arguments(world, whole, save_dtype="bfloat16"))
    interrupt_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sps.train(**arguments(world, stopped, save_dtype="bfloat16"))
    monkeypatch.undo()
    sps.train(**arguments(world, stopped, save_dtype="bfloat16"))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert {tensor.dtype for tensor in load_file(whole / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "train.hidden=0: must be at least 1"),
        ({"layers": 0}, "train.layers=0: must be at least 1"),
        ({"heads": 0}, "train.heads=0: must be at least 1"),
        ({"feed_forward": 0}, "train.feed_forward=0: must be at least 1"),
        ({"heads": 3}, "train.heads=3: twice their number must divide train.hidden=16"),
        ({"save_dtype": "int64"}, "train.save_dtype=int64 is unknown; valid: auto, bfloat16, float16, float32"),
    ],
)
def test_settings_that_do_not_fit(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        sps.train(**arguments(world, tmp_path, **changes))


def test_another_shape_in_the_same_folder_is_refused(world: Path, tmp_path: Path) -> None:
    sps.train(**arguments(world, tmp_path))
    with pytest.raises(UserError, match="layers=2, this one has layers=1"):
        sps.train(**arguments(world, tmp_path, layers=1))


def test_a_head_of_its_own_is_trained_and_written(world: Path, tmp_path: Path) -> None:
    sps.train(**arguments(world, tmp_path, tied=False, feed_forward=4, learns="text"))
    drafter = load_model(tmp_path, device="cpu")
    assert not drafter.config.tied and drafter.config.intermediate_size == 64
    assert not torch.equal(drafter.weights.lm_head.weight, drafter.weights.embedding)


def test_a_drafter_goes_on_from_a_model_of_any_shape(world: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    sps.train(**arguments(world, first, layers=3, hidden=24, heads=3))
    begun = arguments(world, second, start_from=first, loop_settings=settings(lr=1e-12))
    sps.train(**begun)
    before, after = (published_weights(load_model(folder, device="cpu")) for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in after.items())
    with pytest.raises(UserError, match="start_from="):  # it is part of what the folder's run was
        sps.train(**{**begun, "start_from": second})
    sps.train(**{**begun, "output": str(tmp_path / "third"), "loop_settings": settings()})
    learnt = published_weights(load_model(tmp_path / "third", device="cpu"))
    assert not any(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in learnt.items())


def test_a_model_of_other_tokens_is_no_beginning(world: Path, tmp_path: Path) -> None:
    other = write_chat_model(tmp_path / "other", vocab_size=64)
    with pytest.raises(UserError, match=r"^train.start_from=.*other: has 64 tokens, the target 128$"):
        sps.train(**arguments(world, tmp_path / "out", start_from=other))


def test_a_model_of_another_tokenizer_is_no_beginning(world: Path, tmp_path: Path) -> None:
    other = write_chat_model(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace(f'"{WORDS[0]}"', '"another"'))
    with pytest.raises(UserError, match=r"^train.start_from=.*other: its tokenizer has .* tokens, sha256 "):
        sps.train(**arguments(world, tmp_path / "out", start_from=other))


def test_rows_longer_than_the_context_that_it_begins_with_are_refused(world: Path, tmp_path: Path) -> None:
    short = write_chat_model(tmp_path / "short", max_position_embeddings=16)
    with pytest.raises(UserError, match=r"^loop.length=[0-9]+: train.start_from has a context of 16 tokens$"):
        sps.train(**arguments(world, tmp_path / "out", start_from=short))
