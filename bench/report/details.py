"""Every figure of one subtask, method by method: the page's long table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.records.frame import CTAR_POSITIONS
from bench.words import show, show_interval

Row = dict[str, Any]


def _figure(key: str, form: str, factor: float = 1) -> Callable[[Row], str]:
    """Writes a row's value in that form; one that was not measured as nothing."""
    return lambda row: "" if row.get(key) is None else form.format(factor * row[key])


def _ctar(w: int) -> Callable[[Row], str]:
    return lambda row: show(row["ctar"][w - 1], 3)


FIGURES: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Questions", _figure("questions", "{:,}")),
    ("Turns", _figure("turns", "{:,}")),
    ("Repeats", _figure("repeats", "{:,}")),
    ("Output tokens, all repeats", _figure("tokens", "{:,}")),
    ("Speedup: mean tokens/s by the baseline's [95 %]", lambda row: show_interval(row, "speedup", 3)),
    ("Speedup paired: geometric mean over questions [95 %]", lambda row: show_interval(row, "speedup_paired", 3)),
    ("Speedup pooled: all tokens by all seconds", _figure("speedup_pooled", "{:.3f}")),
    ("Mean of the six subtasks' speedups", _figure("speedup_average", "{:.3f}")),
    ("Speedup of decoding, without prefill", _figure("decode_speedup", "{:.3f}")),
    ("Spread of the repeats' speedups (largest − smallest, by the mean)", _figure("spread", "{:.1f} %", 100)),
    ("Tokens/s", _figure("tokens_per_s", "{:.1f}")),
    ("Tokens/s of the baseline", _figure("baseline_tokens_per_s", "{:.1f}")),
    ("The baseline, by what reading its weights and cache allows", _figure("baseline_memory_share", "{:.0f} %", 100)),
    ("CR, tokens per step", _figure("cr", "{:.3f}")),
    *((f"CTAR({w})", _ctar(w)) for w in CTAR_POSITIONS),
    ("Drafted tokens per step", _figure("drafted_per_step", "{:.2f}")),
    ("Step cost, in target passes", _figure("step_cost", "{:.3f}")),
    ("Prefill, ms per turn", _figure("prefill_ms", "{:.2f}")),
    ("Step, ms", _figure("step_ms", "{:.3f}")),
    ("Step of the baseline, ms", _figure("baseline_step_ms", "{:.3f}")),
    ("Draft, ms per step", _figure("draft_ms", "{:.3f}")),
    ("Verify, ms per step", _figure("verify_ms", "{:.3f}")),
    ("Overhead, ms per step", _figure("overhead_ms", "{:.3f}")),
    ("Overhead by wall time", _figure("overhead_share", "{:.1f} %", 100)),
    *(
        (f"{name}{whose}{unit}", _figure(f"{side}{key}", form, factor))
        for name, unit, key, form, factor in (
            ("Peak device memory, without the other side's", ", MiB", "peak_memory_bytes", "{:,.0f}", 2**-20),
            ("Energy of the card by token", ", J", "joules_per_token", "{:.3f}", 1),
            ("Mean clock as a turn ended", ", MHz", "sm_mhz", "{:,.0f}", 1),
            ("Highest temperature", ", °C", "temperature_c", "{}", 1),
            ("Turns that ended throttled", "", "throttled_turns", "{}", 1),
        )
        for whose, side in (("", ""), (", baseline", "baseline_"))
    ),
)


def figure_table(rows: list[Row | None]) -> list[tuple[str, list[str]]]:
    """(name, one text per method) of every figure that at least one method has; rows: a subtask's, None: not run."""
    table = [(name, ["" if row is None else text(row) for row in rows]) for name, text in FIGURES]
    return [(name, cells) for name, cells in table if any(cells)]
