"""Engines measured from outside: a section of the page of their own, and servers.csv. Never ranked with the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from bench.fidelity import shared
from bench.files import replace_text
from bench.records.frame import CTAR_POSITIONS
from bench.report.svg import WIDTH, Canvas, marker, ticks
from bench.report.tables import csv_text
from bench.serve.acceptance import DEFINITIONS, TRACE
from bench.serve.dialects import WRITTEN_FROM
from bench.serve.metrics import PERCENTILES, SIDES, Comparison
from bench.serve.words import crossing_label, crossing_text, lossless_text
from bench.words import show, show_interval

SHOWN = 5  # divergences
AROUND = 60  # characters of them
STEPS = 12  # points of a curve from one level to the next
# Names of a side's times, and how a table heads them.
TIMES = (("ttft_ms", "First token, ms"), ("token_ms", "Each further token, ms"), ("gap_ms", "Between events, ms"),
         ("wall_ms", "Whole answer, ms"))  # fmt: skip


def view(comparison: Comparison) -> dict[str, Any]:
    """What the template shows of one pair of servers."""
    found, info = comparison.metrics, comparison.records.info
    servers = info.get("servers") or {}
    return {
        "title": comparison.title,
        "metrics": found,
        "speeds": [_speeds(row, found["sampled"]) for row in found["levels"]],
        "times": _times(found["levels"]),
        "acceptance": _acceptance(found["levels"]),
        "chart": speedup_chart(found),
        "crossing": crossing_text(found["crossing"]),
        "divergences": divergences(comparison),
        "facts": [
            *((f"{side} server", _facts(servers.get(side) or {})) for side in SIDES),
            *_forms(info, found["engine"]),
            ("servers' hardware", _hardware(info)),
            ("client", f"{info.get('cpu') or 'unknown'}, {info.get('cores') or '?'} cores"),
            ("command", info.get("command") or ""),
            ("recorded in", str(comparison.records.folder)),
            ("questions' sha256", info.get("questions_sha256") or ""),
            ("/v1/models", json.dumps(info.get("models"), sort_keys=True)),
        ],
    }


def _forms(info: dict[str, Any], engine: str | None) -> list[tuple[str, str]]:
    """What the reading of this engine's answers was written from."""
    known = None if info.get("imported") else WRITTEN_FROM.get(engine or "")
    return [("answers are read as in", known)] if known else []


def _hardware(info: dict[str, Any]) -> str:
    """As given in words; of servers that were started here, the machine's too. All its cards: who used which, the
    launch command tells."""
    server = (info.get("config") or {}).get("server") or {}
    given = [server["hardware"]] if server.get("hardware") else []
    if server.get("launch") or server.get("baseline_launch"):
        memory = f"{info['memory_bytes'] / 2**30:.0f} GiB" if info.get("memory_bytes") else ""
        parts = [info.get("gpu"), info.get("driver") and f"driver {info['driver']}", info.get("cpu"), memory]
        given.append("as found where they were started: " + ", ".join(filter(None, parts)))
    return "; ".join(given) or "not given"


def _facts(server: dict[str, Any]) -> str:
    parts = [server.get("engine") or "unknown", server.get("version") or "version not told", server.get("model") or ""]
    return ", ".join([*parts, *([f"started by {server['launch']}"] if server.get("launch") else [])])


def _speeds(row: dict[str, Any], sampled: bool) -> list[str]:
    throughput = show(row["throughput"], 1), show(row["baseline_throughput"], 1)
    lossless = "sampled: not compared" if sampled else lossless_text(row).replace("/", " / ")
    return [
        *(str(row["level"]), show(row["questions"], 0), show_interval(row), show_interval(row, "throughput_ratio")),
        *throughput,
        *(show(row["tokens_per_s"], 1), show(row["baseline_tokens_per_s"], 1), lossless),
    ]


def _times(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """Each kind of time: by level, percentiles of the server that speculates, then of the plain one."""
    columns = [f"{side}{{key}}_p{p}" for side in ("", "baseline_") for p in PERCENTILES]
    return [
        (name, [[str(row["level"]), *(show(row[column.format(key=key)], 1) for column in columns)] for row in rows])
        for key, name in TIMES
    ]


def _acceptance(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [str(row["level"]), show(row["cr"], 3), *(show(value, 3) for value in row["ctar"]),
         show(row["draft_acceptance"], 3), row["acceptance_from"]]
        for row in rows if row["acceptance_from"]
    ]  # fmt: skip


def definitions() -> list[list[str]]:
    """Everything that somebody calls acceptance, each computed for one trace; a last line says the trace."""
    rows = [[one.where, one.name, one.counts, one.here, show(one.value(TRACE))] for one in DEFINITIONS]
    steps = ", ".join(f"{emitted} of {drafted} + 1" if drafted else "1, nothing drafted" for drafted, emitted in TRACE)
    return [*rows, ["The trace", "", f"tokens that each pass emitted: {steps}", "", ""]]


def divergences(comparison: Comparison) -> list[dict[str, Any]]:
    """The first turns whose text is another one, with what stands around."""
    texts = {(line["side"], line["level"], line["repeat"], line["question_id"], line["turn"]): line["text"]
             for line in comparison.records.requests if line["status"] == "ok"}  # fmt: skip
    found: list[dict[str, Any]] = []
    for line in comparison.records.verdicts:
        key = line["level"], line["repeat"], line["question_id"], line["turn"]
        ours, theirs = (texts.get((side, *key)) for side in SIDES)
        if line["verdict"] == "equal" or ours is None or theirs is None or len(found) == SHOWN:
            continue
        place = shared(ours, theirs)
        begin, end = max(0, place - AROUND), place + AROUND
        parts = {"shared": ours[begin:place], "ours": ours[place:end], "theirs": theirs[place:end]}
        found.append({**line, **parts})
    return found


def load_curve(rows: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels and values of a curve through those of `rows`: straight in logarithms, as the crossing is found."""
    levels, values = np.log(sorted((row["level"], row[key]) for row in rows)).T
    between = np.unique([np.linspace(a, b, STEPS) for a, b in pairwise(levels)] or levels)
    return np.exp(between), np.exp(np.interp(between, levels, values))


def speedup_chart(found: dict[str, Any]) -> Markup | None:
    """Speedup over requests at a time, with its intervals; the crossing of 1 as a bar on the line at 1.

    Where single answers' speeds are not known, as in some imported files, the ratio of the throughputs.
    """
    key = "speedup" if any(row["speedup"] is not None for row in found["levels"]) else "throughput_ratio"
    rows = sorted((row for row in found["levels"] if row[key] is not None), key=lambda row: int(row["level"]))
    if not rows:
        return None
    ends = [value for row in rows for value in (row[key], row[f"{key}_low"], row[f"{key}_high"]) if value]
    low, high = min(0.9, *ends) * 0.95, max(1.1, *ends) * 1.05
    levels = [row["level"] for row in rows]
    name, span = key.replace("_", " "), (log2(levels[0]) - 0.3, log2(levels[-1]) + 0.3)
    canvas = Canvas(250, f"{name.capitalize()} by load, {found['name']}", span, (low, high), left=44)
    canvas.y_axis(ticks(low, high), f"{name} over the plain server")
    base = canvas.height - canvas.bottom
    for level in levels:
        canvas.text(canvas.x(log2(level)), base + 13, str(level))
    canvas.text((canvas.left + WIDTH - canvas.right) / 2, canvas.height - 5, "requests at a time", "axis")
    canvas.line(canvas.left, canvas.y(1), WIDTH - canvas.right, canvas.y(1), "one")
    if reach := crossing_span(found["crossing"]):
        x1, x2 = (canvas.x(log2(end)) for end in reach)
        canvas.bar(x1, canvas.y(1) - 2, x2 - x1, 4, "verify", crossing_text(found["crossing"]))
        if at := found["crossing"]["at"]:
            canvas.line(canvas.x(log2(at)), canvas.y(1) - 7, canvas.x(log2(at)), canvas.y(1) + 7, "one")
        canvas.text(WIDTH - canvas.right, canvas.top + 10, crossing_label(found["crossing"]), "name", "end")
    points = [(canvas.x(log2(row["level"])), canvas.y(row[key])) for row in rows]
    path = [f"{canvas.x(log2(x)):.1f} {canvas.y(y):.1f}" for x, y in zip(*load_curve(rows, key), strict=True)]
    canvas.add(f'<path class="curve m0" d="M{"L".join(path)}"/>')
    for row, (x, y) in zip(rows, points, strict=True):
        if row[f"{key}_low"] is not None:
            canvas.line(x, canvas.y(row[f"{key}_low"]), x, canvas.y(row[f"{key}_high"]), "whisker")
        hint = f"{row['level']} at a time: {show_interval(row, key, digits=3)}"
        canvas.add(f'<path class="mark m0" d="{marker(0, x, y)}"><title>{hint}</title></path>')
    return canvas.render()


def crossing_span(found: dict[str, Any] | None) -> tuple[float, float] | None:
    """Ends of a crossing's interval, as far as the levels go; None where it lies wholly beyond them."""
    if not found or found["low"] is None or found["high"] == 0:
        return None
    first, last = found["levels"]
    return found["low"] or first, found["high"] or last


def write_servers(servers: Sequence[Comparison], out: Path) -> list[Path]:
    """servers.csv: a row for each pair and level with every figure; returns what was written."""
    rows = []
    for comparison in servers:
        head = {key: comparison.metrics[key] for key in ("model", "name", "engine", "demonstration")}
        for row in comparison.metrics["levels"]:
            deep = {f"ctar_{w}": value for w, value in zip(CTAR_POSITIONS, row["ctar"], strict=True)}
            rows.append(head | {key: value for key, value in row.items() if key != "ctar"} | deep)
    if not rows:
        return []
    replace_text(out / "servers.csv", csv_text(rows))
    return [out / "servers.csv"]
