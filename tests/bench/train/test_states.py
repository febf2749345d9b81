"""A target's states are kept on disk once, and read as they were but for half precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.train.conversations import Encoded
from bench.train.kangaroo import Distillation, initialise
from bench.train.packing import Row, build_row
from bench.train.states import kept_states
from methods.adapters import Adapter
from methods.engine.llama import Llama
from methods.engine.unit import Rows
from tests.tiny import tiny_llama


def conversation(seed: int, length: int) -> Encoded:
    drawn = np.random.default_rng(seed)
    return Encoded(drawn.integers(0, 128, length, dtype=np.int32), drawn.random(length) < 0.7)


def test_states_are_computed_once_for_each_conversation_however_rows_are_packed(tmp_path: Path) -> None:
    seen: list[int] = []

    def compute(row: Row) -> tuple[Tensor, Tensor]:
        seen.append(len(row.tokens))
        one = row.tokens[:, None].float() + torch.arange(3) / 7
        return one, -one

    kept = partial(kept_states, tmp_path / "states")
    first, second, third = (conversation(seed, length) for seed, length in ((1, 5), (2, 9), (3, 5)))
    kept(build_row([first, second]), compute)
    kept(build_row([third]), compute)
    again = build_row([third, first])
    for states, wanted in zip(kept(again, compute), compute(again), strict=True):
        torch.testing.assert_close(states, wanted, rtol=1e-3, atol=0)
    assert seen == [14, 5, 10]  # the last by this test


def test_a_row_says_the_same_whether_it_was_kept_or_is_met_first(tmp_path: Path) -> None:
    """Else a training that was stopped, and meets rows again, would end with other weights."""
    row, kept = build_row([conversation(1, 5), conversation(2, 9)]), partial(kept_states, tmp_path / "states")
    states = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
    large = states * 10
    large[7] = 1e6  # of the second conversation, which half precision cannot hold
    first = [kept(row, lambda _: (states, large)) for _ in range(2)]
    for one, two in zip(*first, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(first[0][0][:5], states[:5].half().float()) and torch.equal(first[0][1][5:], large[5:])
    assert len([*tmp_path.rglob("*.npy")]) == 1


def test_what_was_kept_stays_when_its_conversation_is_computed_again_beside_another(tmp_path: Path) -> None:
    kept, first = partial(kept_states, tmp_path / "states"), conversation(1, 5)
    kept(build_row([first]), lambda _: (torch.ones(5, 3), torch.ones(5, 3)))
    beside, twos = build_row([conversation(2, 9), first]), torch.full((14, 3), 2.0)
    for _ in range(2):
        assert kept(beside, lambda _: (twos, twos))[0][:, 0].tolist() == [2.0] * 9 + [1.0] * 5


def test_states_of_a_target_in_bfloat16_come_in_float32(tmp_path: Path) -> None:
    row, states = build_row([conversation(1, 5)]), torch.ones(5, 3, dtype=torch.bfloat16)
    for found in kept_states(tmp_path, row, lambda _: (states, 2 * states)):
        assert found.dtype == torch.float32


BROKEN: dict[str, bytes | np.ndarray] = {
    "empty": b"",
    "begun": b"\x93NUMPY",
    "text": b"no array",
    "header": b"\x93NUMPY\x01\x00\x0c\x00{'descr': (\n",
    "endless": b"\x93NUMPY\x01\x00\x48\x00{'descr': '<f2', 'fortran_order': False, 'shape': (2, 5, 9999999999999)}",
    "zip": b"PK\x03\x04 and no archive",
    "short": np.ones((2, 4, 3), np.float16),
    "one place": np.ones((1, 5, 3), np.float16),
    "no states": np.ones((2, 5), np.float16),
    "float32": np.ones((2, 5, 3), np.float32),
    "object": np.array([{}]),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_on_the_disk_is_computed_and_kept_anew(content: bytes | np.ndarray, tmp_path: Path) -> None:
    kept, row = partial(kept_states, tmp_path / "states"), build_row([conversation(1, 5)])
    states = torch.ones(5, 3)
    kept(row, lambda _: (states, states))
    (file,) = tmp_path.rglob("*.npy")
    whole = file.read_bytes()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)
    assert torch.equal(kept(row, lambda _: (states, states))[0], states)
    assert file.read_bytes() == whole


@pytest.mark.filterwarnings("error")
def test_what_half_precision_cannot_hold_is_not_kept(tmp_path: Path) -> None:
    kept = partial(kept_states, tmp_path / "states")
    row = build_row([conversation(1, 5)])
    huge = torch.full((5, 3), 1e9)
    for _ in range(2):
        assert torch.equal(kept(row, lambda _: (huge, huge))[0], huge)
    assert not list(tmp_path.rglob("*.npy"))


def test_an_adapter_learns_the_same_from_kept_states(tmp_path: Path) -> None:
    target = tiny_llama()
    adapter = Adapter(target.config, variant="kangaroo", dtype=torch.float32, device=target.device)
    initialise(adapter, target, 0)
    row = build_row([conversation(1, 30), conversation(2, 20)])
    plain = Distillation(target, adapter, exit_layer=2, chunk=16)
    keeping = Distillation(target, adapter, exit_layer=2, chunk=16, kept=tmp_path)
    losses = [plain(row).loss.item(), keeping(row).loss.item(), keeping(row).loss.item()]
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=1e-3)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_loss_over_frequent_tokens_is_the_whole_one_where_all_are_and_evaluation_always_is() -> None:
    target = tiny_llama()
    adapter = Adapter(target.config, variant="kangaroo", dtype=torch.float32, device=target.device)
    initialise(adapter, target, 0)
    row = build_row([conversation(1, 30), conversation(2, 20)])
    whole = Distillation(target, adapter, exit_layer=2, chunk=16)(row)
    few = torch.arange(0, 128, 2)
    for frequent, positions in (
        (torch.arange(128), whole.positions),
        (few, (row.tokens[row.predicting() + 1] % 2 == 0).sum()),
    ):
        limited = Distillation(target, adapter, exit_layer=2, chunk=16, frequent=frequent)
        assert limited(row).positions == positions
        with torch.no_grad():
            torch.testing.assert_close(limited(row).detached(), whole.detached())
    by_hand = _renormalised(target, adapter, row, few)
    assert limited(row).loss.item() == pytest.approx(by_hand, rel=1e-4)


def _renormalised(target: Llama, adapter: Adapter, row: Row, few: Tensor) -> float:
    chosen = torch.tensor([i for i in row.predicting().tolist() if row.tokens[i + 1] in few])
    exits, final = Distillation(target, adapter, exit_layer=2, chunk=16).states(row)
    drafted, head = adapter(exits, target.rope, Rows(row.positions, sees=row.lengths)), target.weights.lm_head.weight
    wanted = (final @ head.T)[chosen][:, few].softmax(-1)
    return -(wanted * (drafted @ head.T)[chosen][:, few].log_softmax(-1)).sum().item()
