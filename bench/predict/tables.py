"""What the command prints of a run: predictions by machine, and how well one half predicts the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.predict.costs import Costs, Draft, card_named, cards, of_speed, on_card, own, read_speed
from bench.predict.model import by_length, predict, read_side, steps_of
from bench.records import read_info
from bench.records.lines import Row
from bench.words import aligned
from methods.errors import UserError


class Recorded:
    """A run's turns and what decides its costs. Raises UserError for a folder that is no run."""

    def __init__(self, folder: Path) -> None:
        info = read_info(folder)
        if info is None:
            raise UserError(f"{folder}: no run.json in it, so it is not a run directory")
        self.info, self.draft = info, Draft.of(info)
        self.answers, self.baseline = read_side(folder, "answers"), read_side(folder, "baseline")

    def costs(self, cost: str, answers: Sequence[Row], baseline: Sequence[Row]) -> Costs:
        """The run's own, or with passes of bench.speed in their place."""
        measured = own(answers, baseline, self.draft)
        if not cost:
            return measured
        passes = read_speed(Path(cost), self.info.get("dtype"), self.info.get("threads"))
        return of_speed(passes, measured, baseline, self.draft)


def predictions(folder: Path, cost: str, card: str) -> str:
    """A line for each machine: speedup, its parts, and the best length of a chain."""
    run = Recorded(folder)
    machines: dict[str, Costs] = {}
    if cost or not card:
        machines |= {Path(cost).name if cost else "its own machine": run.costs(cost, run.answers, run.baseline)}
    notes = []
    if card or not cost:
        named = [card_named(card)] if card else cards().values()
        try:
            machines |= {one.name: on_card(one, run.info, run.draft) for one in named}
        except UserError as error:
            if card:
                raise
            notes.append(f"no cards: {error}")
    drafted, emitted = steps_of(run.answers)
    rows = [["prediction for", "speedup", "CR", "draft", "verify", "overhead", "best length", "speedup there"]]
    for name, costs in machines.items():
        found = predict(drafted, emitted, costs, run.draft)
        lengths = by_length(drafted, emitted, costs, run.draft)
        best = max(lengths, key=lambda g: lengths[g].speedup, default=None)
        ends = ["", ""] if best is None else [str(best), f"{lengths[best].speedup:.2f}"]
        parts = [f"{part:.0%}" for part in (found.draft, found.verify, found.overhead)]
        rows.append([name, f"{found.speedup:.2f}", f"{found.cr:.2f}", *parts, *ends])
    head = f"{run.info.get('model')} / {run.draft.method}: predicted, not measured; decoding without prefill"
    return "\n".join([head, *aligned(rows, left=1), *notes])


def held_out(folder: Path, cost: str) -> str:
    """Every second question of a subtask's predicts the others: by its own steps, and by theirs at its costs."""
    run = Recorded(folder)
    places: dict[str, dict[int | str, int]] = {}
    for row in run.answers:
        asked = places.setdefault(row.subtask, {})
        asked.setdefault(row.question_id, len(asked))
    rows = [["from half", "predicted", "measured", "error", "with the other's steps", "error"]]
    for half in (0, 1):
        mine, theirs = (
            [
                [row for row in side if places.get(row.subtask, {}).get(row.question_id, -1) % 2 == which]
                for side in (run.answers, run.baseline)
            ]
            for which in (half, 1 - half)
        )
        costs = run.costs(cost, *mine)
        found = [predict(*steps_of(answers), costs, run.draft).speedup for answers in (mine[0], theirs[0])]
        measured = _rate(theirs[0]) / _rate(theirs[1])
        errors = [f"{value / measured - 1:+.1%}" for value in found]
        rows.append([str(half + 1), f"{found[0]:.3f}", f"{measured:.3f}", errors[0], f"{found[1]:.3f}", errors[1]])
    return "\n".join([f"{run.info.get('model')} / {run.draft.method}: decode speedup", *aligned(rows, left=1)])


def _rate(rows: Sequence[Row]) -> float:
    """Tokens after the first by the seconds after prefill. Raises UserError where there is none."""
    seconds = sum(row.wall_s - (row.prefill_s or 0) for row in rows)
    tokens = sum(int(row.lengths.sum()) for row in rows)
    if not tokens or seconds <= 0:
        raise UserError("RUN: too few questions to hold a half out")
    return tokens / seconds
