"""What the command prints of runs: predictions by machine, and how well one half of the questions predicts the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.predict.costs import Costs, Draft, Measured, Times, card_named, cards, on_card, own
from bench.predict.model import by_length, predict, read_side, steps_of
from bench.records.directory import read_info
from bench.records.identity import environment, file_keys
from bench.records.lines import Row
from bench.words import aligned
from methods.errors import UserError

WANTED = 0.07  # an error of a held-out half that is small enough
CUTS = 60  # of the questions into halves, drawn at random


class Recorded:
    """A run's turns and what decides its costs; cost: a file of bench.speed's, or empty. Raises UserError."""

    def __init__(self, folder: Path, cost: str = "") -> None:
        info = read_info(folder)
        if info is None:
            raise UserError(f"{folder}: no run.json in it, so it is not a run directory")
        self.info, self.draft = info, Draft.of(info)
        self.answers, self.baseline = read_side(folder, "answers"), read_side(folder, "baseline")
        self.name = f"{info.get('model')} / {self.draft.method}"
        self.measured: Measured | None = None
        if cost:
            wanted = str(info.get("model")), self.draft.method, info.get("dtype"), info.get("threads")
            self.measured = Measured.read(Path(cost), *wanted)
            self._same_settings(cost, self.measured)

    def _same_settings(self, cost: str, measured: Measured) -> None:
        """Raises UserError unless the turns are of this method as it was set here, files aside."""
        settings, files = (self.info.get("config") or {}).get("method") or {}, file_keys(self.info)
        for key in settings.keys() & measured.settings.keys():
            here, there = settings[key], measured.settings[key]
            if here != there and f"method.{key}" not in files and not isinstance(here, dict):
                raise UserError(f"cost={cost}: measured with method.{key}={there}; RUN has {here}")

    def same_machine(self, cost: str) -> None:
        """Raises UserError where the costs are another machine's or engine's than the turns."""
        own = environment(self.info)
        for key, there in (self.measured.machine if self.measured else {}).items():
            if (here := own.get(key)) != there and None not in (here, there):
                raise UserError(f"cost={cost}: measured with {key} {there}; RUN has {here}, and held_out=true compares")

    def costs(self, answers: Sequence[Row], baseline: Sequence[Row]) -> Costs:
        """The run's own, or what bench.speed measured in their place."""
        sides = Times.of(answers), Times.of(baseline)
        return own(*sides, self.draft) if self.measured is None else self.measured.costs(self.draft, *sides)

    def notes(self) -> list[str]:
        """What the costs do not know."""
        if self.measured is None:
            return []
        here, there = self.info.get("threads"), self.measured.machine.get("threads")
        found = [f"{self.name}: measured with threads={here}, cost=FILE with threads={there}"] if here != there else []
        found += [f"{self.name}, cost=FILE: {note}" for note in self.measured.notes]
        scaled = f"{self.name}: no turns of it in cost=FILE, so its draft and overhead are scaled by vanilla's pass"
        return found if self.measured.turns else [*found, scaled]


def predictions(folders: Sequence[Path], cost: str, card: str) -> str:
    """A line for each run and machine: speedup, its parts, and the best length of a chain; then the best tree."""
    rows = [["run", "machine", "speedup", "CR", "draft", "verify", "overhead", "best length", "speedup there"]]
    notes, trees = list[str](), dict[tuple[str, str], list[tuple[float, float]]]()
    for folder in folders:
        run = Recorded(folder, cost)
        notes += run.notes()
        drafted, emitted = steps_of(run.answers)
        for machine, costs in _machines(run, cost, card, notes).items():
            found = predict(drafted, emitted, costs, run.draft)
            lengths = by_length(drafted, emitted, costs, run.draft)
            best = max(lengths, key=lambda g: lengths[g].speedup, default=None)
            ends = ["", ""] if best is None else [str(best), f"{lengths[best].speedup:.2f}"]
            parts = [f"{part:.0%}" for part in (found.draft, found.verify, found.overhead)]
            rows.append([run.name, machine, f"{found.speedup:.2f}", f"{found.cr:.2f}", *parts, *ends])
            if best is None:
                trees.setdefault((run.name, machine), []).append((found.speedup, float(drafted.mean())))
    head = "predicted, not measured; decoding without prefill"
    return "\n".join([head, *aligned(rows, left=2), *dict.fromkeys(notes), *_best_trees(trees)])


def _machines(run: Recorded, cost: str, card: str, notes: list[str]) -> dict[str, Costs]:
    found: dict[str, Costs] = {}
    if cost or not card:
        found[Path(cost).name if cost else "its own machine"] = run.costs(run.answers, run.baseline)
    if card or not cost:
        for one in [card_named(card)] if card else cards().values():
            try:
                found[one.name] = on_card(one, run.info, run.draft)
            except UserError as error:
                if card:
                    raise
                notes.append(f"{run.name}, not predicted: {error}")
    return found


def _best_trees(found: dict[tuple[str, str], list[tuple[float, float]]]) -> list[str]:
    """Of several runs of a method, the candidates a step of the fastest, on each machine."""
    lines, single = [], False
    for (name, machine), runs in found.items():
        speedup, size = max(runs)
        others = ", ".join(f"{other:.0f}" for other in sorted(size for _, size in runs))
        single |= len(runs) == 1
        if len(runs) > 1:
            lines.append(f"{name}, {machine}: of {others} candidates a step the best is {size:.0f}, with {speedup:.2f}")
    why = "a step records no order of a tree's candidates, so a smaller tree is unknown: give runs of several budgets"
    return [*lines, *([why] if single else [])]


def held_out(folders: Sequence[Path], cost: str) -> str:
    """Every second question of a subtask's predicts the others: by its own steps, and by theirs at its costs.

    The first error is of steps and costs. Few questions draw steps that differ by half; the second has costs alone.
    That cut is one of many: of random ones it is said how many have both halves within the limit.
    """
    rows = [["run", "from half", "predicted", "measured", "error", "with the other's steps", "error"]]
    notes, errors = list[str](), (list[tuple[float, str]](), list[tuple[float, str]]())
    cuts = list[str]()
    for folder in folders:
        run = Recorded(folder, cost)
        run.same_machine(cost)
        notes += run.notes()
        halves = _halves(run, lambda count: [place % 2 for place in range(count)])
        for half, (own_steps, measured, other_steps) in enumerate(halves):
            found, off = (own_steps, other_steps), [value / measured - 1 for value in (own_steps, other_steps)]
            for kind, error in zip(errors, off, strict=True):
                kind.append((abs(error), run.name))
            shown = [f"{found[0]:.3f}", f"{measured:.3f}", f"{off[0]:+.1%}", f"{found[1]:.3f}", f"{off[1]:+.1%}"]
            rows.append([run.name, str(half + 1), *shown])
        cuts.append(_random_cuts(run))
    verdicts = [
        f"within {WANTED:.0%}: {_hits(errors[0])}",
        f"with the other's steps, so by costs alone: {_hits(errors[1])}",
    ]
    return "\n".join(["decode speedup", *aligned(rows, left=1), *verdicts, *cuts, *dict.fromkeys(notes)])


def _halves(run: Recorded, cut: Callable[[int], Sequence[int]]) -> list[tuple[float, float, float]]:
    """Of each half: the speedup that it predicts for the other, what was measured there, and by the other's steps.

    cut: a number of questions of a subtask -> the half, 0 or 1, of each.
    """
    asked: dict[str, dict[int | str, None]] = {}  # in the order of the run
    for row in run.answers:
        asked.setdefault(row.subtask, {})[row.question_id] = None
    half = {
        (task, name): which for task, names in asked.items() for name, which in zip(names, cut(len(names)), strict=True)
    }
    parts = [
        [[row for row in side if half.get((row.subtask, row.question_id)) == which] for which in (0, 1)]
        for side in (run.answers, run.baseline)
    ]
    found = []
    for which in (0, 1):
        (mine, theirs), (my_baseline, their_baseline) = ((side[which], side[1 - which]) for side in parts)
        costs = run.costs(mine, my_baseline)
        own_steps, other_steps = (predict(*steps_of(rows), costs, run.draft).speedup for rows in (mine, theirs))
        found.append((own_steps, _rate(theirs) / _rate(their_baseline), other_steps))
    return found


def _random_cuts(run: Recorded) -> str:
    """How many of CUTS random cuts of every subtask's questions have both halves within the limit."""
    drawn = np.random.default_rng(0)
    worst = [
        max(
            abs(predicted / measured - 1)
            for predicted, measured, _ in _halves(run, lambda count: (drawn.permutation(count) % 2).tolist())
        )
        for _ in range(CUTS)
    ]
    hit = sum(error <= WANTED for error in worst)
    middle = f"the worse half is {np.median(worst):.1%} off, in the middle of them"
    return f"{run.name}: {hit} of {CUTS} random cuts within {WANTED:.0%}; {middle}"


def _hits(errors: Sequence[tuple[float, str]]) -> str:
    """How many are small enough, and whose is the largest."""
    hit, (largest, name) = sum(error <= WANTED for error, _ in errors), max(errors)
    return f"{hit} of {len(errors)} halves; the largest error is {largest:.1%}, of {name}"


def _rate(rows: Sequence[Row]) -> float:
    """Tokens after the first by the seconds after prefill. Raises UserError where there is none."""
    seconds = sum(row.wall_s - (row.prefill_s or 0) for row in rows)
    tokens = sum(int(row.lengths.sum()) for row in rows)
    if not tokens or seconds <= 0:
        raise UserError("RUN: too few questions to hold a half out")
    return tokens / seconds
