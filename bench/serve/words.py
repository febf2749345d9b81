"""What a comparison of two servers is called in words: its table on the screen, and where it pays."""

from __future__ import annotations

from typing import Any

from bench.words import aligned, show, show_interval


def crossing_text(found: dict[str, Any] | None) -> str:
    """One sentence on where speculation stops paying."""
    if found is None:
        return "Where the speedup falls to 1: needs two levels and two questions."
    at, low, high = _bounds(found)
    return f"Requests at a time at which the speedup falls to 1: {at} (95 % interval: {low} to {high})."


def crossing_label(found: dict[str, Any]) -> str:
    """The same for a figure."""
    at, low, high = _bounds(found)
    return f"falls to 1 at {at} [{low}, {high}]"


def _bounds(found: dict[str, Any]) -> list[str]:
    return [_bound(found[key], found["levels"]) for key in ("at", "low", "high")]


def _bound(value: float | None, levels: list[int]) -> str:
    if value is None:
        return f"> {levels[1]}"
    return show(value, 1) if value else f"≤ {levels[0]}"


def lossless_text(row: dict[str, Any]) -> str:
    """equal / near tie / divergent turns; empty where nobody compared them."""
    return "" if row["equal"] is None else "/".join(str(row[name]) for name in ("equal", "near_tie", "divergent"))


def format_table(found: dict[str, Any]) -> str:
    """Plain-text table for the terminal, with warnings below."""
    rows = [["at a time", "questions", "speedup [95 %]", "throughput [95 %]", "tokens/s", "plain",
             "first token p50 ms", "plain", "CR", "equal/tie/divergent"]]  # fmt: skip
    for row in found["levels"]:
        speeds = show_interval(row), show_interval(row, "throughput_ratio")
        rates = show(row["throughput"], 0), show(row["baseline_throughput"], 0)
        first = show(row["ttft_ms_p50"], 1), show(row["baseline_ttft_ms_p50"], 1)
        lossless = "sampled" if found["sampled"] else lossless_text(row)
        rows.append([str(row["level"]), str(row["questions"]), *speeds, *rates, *first, show(row["cr"]), lossless])
    head, *lines = aligned(rows, left=0)
    label = " (demonstration)" if found["demonstration"] else ""
    title = f"{found['model']} / {found['name']}{label} on {found['engine']}: speedup over the plain server by load"
    notes = [f"! {text}" for text in found["warnings"]]
    return "\n".join([title, head, "-" * len(head), *lines, crossing_text(found["crossing"]), *notes])
