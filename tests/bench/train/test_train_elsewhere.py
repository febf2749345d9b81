"""Every training on a device that is not the CPU: the CPU's losses and weights, and no tensor astray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from bench.settings import Text
from bench.train import eagle, eagle3, hydra, kangaroo, medusa, sps
from bench.train.loop import Run
from bench.train.packing import Row
from tests.bench.train.chat_model import basics, interrupt_at, settings
from tests.second_device import Strayed, register, waits

register()  # at collection: autograd counts the devices at a process's first backward
STEP = Run.train_step
FEATURES = {"bias": True, "feature": 1.0, "token": 0.1, "noise": 0.2}
SHAPE = {"hidden": 16, "layers": 2, "heads": 2, "feed_forward": 4, "tied": False}
TRAININGS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "kangaroo": (kangaroo.train, {"variant": "kangaroo", "exit_layer": 1, "draft_vocab": None}),
    "kangaroo_head": (kangaroo.train, {"variant": "kangaroo_head", "exit_layer": 1, "draft_vocab": 20}),
    "kangaroo_kept": (
        kangaroo.train,
        {"variant": "kangaroo", "exit_layer": 1, "draft_vocab": None, "keep_states": True},
    ),
    "medusa": (medusa.train, {"heads": 2, "draft_vocab": None}),
    "medusa_vocab": (medusa.train, {"heads": 2, "draft_vocab": 20}),
    "hydra": (hydra.train, {"architecture": "prefix-mlp", "heads": 2, "layers": 2, "dropout": 0.2}),
    "eagle": (eagle.train, FEATURES | {"noise": 0.0}),
    "eagle_noise": (eagle.train, FEATURES),
    "eagle3": (eagle3.train, {"unrolls": 3, "draft_vocab": 40}),
    "sps": (sps.train, {**SHAPE, "learns": "text", "start_from": None}),
    "sps_distribution": (sps.train, {**SHAPE, "learns": "distribution", "start_from": None}),
}


def arguments(world: Path, output: Path) -> dict[str, Any]:
    """For every training: four steps, with one state saved halfway."""
    data = Text(path=str(world / "data.json"), limit=40, held_out=3)
    return basics(world, output, data=data, loop_settings=settings(epochs=0.5, checkpoint_every=2))


def elsewhere(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """accelerate's view is that this device is the process's own."""
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "device", device)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training(
    name: str, world: Path, second: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, own = TRAININGS[name]
    wanted = train(**arguments(world, tmp_path / "cpu"), **own)
    elsewhere(monkeypatch, second)
    interrupt_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(**arguments(world, tmp_path / "there"), **own)
    monkeypatch.setattr(Run, "train_step", STEP)
    found = train(**arguments(world, tmp_path / "there"), **own)  # goes on from the saved state
    if name != "eagle_noise":  # what is drawn is drawn on the device
        for here, there in zip(wanted, found, strict=True):
            assert (there.part, there.step, there.loss) == (here.part, here.step, pytest.approx(here.loss, rel=1e-4))
    assert {file.name for file in (tmp_path / "there").iterdir()} == {
        file.name for file in (tmp_path / "cpu").iterdir()
    }
    assert waits, "nothing was done there"


def test_a_batch_that_strays_is_caught(
    world: Path, second: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, own = TRAININGS["kangaroo"]
    elsewhere(monkeypatch, second)
    monkeypatch.setattr(Row, "to", lambda row, device: row)
    with pytest.raises(Strayed):
        train(**arguments(world, tmp_path), **own)
