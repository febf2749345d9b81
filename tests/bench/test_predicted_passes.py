"""bench.predict: a pass is no cheaper than vanilla's, however the recorded turns lie."""

from __future__ import annotations

import numpy as np
import pytest

from bench.places import ROOT
from bench.predict.costs import Draft, Times, own
from bench.predict.model import by_length, steps_of
from bench.predict.tables import Recorded

VANILLA = 0.010  # seconds of a step


@pytest.mark.parametrize("verify", [[0.14, 0.20, 0.43], [0.08, 0.09, 0.12]], ids=["slower", "faster"])
def test_a_pass_of_one_row_takes_at_least_what_vanillas_does(verify: list[float]) -> None:
    """Turns that differ little in rows, and one was slow: the line through them leads below vanilla's pass."""
    drafted = [np.array(steps) for steps in ([3] * 10, [4] * 10, [5] * 10)]
    ran = Times(drafted, *np.array([[1.0] * 3, [0.0] * 3, verify, 1.0 + np.array(verify)]))
    plain = Times([np.zeros(30, dtype=int)], *np.array([[1.0], [0.0], [30 * VANILLA], [1 + 30 * VANILLA]]))
    draft, steps = Draft("pld", "pld", True, 1.0, 0), np.concatenate(drafted)
    costs = own(ran, plain, draft)
    assert costs.verify(draft.rows(steps)).sum() == pytest.approx(sum(verify)), "no time is lost"
    least = min(VANILLA, sum(verify) / 30)  # of a run that was faster all along, all passes are alike
    assert costs.verify(np.array([1]))[0] == pytest.approx(least)
    for found in by_length(steps, steps + 1, costs, draft).values():
        assert found.speedup <= found.cr * VANILLA / least + 1e-9


@pytest.mark.parametrize("method", ["pld", "sam"])
def test_no_length_is_predicted_to_gain_more_than_it_emits(method: str) -> None:
    (folder,) = (ROOT / "results" / "smollm2-135m" / "runs" / "smollm2-135m" / method).iterdir()
    run = Recorded(folder)
    lengths = by_length(*steps_of(run.answers), run.costs(run.answers, run.baseline), run.draft)
    assert len(lengths) > 5 and all(found.speedup <= found.cr for found in lengths.values())
