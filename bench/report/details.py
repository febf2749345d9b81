"""Every figure of one subtask, method by method: the page's long table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.records.frame import CTAR_POSITIONS
from bench.words import show, show_interval

Row = dict[str, Any]


def _number(key: str, digits: int = 2) -> Callable[[Row], str]:
    return lambda row: show(row.get(key), digits)


def _count(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:,}"


def _percent(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else f"{100 * row[key]:.1f} %"


def _mebibytes(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else f"{row[key] / 2**20:,.0f}"


def _ctar(w: int) -> Callable[[Row], str]:
    return lambda row: show(row["ctar"][w - 1], 3)


FIGURES: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Questions", _count("questions")),
    ("Turns", _count("turns")),
    ("Repeats", _count("repeats")),
    ("Output tokens, all repeats", _count("tokens")),
    ("Speedup: mean tokens/s by the baseline's [95 %]", lambda row: show_interval(row, "speedup", 3)),
    ("Speedup paired: geometric mean over questions [95 %]", lambda row: show_interval(row, "speedup_paired", 3)),
    ("Speedup pooled: all tokens by all seconds", _number("speedup_pooled", 3)),
    ("Mean of the six subtasks' speedups", _number("speedup_average", 3)),
    ("Speedup of decoding, without prefill", _number("decode_speedup", 3)),
    ("Spread of the repeats' speedups (largest − smallest, by the mean)", _percent("spread")),
    ("Tokens/s", _number("tokens_per_s", 1)),
    ("Tokens/s of the baseline", _number("baseline_tokens_per_s", 1)),
    ("CR, tokens per step", _number("cr", 3)),
    *((f"CTAR({w})", _ctar(w)) for w in CTAR_POSITIONS),
    ("Drafted tokens per step", _number("drafted_per_step")),
    ("Step cost, in target passes", _number("step_cost", 3)),
    ("Prefill, ms per turn", _number("prefill_ms")),
    ("Step, ms", _number("step_ms", 3)),
    ("Step of the baseline, ms", _number("baseline_step_ms", 3)),
    ("Draft, ms per step", _number("draft_ms", 3)),
    ("Verify, ms per step", _number("verify_ms", 3)),
    ("Overhead, ms per step", _number("overhead_ms", 3)),
    ("Overhead by wall time", _percent("overhead_share")),
    ("Peak device memory, both sides' weights and caches included, MiB", _mebibytes("peak_memory_bytes")),
    ("The same while the baseline ran, MiB", _mebibytes("baseline_peak_memory_bytes")),
)


def figure_table(rows: list[Row | None]) -> list[tuple[str, list[str]]]:
    """(name, one text per method) of every figure that at least one method has; rows: a subtask's, None: not run."""
    table = [(name, ["" if row is None else text(row) for row in rows]) for name, text in FIGURES]
    return [(name, cells) for name, cells in table if any(cells)]
