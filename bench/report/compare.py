"""Two runs against each other, paired by question: `python -m bench.report --compare RUN_A RUN_B`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.metrics import Interval, geometric_mean, question_table, ratio_interval
from bench.records.frame import Run, asked_otherwise, ordered_subtasks, require_same_environment
from bench.records.identity import differences, flatten
from bench.words import aligned, plural, show, summary
from methods.errors import UserError

# Facts of run.json that may differ between runs of one machine, and that a reader wants to know of.
FACTS = ("git.commit", "git.dirty", "platform", "python", "extra_parameters", "datastore_bytes", "started", "command")


@dataclass(frozen=True)
class Comparison:
    """B over A on the questions both answered; a ratio over 1 means that B is faster."""

    subtask: str
    questions: int
    ratio: float | None
    interval: Interval | None  # None: too few questions, or no variation
    cr: tuple[float | None, float | None]

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.interval is None:
            return "the same" if self.ratio == 1 and self.questions > 1 else "too few questions to tell"
        if self.interval.low <= 1 <= self.interval.high:
            return "within the noise"
        return "B is faster" if self.interval.low > 1 else "B is slower"


def compare(a: Run, b: Run) -> tuple[str, list[Comparison]]:
    """(what is compared, one Comparison per subtask and overall).

    With a baseline on both sides it is the ratio of per-question speedups, so that drift of the machine between the
    two runs cancels; else of tokens/s. Raises UserError for different hardware, dtype, versions or model, or no
    shared question.
    """
    require_same_environment(a, b, "compare")
    if a.model != b.model:
        raise UserError(f"cannot compare {a.folders[0]} and {b.folders[0]}: model is {a.model} and {b.model}")
    left, right = question_table(a).add_suffix("_a"), question_table(b).add_suffix("_b")
    both = left.join(right, how="inner")
    if not len(both):
        raise UserError(f"cannot compare {a.folders[0]} and {b.folders[0]}: no question was answered in both")
    name = "tokens_per_s" if a.baseline is None or b.baseline is None else "speedup"
    parts = [(s, both[both.subtask_a == s]) for s in ordered_subtasks(both.subtask_a.unique())] + [("overall", both)]
    return name, [_one(subtask, rows, name) for subtask, rows in parts]


def _one(subtask: str, rows: pd.DataFrame, name: str) -> Comparison:
    ratios = (rows[f"{name}_b"] / rows[f"{name}_a"]).to_numpy()
    known = ratios[np.isfinite(ratios)]
    ratio = geometric_mean(known) if len(known) else None
    crs = tuple(_pooled_cr(rows, side) for side in ("a", "b"))
    return Comparison(subtask, len(rows), ratio, ratio_interval(known), (crs[0], crs[1]))


def _pooled_cr(rows: pd.DataFrame, side: str) -> float | None:
    steps = rows[f"steps_{side}"].sum()
    return float(rows[f"emitted_{side}"].sum() / steps) if steps > 0 else None


def what_differs(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Config keys and facts of run.json on which the runs differ."""
    config = [(f"config.{key}", x, y) for key, x, y in differences(flatten(a.config), flatten(b.config))]
    facts = [{key: value for key, value in flatten(run.info).items() if key in FACTS} for run in (a, b)]
    hashes = [flatten({"checkpoint_sha256": run.info.get("checkpoint_sha256") or {}}) for run in (a, b)]
    return config + differences(facts[0], facts[1]) + differences(hashes[0], hashes[1])


def format_comparison(a: Run, b: Run) -> str:
    """The comparison as plain text for the terminal. Raises UserError as `compare` does."""
    name, rows = compare(a, b)
    what = "speedup over its own baseline" if name == "speedup" else "tokens/s (a baseline is missing)"
    lines = [f"A: {a.model} / {a.method}  {a.folders[0]}", f"B: {b.model} / {b.method}  {b.folders[0]}",
             f"B over A, {what}: geometric mean over shared questions, 95 % BCa interval", ""]  # fmt: skip
    table = [["subtask", "questions", "B / A", "95 % interval", "CR of A", "CR of B", ""]]
    for row in rows:
        bounds = f"{row.interval.low:.3f} to {row.interval.high:.3f}" if row.interval else ""
        crs = [show(value) for value in row.cr]
        table.append([row.subtask, str(row.questions), show(row.ratio, 3), bounds, *crs, row.verdict])
    lines += [*aligned(table, left=len(table[0])), "", f"Overall: {_plain(rows[-1])}"]
    left_out = len({*a.answers.question_id, *b.answers.question_id}) - rows[-1].questions
    if left_out:
        lines.append(f"{plural('question', left_out)} not answered by both, left out")
    if other := asked_otherwise([a, b]):
        lines.append(f"{plural('question', other)} asked with another prompt: another question file or chat template")
    for name, run in (("A", a), ("B", b)):
        lines += ["", *_caveats(name, run)]
    differing = what_differs(a, b)
    lines += ["", "What differs:" if differing else "Config, commit, environment and checkpoints are the same."]
    return "\n".join(lines + [f"  {key}: {left!r} | {right!r}" for key, left, right in differing])


def _caveats(name: str, run: Run) -> list[str]:
    """Whether a run's answers are its baseline's, and its warnings of the whole and of the overall figures."""
    found = summary(run)
    counts = [
        f"{found['overall'][key]} {key.replace('_', ' ')}" for key in ("equal", "near_tie", "mismatch", "unchecked")
    ]
    warnings = [w["text"] for w in found["warnings"] if w["scope"] in ("run", "overall")]
    return [f"{name}, turns against its baseline's: {', '.join(counts)}", *(f"  ! {text}" for text in warnings)]


def _plain(row: Comparison) -> str:
    if row.verdict == "the same":
        return "A and B are equally fast on every question."
    if row.ratio is None or row.interval is None:
        return "too few questions to tell A and B apart."
    percent = 100 * (row.ratio - 1)
    if row.verdict == "within the noise":
        return f"the difference of {percent:+.1f} % is within the noise; nothing shows that A and B differ in speed."
    return f"B is {abs(percent):.1f} % {'faster' if percent > 0 else 'slower'} than A, and the interval excludes 1."
