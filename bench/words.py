"""What figures are called and what they mean, in words: warnings, and the table on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bench.gauge import NOT_THROTTLED
from bench.metrics import summarise
from bench.records.frame import CTAR_POSITIONS, Run

SPREAD_LIMIT = 0.10
OVERHEAD_LIMIT = 0.10
MEMORY_LIMIT = 0.50  # a baseline below this share of what memory gives is slow, and a speedup over it too large
# Below this many questions an interval can be too narrow, where a few questions gain much more than the others.
FEW_QUESTIONS = 20


def summary(run: Run) -> dict[str, Any]:
    """The content of metrics.json: every figure, and what a reader must be warned of. JSON-able."""
    found = summarise(run)
    return found | {"warnings": run_warnings(run, found) + figure_warnings(found)}


def run_warnings(run: Run, found: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader must know of the run as a whole."""
    texts = []
    if found["demonstration"]:
        texts.append("demonstration on the built-in model: not comparable with published numbers")
    if not len(run.answers):
        texts.append("no answers recorded yet")
    elif run.baseline is None:
        texts.append("no baseline was run: speedups and step cost are missing")
    if limit := run.config.get("limit"):
        most = run.config.get("max_new_tokens")
        first = "question" if limit == 1 else f"{limit} questions"
        texts.append(f"a sample: the first {first} of each subtask, at most {most} new tokens a turn")
    for status in ("failed", "skipped"):
        if count := found[f"{status}_questions"]:
            texts.append(f"{plural('question', count)} {status} and left out of both sides")
    texts += _incomplete_repeats(run)
    if count := found["unpaired"]:
        texts.append(f"{plural('answer', count)} without a partner in the baseline that was asked the same, left out")
    if count := found["doubtful_drafts"]:
        texts.append(f"{plural('draft', count)} with a confidence that is not a number: are the draft's weights whole?")
    if len(run.answers) and found["overall"]["repeats"] == 1:
        texts.append("one repeat: the spread over repeats is unknown")
    sides = [run.answers, *([] if run.baseline is None else [run.baseline])]
    texts += throttled(why for side in sides for why in side.throttled)
    if count := sum(int(side.uncaptured_passes.sum()) for side in sides):
        texts.append(f"{plural('pass', count)} had no graph: times are not the fixed engine's usual ones")
    if (run.info.get("git") or {}).get("dirty"):
        texts.append("the working tree had uncommitted changes")
    if isinstance(unpinned := run.info.get("unpinned"), list) and unpinned:
        texts.append(f"not pinned to a commit: {', '.join(map(str, unpinned))} is what the hub had")
    return [{"scope": "run", "figure": "", "text": text} for text in [*texts, *run.notes]]


def throttled(reasons: Iterable[object]) -> list[str]:
    """In how many turns the card was slower than asked for, and why; reasons: one a turn, no text where not told."""
    known = [why for why in reasons if isinstance(why, str)]
    found = Counter(why for why in known if why != NOT_THROTTLED)
    why = ", ".join(dict.fromkeys(part for each, _ in found.most_common() for part in each.split("; ")))
    turns = plural("turn", len(known))
    return [f"the card throttled in {found.total()} of {turns} ({why}): times are not its usual ones"] if found else []


def _incomplete_repeats(run: Run) -> list[str]:
    answered = run.answers[~run.answers.question_id.isin(run.failures.question_id)]
    counts = answered.groupby("repeat").question_id.nunique()
    return [
        f"repeat {number} of {len(counts)} is incomplete: {count} of {plural('question', counts.max())}"
        for number, count in enumerate(counts, start=1)
        if count < counts.max()
    ]


def figure_warnings(found: dict[str, Any]) -> list[dict[str, str]]:
    """Warnings that stand beside a figure: scope is the subtask or "overall"."""
    result = []
    for scope, row in [*found["subtasks"].items(), ("overall", found["overall"])]:
        texts = _row_warnings(row, expect_faster=found["method"] != "vanilla")
        # A demonstration's model is so small that operations, not memory, take its time.
        share = None if found["demonstration"] or row["speedup"] is None else row.get("baseline_memory_share")
        if found["method"] != "vanilla":
            texts += [("speedup", text) for text in slow_baseline(share)]
        result += [{"scope": scope, "figure": figure, "text": text} for figure, text in texts]
    return result


def slow_baseline(share: float | None) -> list[str]:
    """Of a speedup's own baseline; share: of what memory gives, None where that is not known."""
    slow = share is not None and share < MEMORY_LIMIT
    return [f"the baseline reaches {share:.0%} of what memory gives, under {MEMORY_LIMIT:.0%}"] if slow else []


def _row_warnings(row: dict[str, Any], expect_faster: bool) -> list[tuple[str, str]]:
    texts = []
    if row["speedup"] is not None:
        if row["speedup_low"] is None:
            texts.append(("speedup", f"{plural('question', row['questions'])}: no interval"))
        elif expect_faster and _includes_1(row, "speedup"):
            texts.append(("speedup", "interval includes 1: not shown to differ from vanilla"))
        elif expect_faster and _includes_1(row, "speedup_paired"):
            text = "the paired speedup's interval includes 1: some questions are faster, others slower"
            texts.append(("speedup", text))
        if row["speedup_low"] is not None and row["questions"] < FEW_QUESTIONS:
            texts.append(("questions", f"fewer than {FEW_QUESTIONS} questions: the interval may be too narrow"))
    if row["spread"] is not None and row["spread"] > SPREAD_LIMIT:
        texts.append(("spread", f"repeats differ by {row['spread']:.1%}: unstable"))
    if row["overhead_share"] is not None and row["overhead_share"] > OVERHEAD_LIMIT:
        texts.append(("overhead_share", f"overhead is {row['overhead_share']:.1%} of wall time"))
    if row["mismatch"]:
        texts.append(("mismatch", f"{plural('turn', row['mismatch'])} not lossless"))
    return texts


def _includes_1(row: dict[str, Any], name: str) -> bool:
    return row[f"{name}_low"] is not None and row[f"{name}_low"] <= 1 <= row[f"{name}_high"]


def plural(word: str, count: int) -> str:
    """1 question, 2 questions, 3 passes."""
    return f"{count} {word}" if count == 1 else f"{count} {word}{'es' if word.endswith('s') else 's'}"


def show(value: float | None, digits: int = 2) -> str:
    """A number for a table; a missing one is an empty cell."""
    return "" if value is None else f"{value:.{digits}f}"


def show_interval(row: dict[str, Any], name: str = "speedup", digits: int = 2) -> str:
    """`1.52 [1.48, 1.57]`, or the value alone when it has no interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    bounds = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None and high is not None else ""
    return show(row[name], digits) + bounds


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as lines of text: the first `left` columns begin at one place, the others end at one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return ["  ".join(s(cell, w) for s, cell, w in zip(sides, row, widths, strict=True)).rstrip() for row in rows]


def format_table(metrics: dict[str, Any]) -> str:
    """Plain-text table of a run for the terminal, with its warnings below."""
    columns = ("subtask", "questions", "speedup [95 %]", "paired [95 %]", "pooled", "CR")
    rows = [[*columns, *(f"CTAR{w}" for w in CTAR_POSITIONS), "step cost", "equal/tie/mismatch"]]
    for name, row in [*metrics["subtasks"].items(), ("overall", metrics["overall"])]:
        speedups = show_interval(row), show_interval(row, "speedup_paired"), show(row["speedup_pooled"])
        figures = map(show, (row["cr"], *row["ctar"], row["step_cost"]))
        lossless = "/".join(str(row[key]) for key in ("equal", "near_tie", "mismatch"))
        rows.append([name, str(row["questions"]), *speedups, *figures, lossless])
    head, *lines = aligned(rows, left=1)
    label = " (demonstration)" if metrics["demonstration"] else ""
    title = f"{metrics['model']} / {metrics['method']}{label}; speedup: mean tokens/s over questions by the baseline's"
    scopes: dict[str, list[str]] = {}
    for warning in metrics["warnings"]:
        scopes.setdefault(warning["text"], []).append(warning["scope"])
    notes = [f"! {text}" if where == ["run"] else f"! {', '.join(where)}: {text}" for text, where in scopes.items()]
    return "\n".join([title, head, "-" * len(head), *lines, *notes])
