"""The page's chart of predictions says what python -m bench.predict says of the same run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.places import ROOT
from bench.predict.costs import cards, on_card
from bench.predict.model import predict, steps_of
from bench.predict.tables import Recorded
from bench.report.collect import collect
from bench.report.predicted import on_cards


@pytest.mark.parametrize("method", ["rest", "kangaroo"])
def test_the_page_predicts_from_every_step(method: str, tmp_path: Path) -> None:
    """REST verifies 1 to 65 rows: on some cards short steps are bound by memory and long ones are not."""
    shutil.copytree(ROOT / "results/example/runs/joey" / method, tmp_path / "runs/joey" / method)
    (group,) = collect(tmp_path).groups
    (entry,) = group.entries
    run = Recorded(entry.run.folders[0])
    for subtask in ("overall", "qa"):
        steps = steps_of([row for row in run.answers if subtask in ("overall", row.subtask)])
        wanted = {
            name: predict(*steps, on_card(card, run.info, run.draft), run.draft) for name, card in cards().items()
        }
        found = on_cards(entry, subtask)
        assert {name: one.speedup for name, one in found.items()} == {
            name: pytest.approx(one.speedup) for name, one in wanted.items()
        }
