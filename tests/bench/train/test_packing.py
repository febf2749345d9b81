from __future__ import annotations

import numpy as np
import pytest

from bench.train import packing
from bench.train.conversations import Encoded


def made(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(0, 50, n).astype(np.int32), rng.random(n) < 0.5) for n in lengths]


def test_every_conversation_is_whole_in_one_row_and_padding_is_small():
    lengths = np.random.default_rng(0).integers(5, 300, 500).tolist()
    rows = packing.pack(lengths, 512, generator=np.random.default_rng(1))
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 512
    assert packing.padding(rows, lengths, 512) < 0.03


def test_a_row_sees_each_conversation_apart():
    row = packing.build_row(made([3, 2]))
    assert row.positions.tolist() == [0, 1, 2, 0, 1]
    assert row.lengths == (3, 2) and row.segments.tolist() == [0, 0, 0, 1, 1]


def test_predicting_positions_do_not_cross_conversations():
    first = Encoded(np.zeros(3, np.int32), np.array([False, True, True]))
    second = Encoded(np.zeros(3, np.int32), np.array([True, False, True]))
    assert packing.build_row([first, second]).predicting().tolist() == [0, 1, 4]
    assert packing.learnable(first) == 2 and packing.learnable(second) == 1


def test_plan_depends_on_seed_and_step_only():
    lengths = [30, 20, 40, 10] * 20
    plan = packing.plan(lengths, length=64, rows_per_step=4, epochs=2.5, seed=3)
    assert plan == packing.plan(lengths, length=64, rows_per_step=4, epochs=2.5, seed=3)
    assert plan != packing.plan(lengths, length=64, rows_per_step=4, epochs=2.5, seed=4)
    assert all(len(step) == 4 for step in plan.steps)
    halves = packing.plan(lengths, length=64, rows_per_step=2, epochs=2.5, seed=3)
    assert [r for s in halves.steps for r in s][: 4 * len(plan)] == [r for s in plan.steps for r in s]


def test_too_few_rows_for_a_step_repeat():
    plan = packing.plan([10], length=16, rows_per_step=4, epochs=1, seed=0)
    assert plan.steps == (((0,),) * 4,) and plan.padding == pytest.approx(6 / 16)


def test_a_conversation_goes_where_the_least_room_is_left() -> None:
    assert packing.pack([5, 6, 4], 10) == [[1, 2], [0]]


def test_no_conversation_is_lost_where_there_are_more_than_are_packed_together() -> None:
    count = 2 * packing.WINDOW + 1
    assert sorted(i for row in packing.pack([3] * count, 10) for i in row) == list(range(count))


@pytest.mark.parametrize(("epochs", "rows"), [(0.01, 1), (0.7, 6), (1.3, 10)])
def test_a_part_of_a_pass_is_rounded_to_rows_and_never_none(epochs: float, rows: int) -> None:
    assert len(packing.plan([10] * 8, length=10, rows_per_step=1, epochs=epochs, seed=0)) == rows


def test_a_plan_has_every_conversation_once_a_pass_each_in_another_order_and_a_part_of_the_last() -> None:
    plan = packing.plan([10] * 8, length=10, rows_per_step=1, epochs=2.5, seed=0)
    seen = [conversation for step in plan.steps for row in step for conversation in row]
    assert len(seen) == 20 and len({*seen[16:]}) == 4
    assert sorted(seen[:8]) == sorted(seen[8:16]) == list(range(8)) and seen[:8] != seen[8:16]


def test_rows_do_not_come_longest_first() -> None:
    lengths = list(range(1, 33))
    rows = packing.pack(lengths, 32, generator=np.random.default_rng(0))
    longest = [max(lengths[place] for place in row) for row in rows]
    assert sorted(place for row in rows for place in row) == list(range(32))
    assert longest != sorted(longest, reverse=True)
