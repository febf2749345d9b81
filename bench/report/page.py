"""results/report/index.html: one file without network, everything on it escaped by Jinja."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench import published
from bench.files import replace_text
from bench.places import BENCH
from bench.predict import paper
from bench.published import PAPER_ORDER
from bench.records.identity import flatten, incidental
from bench.report.answers import first_divergences, payloads
from bench.report.collect import Collection, Group
from bench.report.details import figure_table
from bench.report.predicted import predicted_chart
from bench.report.servers import definitions, view
from bench.report.svg import cost_chart, ctar_chart, legend_mark, speedup_chart, split_chart
from bench.report.tables import (
    LEADERBOARD_CAPTION,
    MARKED,
    TABLE1_CAPTION,
    by_speed,
    group_notes,
    lossless,
    ranks,
    table1_rows,
    title,
)
from bench.words import plural, show

HERE = BENCH / "report"
CHARTS = (
    ("ctar", "Acceptance by position (CTAR)", ctar_chart),
    ("speedup", "Speedup with 95 % intervals", speedup_chart),
    ("split", "Time per step", split_chart),
    ("cost", "Speedup against CR", cost_chart),
    ("predicted", "Predicted on other cards", predicted_chart),
)


def write_page(collection: Collection, out: Path) -> Path:
    """Writes index.html below `out`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {helper.__name__: helper for helper in (plural, show, title, legend_mark, lossless)}
    text = environment.get_template("page.html.j2").render(
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        groups=[
            _group_view(number, group, payload)
            for number, (group, payload) in enumerate(zip(collection.groups, payloads(collection), strict=True))
        ],
        servers=[view(comparison) for comparison in collection.servers],
        acceptance=definitions(),
        paper={"title": f"{published.PAPER}, Table 1", "rows": paper.by_row(), "order": PAPER_ORDER},
        warnings=collection.warnings,
        captions={"leaderboard": LEADERBOARD_CAPTION, "table1": TABLE1_CAPTION, "marked": MARKED},
    )
    path = out / "index.html"
    replace_text(path, text)
    return path


def embedded(data: Any) -> Markup:
    """JSON that is safe inside a script element: no character that could end it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028")):
        text = text.replace(character, escaped)
    return Markup(text)


def _group_view(number: int, group: Group, payload: dict[str, Any]) -> dict[str, Any]:
    scopes = ["overall", *group.subtasks]
    return {
        "id": f"g{number}",
        "group": group,
        "scopes": scopes,
        "board": by_speed(group),
        "ranks": ranks(group),
        "charts": [
            {"name": name, "title": heading, "drawings": [(scope, draw(group, scope)) for scope in scopes]}
            for name, heading, draw in CHARTS
        ],
        "figures": [(scope, _every_figure(group, scope)) for scope in scopes],
        "notes": group_notes(group),
        "memory": _span((e.metrics["overall"]["baseline_memory_share"] for e in group.entries), 100, "%"),
        "power": _span(
            ((e.run.info.get("card") or {}).get("power_limit_milliwatts") for e in group.entries), 1e-3, "W"
        ),
        "attention": dict.fromkeys(str(text) for e in group.entries for text in e.run.info.get("attention") or ()),
        "divergences": [(entry, first_divergences(entry.run)) for entry in group.entries],
        "published": _published(group),
        "paper_order": PAPER_ORDER,
        "settings": _settings(group),
        "payload": embedded(payload),
        "shown": payload["shown"],
        "asked": len(payload["questions"]),
        "colourable": any(lengths for _, lengths in payload["texts"]),
        "failures": [(entry, entry.run.failures.to_dict("records")[:20]) for entry in group.entries],
    }


def _span(values: Iterable[Any], factor: float, unit: str) -> str:
    """From the least to the largest of the runs' values, such as `62 %` or `58 to 62 %`; empty if none is known."""
    known = sorted(round(factor * value) for value in values if isinstance(value, (int, float)))
    return f"{' to '.join(str(value) for value in dict.fromkeys((known[0], known[-1])))} {unit}" if known else ""


def _every_figure(group: Group, scope: str) -> list[tuple[str, list[str]]]:
    warnings = [entry.warning(scope) for entry in group.entries]
    table = figure_table([entry.row(scope) for entry in group.entries])
    return [*table, ("Warnings", [f"⚠ {text}" if text else "" for text in warnings])] if any(warnings) else table


def _published(group: Group) -> dict[str, Any]:
    """Table 1 with its published rows, and Spec-Bench's leaderboard rows of the same model and methods."""
    methods = dict.fromkeys(entry.run.method for entry in group.entries)
    board = [row for method in methods for row in published.spec_bench(group.model, method).to_dict("records")]
    rows = table1_rows(group)
    return {"rows": rows, "any": any(r["source"] == "published" for r in rows) or bool(board), "spec_bench": board}


def _settings(group: Group) -> dict[str, Any]:
    """Config keys that all runs share with one value, keys that differ."""
    flat = [flatten(entry.run.config) for entry in group.entries]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    same = {key: flat[0].get(key) for key in keys if all(one.get(key, "") == flat[0].get(key, "") for one in flat)}
    return {"same": same, "varying": [key for key in keys if key not in same and not incidental(key)], "flat": flat}
