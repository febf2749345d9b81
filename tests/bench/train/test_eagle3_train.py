"""Training EAGLE-3's draft model: unrolled steps are those of drafting, and the method reads what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.settings import Text
from bench.train import eagle3, packing
from methods.decoder import Decoder
from methods.eagle3 import Eagle3, Eagle3Model
from methods.engine.checkpoint import load_model
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.vanilla import Vanilla
from tests.bench.train.chat_model import basics, interrupt_at, settings
from tests.bench.train.test_eagle_train import conversations
from tests.methods.eagle3_reference import tapped
from tests.methods.eagle_reference import features
from tests.tiny import tiny_llama

UNROLLS = 3
METHOD: Any = {"tree": "dynamic", "top_k": 3, "depth": 2, "nodes": 8}


def arguments(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    own = {"loop_settings": settings(epochs=2), "unrolls": UNROLLS, "draft_vocab": None}
    return basics(world, output, **{**own, **changes})


def drafted(draft: Eagle3Model, tokens: Tensor, place: int, steps: int) -> list[Tensor]:
    """Outputs [hidden] of the method's own passes: the pairs up to `place`, then one true token after the other."""
    states = tapped(draft.target, tokens[: place + 1], draft.taps)
    cache = draft.target.new_cache(64, config=draft.config)
    known = draft.features(tuple(states))
    outputs = [draft.run(tokens[1 : place + 2], known, Rows.of(torch.arange(place + 1), cache))[-1:]]
    for step in range(1, steps):
        token, position = tokens[place + 1 + step :][:1], torch.tensor([place + step])
        outputs.append(draft.run(token, outputs[-1], Rows.of(position, cache)))
    return [output[0] for output in outputs]


@torch.no_grad()
def test_unrolled_steps_are_those_of_drafting() -> None:
    draft = eagle3.build_draft(tiny_llama(num_layers=7), None, 1)
    texts = conversations()
    row = packing.build_row(texts)
    training = eagle3.Unrolled(draft, unrolls=UNROLLS, chunk=7)
    unrolled = [
        dict(zip(rows.tolist(), outputs, strict=True))
        for rows, outputs in training.outputs(row, training.states(row)[0])
    ]
    learnt = {(step, place) for step in range(UNROLLS) for place in eagle3.places(row, step).tolist()}
    assert all(place in unrolled[step] for step, place in learnt)
    checked = begin = 0
    for text in texts:
        tokens = torch.from_numpy(text.tokens).long()
        for place in range(len(tokens) - 2):
            for step, wanted in enumerate(drafted(draft, tokens, place, min(UNROLLS, len(tokens) - 2 - place))):
                if (step, begin + place) in learnt:
                    torch.testing.assert_close(unrolled[step][begin + place], wanted, rtol=1e-4, atol=1e-5)
                    checked += 1
        begin += len(tokens)
    assert checked == len(learnt) > 60


@pytest.mark.parametrize("known", [None, range(0, 128, 2)], ids=["all", "half"])
def test_the_loss_is_the_published_one_token_by_token(known: range | None) -> None:
    """0.8^j times the cross-entropy to the target over the draft's tokens, where the target's best is one of them."""
    target = tiny_llama(num_layers=7)
    vocabulary = None if known is None else torch.tensor(known)
    draft = eagle3.build_draft(target, vocabulary, 1)
    ids, loss, positions = torch.arange(128) if vocabulary is None else vocabulary, 0.0, 0
    with torch.no_grad():
        for text in conversations():
            tokens = torch.from_numpy(text.tokens).long()
            says = target.lm_head(features(target, tokens))
            for place in range(len(tokens) - 2):
                for step, output in enumerate(drafted(draft, tokens, place, min(UNROLLS, len(tokens) - 2 - place))):
                    if text.assistant[place + 2 + step]:
                        positions += 1
                        wanted = says[place + 1 + step]
                        if wanted.argmax() in ids:
                            own = draft.logits(output[None])[0].log_softmax(-1)
                            loss -= 0.8**step * float((wanted[ids].softmax(-1) * own).sum())
    training = eagle3.Unrolled(draft, unrolls=UNROLLS, chunk=7)
    sums = training(packing.build_row(conversations()))
    assert sums.positions.item() == pytest.approx(positions / UNROLLS)
    assert sums.loss.item() == pytest.approx(loss, rel=1e-4)
    sums.loss.backward()
    assert len(list(training.parameters())) == 10
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in training.parameters())
    assert not any(tensor.requires_grad for tensor in target.weights.tensors())


@pytest.mark.parametrize("draft_vocab", [None, 40])
def test_it_learns_and_writes_what_the_method_reads(world: Path, tmp_path: Path, draft_vocab: int | None) -> None:
    target = load_model(world / "model", device="cpu")
    eagle3.train(**arguments(world, tmp_path, draft_vocab=draft_vocab))
    config = json.loads((tmp_path / "config.json").read_text())
    size = draft_vocab or target.config.vocab_size
    assert config["draft_vocab_size"] == size and config["architectures"] == ["LlamaForCausalLMEagle3"]
    method = Eagle3(target, checkpoint=tmp_path, **METHOD)
    generations = [Decoder(target, m).generate(torch.arange(3, 30), 20) for m in (method, Vanilla(target))]
    assert generations[0].tokens == generations[1].tokens
    trained = method.model
    assert isinstance(trained, Eagle3Model) and len(trained.weights.lm_head.weight) == size
    fresh = eagle3.build_draft(target, trained.vocabulary, 0)
    assert trained.extra_parameters == fresh.extra_parameters
    row = packing.build_row(conversations())
    before, after = (eagle3.Unrolled(draft, unrolls=2, chunk=16) for draft in (fresh, trained))
    with torch.no_grad():
        assert after(row).loss < before(row).loss
    if draft_vocab:
        held = torch.load(tmp_path / "pytorch_model.bin")
        assert held["d2t"].dtype == torch.int64 and held["t2d"].dtype == torch.bool
        assert held["t2d"].nonzero()[:, 0].tolist() == (held["d2t"] + torch.arange(40)).tolist()


def test_an_interrupted_run_ends_with_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    eagle3.train(**arguments(world, whole, save_dtype="bfloat16"))
    interrupt_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        eagle3.train(**arguments(world, stopped, save_dtype="bfloat16"))
    monkeypatch.undo()
    eagle3.train(**arguments(world, stopped, save_dtype="bfloat16"))
    kept = [torch.load(folder / "pytorch_model.bin") for folder in (whole, stopped)]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert kept[0]["fc.weight"].dtype == torch.bfloat16


def test_a_draft_model_goes_on_from_another_with_its_vocabulary(world: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    eagle3.train(**arguments(world, first, draft_vocab=40, loop_settings=settings(epochs=1)))
    changes = {"start_from": first, "unrolls": 5, "loop_settings": settings(epochs=1, lr=1e-12)}
    other = Text(path=str(world / "data.json"), limit=20, held_out=2)  # its most frequent tokens are others
    eagle3.train(**arguments(world, second, **changes, data=other))
    before, after = (torch.load(folder / "pytorch_model.bin") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in after.items())
    eagle3.train(**arguments(world, tmp_path / "third", **{**changes, "loop_settings": settings()}, data=other))
    learnt = torch.load(tmp_path / "third" / "pytorch_model.bin")
    same = {name for name, tensor in learnt.items() if torch.allclose(before[name], tensor, atol=1e-6)}
    assert same == {"d2t", "t2d"}
    summary = json.loads((second / "training.json").read_text())
    assert summary["identity"]["start_from"].keys() == {"config.json", "pytorch_model.bin"}


def test_a_beginning_that_does_not_fit_is_one_line(world: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    eagle3.train(**arguments(world, first, draft_vocab=40, loop_settings=settings(epochs=1)))
    with pytest.raises(UserError, match=r"^train.draft_vocab=41: the head in train.start_from has 40 tokens$"):
        eagle3.train(**arguments(world, out, start_from=first, draft_vocab=41))
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "norm_before_residual": True}))
    with pytest.raises(UserError, match=r"^train.start_from=.*first: is not as the authors' draft models are"):
        eagle3.train(**arguments(world, out, start_from=first))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unrolls": 0}, "train.unrolls=0: must be at least 1"),
        ({"draft_vocab": 0}, "train.draft_vocab=0: must be between 1 and the model's 128 tokens, or null for all"),
        ({"save_dtype": "int64"}, "train.save_dtype=int64 is unknown; valid: auto, bfloat16, float16, float32"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        eagle3.train(**arguments(world, tmp_path, **changes))


def test_a_target_that_is_too_small_is_one_line() -> None:
    with pytest.raises(UserError, match=r"reads the target before the layers \[2, 1, -1\], this one has 2"):
        eagle3.build_draft(tiny_llama(num_layers=2), None, 0)
