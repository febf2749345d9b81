from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.settings import Text
from bench.train import kangaroo, loop, medusa, packing, source
from bench.train.conversations import Encoded
from methods.adapters import Adapter
from methods.engine.checkpoint import load_model, read_tensors
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.kangaroo import Kangaroo
from methods.medusa import Heads
from tests.bench.train.chat_model import basics, interrupt_at, model_settings, settings
from tests.tiny import tiny_llama


def arguments(world: Path, output: Path, **changes):
    return basics(world, output, **{"draft_vocab": None, **changes})


def test_kangaroo_training_learns_and_writes_what_the_method_reads(world, tmp_path):
    points = kangaroo.train(
        variant="kangaroo", exit_layer=1, **arguments(world, tmp_path, loop_settings=settings(epochs=12))
    )
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    train = [float(row["loss"]) for row in rows if row["part"] == "train"]
    assert train[-1] < train[0] and {p.part for p in points} == {"train", "held_out"}
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert not (tmp_path / "training_state.pt").exists()
    target = load_model(world / "model", device="cpu")
    method = Kangaroo(target, exit_layer=1, gamma=3, eta=0.5, variant="kangaroo", checkpoint=str(tmp_path))
    assert method.extra_parameters == sum(p.numel() for p in method.adapter.parameters())


def test_published_names_and_dtype(world, tmp_path):
    kangaroo.train(variant="kangaroo", exit_layer=0, **arguments(world, tmp_path, save_dtype="bfloat16"))
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert sorted(tensors) == sorted(
        ["norm.weight", "layers.0.input_layernorm.weight"] + [f"layers.0.self_attn.{x}_proj.weight" for x in "qkvo"]
    )
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1


def test_loss_equals_the_papers_formula_conversation_by_conversation():
    target = tiny_llama(num_kv_heads=4)
    adapter = Adapter(target.config, variant="kangaroo", dtype=torch.float32, device=target.device)
    kangaroo.initialise(adapter, target, 0)
    generator = torch.Generator().manual_seed(0)
    conversations = [
        Encoded(
            torch.randint(0, 128, (n,), generator=generator).int().numpy(),
            torch.rand(n, generator=generator).numpy() < 0.6,
        )
        for n in (17, 9, 23)
    ]
    expected = 0.0
    for conversation in conversations:
        tokens = torch.from_numpy(conversation.tokens).long()
        places = torch.arange(len(tokens))
        exits = target.run(target.embed(tokens), places, None, slice(0, 2))
        big = target.head(target.run(exits, places, None, slice(2, None))).softmax(-1)
        small = target.lm_head(adapter(exits, target.rope, Rows(places))).log_softmax(-1)
        for n in range(len(tokens) - 1):
            if conversation.assistant[n + 1]:
                expected -= float((big[n] * small[n]).sum().detach())
    packed = kangaroo.Distillation(target, adapter, exit_layer=2, chunk=7)(packing.build_row(conversations))
    assert packed.loss.item() == pytest.approx(expected, rel=1e-4)
    packed.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_medusa_training_learns_and_writes_the_published_format(world, tmp_path):
    points = medusa.train(heads=2, **arguments(world, tmp_path, loop_settings=settings(epochs=6)))
    state = torch.load(tmp_path / "medusa_lm_head.pt", weights_only=True)
    assert sorted(state) == [f"{k}.{name}" for k in (0, 1) for name in ("0.linear.bias", "0.linear.weight", "1.weight")]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["medusa_num_heads"] == 2 and config["medusa_num_layers"] == 1
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["part"] == "train"]
    assert losses[-1] < losses[0] and points
    accuracies = json.loads((tmp_path / "head_accuracies.json").read_text())["accuracies"]
    assert len(accuracies) == 2 and all(0 <= a <= 1 for head in accuracies for a in head)


@pytest.mark.parametrize("method", ["medusa", "kangaroo"])
def test_heads_over_the_most_frequent_tokens_are_trained_and_loaded(world, tmp_path, method):
    given = arguments(world, tmp_path, draft_vocab=20, save_dtype="bfloat16", loop_settings=settings(epochs=6))
    own = {"heads": 2} if method == "medusa" else {"variant": "kangaroo_head", "exit_layer": 1}
    {"medusa": medusa, "kangaroo": kangaroo}[method].train(**own, **given)
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["part"] == "train"]
    assert losses[-1] < losses[0]
    target = load_model(world / "model", device="cpu")
    conversations = source.read_data(
        given["data"],
        source.ModelSource.load(given["model"], target.device),
        given["loop_settings"].length,
        0,
        print,
    )
    said = Counter(token for c in conversations.train for token in c.tokens[c.assistant].tolist())
    if method == "medusa":
        drafts = Heads.load(tmp_path, target, 2)
        assert {tuple(head[1].weight.shape) for head in drafts} == {(20, target.config.hidden_size)}
    else:
        drafts = Adapter.load(tmp_path, target, "kangaroo_head")
        assert len(drafts.lm_head) == 20
    ids = drafts.vocabulary.tolist()
    assert ids == sorted(sorted(range(target.config.vocab_size), key=lambda token: (-said[token], token))[:20])


def test_medusa_places_by_hand():
    #            0  1  2  3  4  5  6  7    two answers: 2-4 and 6-7
    assistant = [0, 0, 1, 1, 1, 0, 1, 1]
    row = packing.build_row([Encoded(torch.arange(8).int().numpy(), torch.tensor(assistant).bool().numpy())])
    found = {p.head: (p.at.tolist(), p.wanted.tolist()) for p in medusa.places(row, 3)}
    assert found == {1: ([1, 2, 5], [3, 4, 7]), 2: ([1], [4]), 3: ([], [])}


def test_medusa_accuracies_by_hand(monkeypatch):
    """States that name what the target says next; each head's choices are the names after it, in order."""
    assistant = [0, 0, 1, 1, 1, 0, 1, 1]  # as above: head 1 is at 1, 2 and 5, head 2 at 1
    row = packing.build_row([Encoded(torch.arange(8).int().numpy(), torch.tensor(assistant).bool().numpy())])
    names, number = torch.eye(12), torch.arange(12)
    linear = torch.nn.Linear(12, 12, bias=False)
    linear.weight = torch.nn.Parameter(-((number[:, None] - number - 1) % 12).float())
    head = torch.nn.Sequential(torch.nn.Identity(), linear)
    training = SimpleNamespace(
        heads=torch.nn.ModuleList([head, head]),
        chunk=2,
        target=SimpleNamespace(lm_head=lambda states: states),
    )
    monkeypatch.setattr(medusa, "final_states", lambda target, row: names[[0, 3, 4, 6, 0, 7, 7, 0]])
    training.heads.vocabulary = None
    first, second = medusa.head_accuracies(training, [row])
    assert first == pytest.approx([1 / 3, 1 / 3] + 8 * [0])  # 3 -> 4 and 4 -> 6; 7 -> 7 is the last of 12 choices
    assert second == [0, 0, 1] + 7 * [0]  # 3 -> 6


def test_medusa_accuracies_that_were_not_measured_are_missing(world, tmp_path, capsys):
    (tmp_path / "head_accuracies.json").write_text('{"accuracies": [[1.0]]}')  # of heads trained before
    source = arguments(world, tmp_path)
    medusa.train(heads=1, **{**source, "data": replace(source["data"], held_out=0)})
    assert not (tmp_path / "head_accuracies.json").exists()
    told = "data.held_out=0: too little text to measure all heads; no head_accuracies.json"
    assert told in capsys.readouterr().out
    medusa.train(heads=9, **arguments(world, tmp_path / "deep"))  # answers have nine words at most
    accuracies = json.loads((tmp_path / "deep" / "head_accuracies.json").read_text())["accuracies"]
    assert 1 < len(accuracies) < 9 and f"is for {len(accuracies)} of 9 heads" in capsys.readouterr().out


def test_medusa_loss_is_discounted_per_head():
    target = tiny_llama()
    heads = medusa.build_heads(target, 3)
    tokens = torch.arange(3, 15)
    row = packing.build_row([Encoded(tokens.int().numpy(), (tokens > 5).numpy())])
    states = target.norm(target.run(target.embed(tokens), torch.arange(12), None, slice(None)))
    expected = 0.0
    for k in (1, 2, 3):
        for t in range(2, 12 - 1 - k):
            expected -= 0.8**k * float(target.lm_head(states[t]).log_softmax(-1)[tokens[t + 1 + k]])
    found = medusa.HeadTraining(target, heads, chunk=4)(row)
    assert found.loss.item() == pytest.approx(expected, rel=1e-4)  # untrained heads are the target's own


SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.bench.train.test_train import arguments, kangaroo, settings
given = arguments(*map(Path, sys.argv[1:]), loop_settings=settings(epochs=6))
kangaroo.train(variant="kangaroo", exit_layer=1, **given)
"""


@pytest.fixture
def one_thread():
    """As in the subprocess: with another number of threads sums may round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def log_without_speed(folder: Path):
    with (folder / "log.csv").open() as file:
        return [{**row, "tokens_per_s": ""} for row in csv.DictReader(file)]


def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(world, tmp_path, one_thread):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, world, killed], env=environment)
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, whole, loop_settings=settings(epochs=6)))
    state = killed / "training_state.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "pytorch_model.bin").exists(), "it must die before the end"
    assert torch.load(state, weights_only=True)["step"] % 4 == 0
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, killed, loop_settings=settings(epochs=6)))
    for name in ("pytorch_model.bin", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert log_without_speed(whole) == log_without_speed(killed)


def test_a_finished_run_is_not_run_again_and_another_is_refused(world, tmp_path, capsys):
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path))
    written = (tmp_path / "pytorch_model.bin").stat().st_mtime_ns
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path))
    assert "already holds this run's result" in capsys.readouterr().out
    assert (tmp_path / "pytorch_model.bin").stat().st_mtime_ns == written
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path, resume=False))
    assert (tmp_path / "pytorch_model.bin").stat().st_mtime_ns > written
    with pytest.raises(UserError, match="exit_layer=1, this one has exit_layer=2"):
        kangaroo.train(variant="kangaroo", exit_layer=2, **arguments(world, tmp_path))
    once = {"variant": "kangaroo", "exit_layer": 1}
    with pytest.raises(UserError, match="holds a run with save_dtype=float32, this one has save_dtype=bfloat16"):
        kangaroo.train(**once, **arguments(world, tmp_path, save_dtype="bfloat16"))
    given = arguments(world, tmp_path)
    with pytest.raises(UserError, match="holds a run with dtype=float32, this one has dtype=bfloat16"):
        kangaroo.train(**once, **given | {"model": replace(given["model"], dtype="bfloat16")})
    file = tmp_path / "training.json"
    older = json.loads(file.read_text())
    other = {**older["identity"], "held_out": 0}  # the same tokens in the same order, parted elsewhere
    with pytest.raises(UserError, match=r"holds a run with held_out=\d+, this one has held_out=0"):
        loop.finished(tmp_path, other)
    older["identity"] = {key: value for key, value in older["identity"].items() if "dtype" not in key}
    file.write_text(json.dumps(older))
    kangaroo.train(**once, **arguments(world, tmp_path))
    said = capsys.readouterr().out
    assert "already holds this run's result" in said
    assert "is of before dtype, save_dtype were recorded; taken to have dtype=float32, save_dtype=float32" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layer": 9}, "method.exit_layer=9: must be between 0 and the model's 3 layers"),
        ({"loop_settings": {"length": 5000}}, "loop.length=5000: the context of tiny is 256 tokens"),
        ({"loop_settings": {"decay": "sudden"}}, "loop.decay=sudden is unknown; valid: none, linear, cosine"),
        ({"loop_settings": {"decay_to": 1.5}}, "loop.decay_to=1.5: must be between 0 and 1, a share of loop.lr"),
        ({"loop_settings": {"batch": 0}}, "loop.batch=0: must be at least 1"),
        ({"loop_settings": {"lr": 0}}, "loop.lr=0: must be above 0"),
        ({"loop_settings": {"warmup_steps": -3}}, "loop.warmup_steps=-3: must be 0 or above"),
        ({"loop_settings": {"epochs": float("inf")}}, "loop.epochs=inf: must be at most 10000"),
        ({"loop_settings": {"betas": (0.9, 2)}}, r"loop.betas=\(0.9, 2\): two numbers from 0 to below 1"),
        ({"data": {"path": "x", "limit": None, "held_out": -5}}, "data.held_out=-5: must be an integer of at least 0"),
        ({"data": {"path": "x", "limit": 0, "held_out": 5}}, "data.limit=0: must be an integer of at least 1"),
        ({"kv_heads": 3}, "train.kv_heads=3: must divide the model's 4 attention heads"),
        ({"loss_vocab": 0}, "train.loss_vocab=0: must be between 1 and the model's"),
        (
            {"kv_heads": 2, "variant": "mlp_only"},
            "train.kv_heads=2: mlp_only has no attention; those that have: kangaroo,",
        ),
        (
            {"loss_vocab": 9, "variant": "kangaroo_head"},
            "train.loss_vocab=9: kangaroo_head has no use for the target's",
        ),
        ({"draft_vocab": 9}, "train.draft_vocab=9: kangaroo has no head of its own; those that have: kangaroo_head"),
        ({"draft_vocab": 9999, "variant": "mlp_only"}, "train.draft_vocab=9999: must be between 1 and the model's"),
        ({"save_dtype": "int64"}, "train.save_dtype=int64 is unknown; valid: auto, bfloat16, float16, float32"),
    ],
)
def test_settings_that_do_not_fit(world, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        if "loop_settings" in changes:
            changes = {**changes, "loop_settings": settings(**changes["loop_settings"])}
        if "data" in changes:
            changes = {"data": Text(**changes["data"])}
        kangaroo.train(**{"exit_layer": 1, "variant": "kangaroo", **arguments(world, tmp_path, **changes)})


def test_a_run_that_starts_over_leaves_nothing_of_the_one_before(world, tmp_path, monkeypatch):
    chosen = settings(checkpoint_every=2, epochs=3)
    run = {"variant": "kangaroo", **arguments(world, tmp_path, loop_settings=chosen)}
    kangaroo.train(exit_layer=1, **run)
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        kangaroo.train(exit_layer=2, **{**run, "resume": False})
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds a run with exit_layer=2, this one has exit_layer=1"):
        kangaroo.train(exit_layer=1, **run)
    kangaroo.train(exit_layer=2, **run)
    assert json.loads((tmp_path / "training.json").read_text())["identity"]["exit_layer"] == 2


@pytest.mark.parametrize("module", [kangaroo, medusa])
def test_the_target_is_loaded_where_accelerate_says(world, tmp_path, monkeypatch, module):
    """With several GPUs only accelerate knows which is this process's own."""
    events, make, load = [], loop.accelerator, source.load_model

    def made(*given):
        events.append("accelerator")
        return make(*given)

    def loaded(folder, **given):
        events.append(given["device"])
        return load(folder, **given)

    monkeypatch.setattr(loop, "accelerator", made)
    monkeypatch.setattr(source, "load_model", loaded)
    what = {"variant": "kangaroo", "exit_layer": 1} if module is kangaroo else {"heads": 1}
    module.train(**what, **arguments(world, tmp_path))
    assert events == ["accelerator", torch.device("cpu")]


def test_a_target_in_half_precision_stays_in_it_under_autocast(world, tmp_path):
    model = model_settings(world / "model", dtype="float16")
    losses = []
    for number, changes in enumerate(({}, {"model": model, "loop_settings": settings(mixed_precision="bf16")})):
        points = kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path / str(number), **changes))
        losses.append(points[-1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_one_process_trains_under_one_precision_after_another(world, tmp_path):
    for precision in ("bf16", "no"):
        chosen = settings(mixed_precision=precision)
        kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path / precision, loop_settings=chosen))
    losses = [json.loads((tmp_path / p / "training.json").read_text())["held_out"]["loss"] for p in ("bf16", "no")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_learning_rate():
    chosen = settings(lr=1.0, warmup_steps=4, decay="linear")
    assert [chosen.learning_rate(step, 8) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert settings(lr=1.0, warmup_steps=0, decay="none").learning_rate(7, 8) == 1.0
    chosen = settings(lr=1.0, warmup_steps=0, decay="cosine", decay_to=0.33)
    assert [chosen.learning_rate(step, 4) for step in (0, 2, 4)] == pytest.approx([1.0, 0.665, 0.33])


def test_read_back_is_what_was_trained(world, tmp_path):
    target = tiny_llama()
    adapter = Adapter(target.config, variant="kangaroo", dtype=torch.float32, device=target.device)
    kangaroo.initialise(adapter, target, 3)
    kangaroo.write(tmp_path, adapter, exit_layer=2, dtype=torch.float32)
    shapes = {name: tuple(t.shape) for name, t in adapter.published().items()}
    back = read_tensors(tmp_path, shapes, device=target.device, dtype=torch.float32)
    assert all(torch.equal(back[name], t) for name, t in adapter.published().items())
    assert loop.finished(tmp_path, {}) is None


def test_an_adapter_may_have_more_key_heads_than_its_target(world, tmp_path):
    changes = {"kv_heads": 4, "loss_vocab": 50, "keep_states": True}
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path, **changes))
    target = load_model(world / "model", device="cpu")
    assert target.config.num_kv_heads == 2
    assert Adapter.load(tmp_path, target, "kangaroo").config.num_kv_heads == 4


def test_an_adapter_goes_on_from_another(world, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, first, loss_vocab=50))
    begun = arguments(world, second, start_from=first, loop_settings=settings(lr=1e-12))
    kangaroo.train(variant="kangaroo", exit_layer=1, **begun)
    target = load_model(world / "model", device="cpu")
    before, after = (Adapter.load(folder, target, "kangaroo").published() for folder in (first, second))
    assert all(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in after.items())
    kangaroo.train(variant="kangaroo", exit_layer=1, **arguments(world, tmp_path / "learnt", start_from=first))
    learnt = Adapter.load(tmp_path / "learnt", target, "kangaroo").published()
    assert not any(torch.allclose(before[name], tensor, atol=1e-6) for name, tensor in learnt.items())
    other = arguments(world, tmp_path / "third", start_from=first, kv_heads=4)
    with pytest.raises(UserError, match=r"start_from=.*first: layers.0.self_attn.k_proj.weight is"):
        kangaroo.train(variant="kangaroo", exit_layer=1, **other)


def test_a_head_for_other_tokens_is_no_beginning(world, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    kangaroo.train(variant="kangaroo_head", exit_layer=1, **arguments(world, first, draft_vocab=9))
    offsets = torch.load(first / "pytorch_model.bin", weights_only=True)
    offsets["d2t"][-1] += 1
    torch.save(offsets, first / "pytorch_model.bin")
    begun = arguments(world, second, draft_vocab=9, start_from=first)
    with pytest.raises(UserError, match=r"start_from=.*first: its head is for other tokens than are most frequent"):
        kangaroo.train(variant="kangaroo_head", exit_layer=1, **begun)
