"""Verdicts: equal, near tie where the baseline itself was undecided, mismatch for all else."""

from __future__ import annotations

import pytest
import torch

from bench.fidelity import NEAR_TIE, compare
from bench.session import top_two_margin
from tests.tiny import tiny_llama


def margin_of(value: float):
    return lambda position: value


def test_equal_asks_for_no_margin() -> None:
    def never(position: int) -> float:
        raise AssertionError("no margin is needed")

    assert compare((1, 2, 3), (1, 2, 3), margin=never, tolerance=0.1).verdict == "equal"


@pytest.mark.parametrize(
    ("tokens", "gap", "verdict", "position"),
    [
        ((1, 9, 3), 0.05, "near_tie", 1),
        ((1, 9, 3), 0.1, "mismatch", 1),
        ((9, 2, 3), 5.0, "mismatch", 0),
        ((1, 2), 0.05, "near_tie", 2),  # the method stopped where the baseline went on
        ((1, 2), 0.5, "mismatch", 2),
        ((1, 2, 3, 4), 0.0, "mismatch", 3),  # the baseline had ended: nothing there was a tie
        ((), 0.5, "mismatch", 0),
    ],
)
def test_the_first_difference_decides(tokens, gap, verdict, position) -> None:
    fidelity = compare(tokens, (1, 2, 3), margin=margin_of(gap), tolerance=0.1)
    assert (fidelity.verdict, fidelity.position) == (verdict, position)


def test_an_empty_answer_is_never_equal_to_something() -> None:
    assert compare((), (1,), margin=margin_of(1.0), tolerance=0.1).verdict == "mismatch"


def test_the_margin_is_the_targets_own() -> None:
    model = tiny_llama()
    tokens = [4, 5, 6]
    with torch.inference_mode():
        hidden = model.run(model.embed(torch.tensor(tokens)), torch.arange(3), None, slice(0, None))
        best = model.head(hidden)[-1].float().sort(descending=True).values
    assert top_two_margin(model, tokens) == pytest.approx(float(best[0] - best[1]), abs=1e-5)


def test_no_tolerance_hides_a_wrong_token() -> None:
    """Logits of a model differ by units; rounding makes them differ by these at most."""
    assert NEAR_TIE == {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
