"""joey's base training: it goes on where it stopped, each seed from its own checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from bench.joey import base
from bench.joey.__main__ import ASSETS
from bench.joey.base import LOG_FIELDS, Recipe, Trainer, train_base
from methods.digest import file_sha256

RECIPE = Recipe(
    steps=10, grow_at=4, shallow_layers=2, rows=2, length=16, decay_steps=3, eval_rows=2, checkpoint_every_s=0.0
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model of joey's form whose checkpoints are quickly written."""
    full, threads = base.model_config, torch.get_num_threads()

    def config(eos: int, pad: int, layers: int = 4) -> LlamaConfig:
        made = full(eos, pad, layers)
        made.update({"hidden_size": 32, "intermediate_size": 32, "head_dim": 8})
        return made

    monkeypatch.setattr(base, "model_config", config)
    yield
    torch.set_num_threads(threads)


def trained(folder: Path, seed: int) -> str:
    """The sum of the weights of a training in `folder`."""
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / name, out)
    train_base(out, folder, seed, RECIPE)
    return file_sha256(out / "model.safetensors")


def test_an_interrupted_training_ends_as_another_does_and_no_seed_goes_on_from_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, work = trained(tmp_path / "whole", 5), Trainer.step

    def step(self: Trainer, rows: torch.Tensor, step: int) -> float:
        if step == 7:
            raise KeyboardInterrupt
        return work(self, rows, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "step", step)
        trained(tmp_path / "parted", 5)
    assert trained(tmp_path / "parted", 6) != whole
    assert trained(tmp_path / "parted", 5) == whole
    head, row = (tmp_path / "parted" / "out" / "training" / "base_loss.csv").read_text().splitlines()
    assert head == ",".join(LOG_FIELDS)
    assert row.startswith("10,320,") and "" not in row.split(",")
