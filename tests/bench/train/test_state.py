"""A training state that is broken, or holds something else: one line with the remedy."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.train import kangaroo, state
from bench.train.log import Point
from bench.train.loop import Run
from bench.train.state import State
from methods.errors import UserError
from tests.bench.train.chat_model import basics, interrupt_at, settings

IDENTITY = {"method": "kangaroo", "seed": 0}
POINT = Point(step=3, part="train", tokens=9, loss=1.0, agreement=0.5, acceptance=0.5, learning_rate=0.1)
STATE = State(
    identity=IDENTITY,
    step=3,
    tokens=9,
    window=[0.0] * 4,
    points=[POINT],
    module={"norm.weight": torch.ones(4)},
    optimizer={"state": {}, "param_groups": []},
    random=[torch.get_rng_state()],
)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        state.load(folder, IDENTITY)
    message = str(caught.value)
    assert "\n" not in message and "training_state.pt" in message and message.endswith("; resume=false starts over")
    return message


def test_a_state_comes_back(tmp_path: Path) -> None:
    state.save(tmp_path, STATE)
    found = state.load(tmp_path, IDENTITY)
    assert found is not None and (found.step, found.points) == (3, [POINT])
    assert torch.equal(found.module["norm.weight"], STATE.module["norm.weight"])


def test_a_flipped_byte_ends_in_a_state_or_in_one_line(tmp_path: Path) -> None:
    state.save(tmp_path, replace(STATE, random=[]))
    file, dice, refused = tmp_path / state.FILE, random.Random(0), 0
    whole = file.read_bytes()
    for _ in range(200):
        torn = bytearray(whole)
        torn[dice.randrange(len(whole))] = dice.choice((0xE9, dice.randrange(256)))
        file.write_bytes(torn)
        try:
            state.load(tmp_path, IDENTITY)
        except state.AnotherRun:
            pass  # the byte was one of the identity
        except UserError as error:
            assert "\n" not in str(error) and str(file) in str(error)
            refused += 1
    assert refused > 40


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path: Path) -> None:
    state.save(tmp_path, STATE)
    file = tmp_path / state.FILE
    whole, ones = file.read_bytes(), STATE.module["norm.weight"].numpy().tobytes()
    assert whole.count(ones) == 1
    file.write_bytes(whole.replace(ones, ones[:-1] + b"\x3e"))
    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("step", [-1, 10**6])
def test_a_step_that_the_run_does_not_have_is_refused(step: int, world: Path, tmp_path: Path, monkeypatch) -> None:
    given: dict[str, Any] = {"variant": "kangaroo", "exit_layer": 1, "draft_vocab": None, **basics(world, tmp_path)}
    given["loop_settings"] = settings(checkpoint_every=1)
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        kangaroo.train(**given)
    content = torch.load(tmp_path / state.FILE, weights_only=True)
    torch.save({**content, "step": step}, tmp_path / state.FILE)
    with pytest.raises(UserError, match=rf"training_state\.pt: .*step {step} of \d+\); resume=false starts over$"):
        kangaroo.train(**given)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        3,
        {},
        {"points": 3},
        {**vars(STATE), "points": [3]},
        {**vars(STATE), "points": [], "more": 1},
        {**vars(STATE), "points": [], "identity": 7},
        {**vars(STATE), "points": [], "step": None},
        {**vars(STATE), "points": [], "tokens": [9]},
        {**vars(STATE), "points": [], "window": ["0"] * 4},
        {**vars(STATE), "points": [], "module": {3: torch.ones(2)}},
        {**vars(STATE), "points": [], "module": {"norm.weight": torch.eye(2).to_sparse()}},
    ],
    ids=range(12),
)
def test_a_file_of_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / state.FILE)
    refusal(tmp_path)


def test_what_does_not_fit_when_it_is_put_to_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable as a training state"), state.readable(tmp_path):
        torch.nn.Linear(2, 2).load_state_dict(STATE.module)


def test_an_older_training_goes_on_and_stays_silent_of_what_it_did_not_record(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given = {
        "variant": "kangaroo",
        "exit_layer": 1,
        **basics(world, tmp_path, draft_vocab=None, loop_settings=settings(epochs=2)),
    }

    def stop(run: Any) -> None:
        save(run)
        raise KeyboardInterrupt

    save = Run.save
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            kangaroo.train(**given)
    file = tmp_path / "training_state.pt"
    older = torch.load(file, weights_only=True)
    for key in ("dtype", "save_dtype", "held_out"):
        del older["identity"][key]
    torch.save(older, file)
    kangaroo.train(**given)
    assert "is of before dtype, held_out, save_dtype were recorded" in capsys.readouterr().out
    assert json.loads((tmp_path / "training.json").read_text())["identity"].keys().isdisjoint(state.LATER)


def test_kept_states_are_of_one_dtype(world: Path, tmp_path: Path) -> None:
    given = basics(world, tmp_path, draft_vocab=None, keep_states=True)
    for dtype in ("float32", "bfloat16"):
        given |= {"model": replace(given["model"], dtype=dtype), "resume": False}
        kangaroo.train(variant="kangaroo", exit_layer=1, **given)
    names = sorted(folder.name.rpartition("-")[2] for folder in (tmp_path / "states").iterdir())
    assert names == ["bfloat16", "float32"]
