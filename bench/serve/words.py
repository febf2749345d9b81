"""What a comparison of two servers is called in words: its table on the screen, its warnings, and where it pays."""

from __future__ import annotations

from typing import Any

from bench.words import aligned, plural, show, show_interval

BUSY = 0.7  # share of a processor above which the client itself may be what is measured


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


def warnings(found: dict[str, Any]) -> list[str]:
    """What a reader must know of the figures."""
    texts = ["demonstration on the built-in model: it says nothing of large models"] if found["demonstration"] else []
    if not found["levels"]:
        texts.append("no block was finished by both servers yet")
    for row in found["levels"]:
        texts += [f"{row['level']} at a time: {text}" for text in _row_warnings(row, found["sampled"])]
    return texts


def _row_warnings(row: dict[str, Any], sampled: bool) -> list[str]:
    texts = []
    if row["failed"]:
        blocks = "" if row["equal"] is None else "; throughput and the servers' counts are of the blocks without them"
        texts.append(f"{plural('question', row['failed'])} failed and left out of both sides{blocks}")
    if row["questions"] is not None and row["questions"] < row["level"]:
        texts.append(f"{plural('question', row['questions'])}: too few to keep so many requests under way")
    if row["speedup_low"] is not None and row["speedup_low"] <= 1 <= row["speedup_high"]:
        texts.append("the speedup's interval includes 1: not shown to differ from the plain server")
    if row["blocks"] == 1 and row["throughput_ratio"] is not None and row["equal"] is not None:
        texts.append("one block: the throughput has no interval; a smaller block= or repeats= gives one")
    if (row["client_cpu_share"] or 0) > BUSY:
        texts.append(
            f"the client itself used {row['client_cpu_share']:.0%} of a processor: it may be what was measured"
        )
    if row["miscounted"]:
        texts.append(f"{plural('answer', row['miscounted'])} with another number of token ids than the server counted")
    if row["foreign_tokens"]:
        texts.append(f"the servers counted {row['foreign_tokens']} tokens beyond these answers': others used them too"
                     + (", and CR and CTAR count some of theirs" if row["foreign_in_cr"] else ""))  # fmt: skip
    if row["uncounted_blocks"]:
        texts.append(f"{plural('block', row['uncounted_blocks'])} left out of CR and CTAR: the server's counters were "
                     "not to be had, began anew, or count what others asked")  # fmt: skip
    if row["silent_answers"]:
        answers = plural("answer", row["acceptance_answers"] + row["silent_answers"])
        texts.append(f"CR and CTAR are of {row['acceptance_answers']} of {answers}: the others do not tell their steps")
    if max(row["cached_share"] or 0, row["baseline_cached_share"] or 0) > 0:
        texts.append("part of some prompts came from a cache, so their time to first token is shorter")
    if row["divergent"]:
        texts.append(f"{plural('turn', row['divergent'])} divergent from the plain server: not shown to be lossless")
    elif row["unchecked"] and not sampled:
        texts.append(f"{plural('turn', row['unchecked'])} not compared")
    return texts
