"""table1, table2 and the leaderboard as Markdown, CSV and LaTeX. Missing values are empty cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench import published
from bench.files import replace_text
from bench.published import PAPER_ORDER
from bench.records.frame import CTAR_POSITIONS
from bench.report.collect import Collection, Entry, Group
from bench.words import MEMORY_LIMIT, OVERHEAD_LIMIT, SPREAD_LIMIT, show, show_interval

TITLES = {
    "translation": "Translation",
    "qa": "QA",
    "summarization": "Summarization",
    "math_reasoning": "Math",
    "rag": "RAG",
    "mt_bench": "MT-bench",
    "overall": "Overall",
}
PUBLISHED = "published"
OTHER = "with another setting than ours"
AVERAGE = "average"  # among the subtasks of a row of Table 1
FORMULA = ("=", "+", "-", "@")
MARKUP = re.compile(r"[\\`*>~|]|\[(?![\d., %]+\](?![(\[:]))|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.|^[#+-]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
PLAIN_TEX = {"\\": r"\textbackslash ", "^": r"\^{}", "~": r"\~{}", "[": "{[}", "–": "--", "×": r"$\times$"}
TEX = str.maketrans({sign: f"\\{sign}" for sign in "_%&#{}$"} | PLAIN_TEX | {"⚠": r"$^\dagger$"})
TABLE1_CAPTION = (
    "Speedup is Spec-Bench's (mean over questions of tokens/s, by the same mean of the baseline); CR is the mean of "
    "tokens per step; Avg. is the mean of the six speedups, as in the paper. "
    f"Published rows: {published.PAPER}, Table 1 (V100)."
)
SPREAD, OVERHEAD, MEMORY = (f"{100 * limit:.0f} %" for limit in (SPREAD_LIMIT, OVERHEAD_LIMIT, MEMORY_LIMIT))
MARKED = (
    "marks a figure with a warning: it has no interval, as of one question; its interval or the paired speedup's "
    f"includes 1; repeats differ by over {SPREAD}; overhead is over {OVERHEAD}; the baseline reaches under {MEMORY} of "
    "what memory gives (the built-in model's aside, as operations take its time); or answers are not lossless."
)
LEADERBOARD_CAPTION = (
    "Spec-Bench's speedup, and CR; overall is over all questions, with its 95 % BCa interval. A method is "
    "ranked below another only where their intervals do not overlap."
)


def title(subtask: str) -> str:
    return TITLES.get(subtask, subtask.replace("_", " "))


def ranks(group: Group) -> dict[str, int | None]:
    """Rank by overall speedup: 1 + the methods whose whole interval lies above.

    None without an interval, and for imported runs, whose machines may differ.
    """
    rows = {entry.label: entry.metrics["overall"] for entry in group.entries}
    unknown = {entry.label for entry in group.entries if entry.source == "imported"}
    known = {label: row for label, row in rows.items() if row["speedup_low"] is not None and label not in unknown}
    return {
        label: 1 + sum(other["speedup_low"] > row["speedup_high"] for other in known.values())
        if label in known
        else None
        for label, row in rows.items()
    }


def _head(group: Group, entry: Entry) -> dict[str, Any]:
    """What a measured row of Table 1 and Table 2 begins with."""
    where = {"machine": group.machine, "model": group.model}
    facts = {"demonstration": entry.metrics["demonstration"], "setting": ""}
    return {**where, "method": entry.label, "source": entry.source, **facts}


def table1_rows(group: Group) -> list[dict[str, Any]]:
    """Measured rows, those of one method followed by the published row of the same model and method."""
    rows = []
    entries = [entry for entry in group.entries if entry.of_paper]
    last = {entry.run.method: entry for entry in entries}
    for entry in entries:
        found = {subtask: row for subtask in PAPER_ORDER if (row := entry.row(subtask))}
        measured = _head(group, entry)
        theirs = {**measured, "method": published.named(entry.run.method), "demonstration": False}
        theirs |= {"source": PUBLISHED, "setting": "" if entry.comparable else OTHER}
        beside = entry.published if last[entry.run.method] is entry else {}
        measured |= _pairs({subtask: (row["cr"], row["speedup"]) for subtask, row in found.items()})
        measured["average_speedup"] = whole = entry.metrics["overall"]["speedup_average"]
        warned = [subtask for subtask in PAPER_ORDER if entry.warning(subtask)]
        warned += [AVERAGE] if whole is not None and entry.warning("overall") else []
        measured["warned"] = " ".join(warned)
        average = beside.get("average", (None, None))[1]
        rows += [measured, theirs | _pairs(beside) | {"warned": "", "average_speedup": average}][: 1 + bool(beside)]
    return rows


def _pairs(figures: dict[str, tuple[float | None, float | None]]) -> dict[str, float | None]:
    """CR and speedup of each of the paper's subtasks; None where `figures` lacks one."""
    pairs = {subtask: figures.get(subtask, (None, None)) for subtask in PAPER_ORDER}
    return {f"{s}_{name}": pair[n] for s, pair in pairs.items() for n, name in enumerate(("cr", "speedup"))}


def table2_rows(collection: Collection) -> list[dict[str, Any]]:
    """Adapter architectures: the paper's row, then each measured one. Empty when none of them was measured."""
    rows = []
    found = [(group, entry) for group in collection.groups for entry in group.entries if entry.of_paper]
    for parts in published.table2().to_dict("records"):
        parameters, speedup = parts.pop("parameters_millions") * 1_000_000, parts.pop("speedup")
        at_7b, at_13b = published.adapter_parameters()[parts["architecture"]]
        parts |= {"counted_vicuna_7b": at_7b, "counted_vicuna_13b": at_13b}
        paper = {"machine": "", "model": "vicuna-7b", "method": parts["architecture"], "source": PUBLISHED}
        rows.append(
            {**paper, "demonstration": False, "setting": "", **parts}
            | {"parameters": parameters, "average_speedup": speedup, "warnings": ""}
        )
        for group, entry in found:
            if entry.architecture == parts["architecture"]:
                average = entry.metrics["overall"]["speedup_average"]
                figures = {"parameters": entry.metrics["extra_parameters"], "average_speedup": average}
                rows.append(_head(group, entry) | parts | figures | {"warnings": entry.warning("overall")})
    return rows if any(row["source"] != PUBLISHED for row in rows) else []


def leaderboard_rows(collection: Collection) -> list[dict[str, Any]]:
    """One row per machine, model, method and subtask ("overall" last) with every figure that was computed."""
    rows = []
    for group in collection.groups:
        rank = ranks(group)
        for entry in group.entries:
            for subtask in [*entry.metrics["subtasks"], "overall"]:
                row = dict(entry.row(subtask) or {})
                for w, value in zip(CTAR_POSITIONS, row.pop("ctar"), strict=True):
                    row[f"ctar_{w}"] = value
                row["repeat_speedups"] = " ".join(repr(value) for value in row["repeat_speedups"])
                row.setdefault("speedup_average", None)
                head = {"machine": group.machine, "model": group.model, "method": entry.label, "subtask": subtask}
                head |= {"demonstration": entry.metrics["demonstration"]}
                head |= {"rank": rank[entry.label] if subtask == "overall" else None}
                rows.append(head | row | {"warnings": entry.warning(subtask)})
    return rows


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; None is an empty cell and floats keep all their digits.

    Text is one line; what a spreadsheet would take for a formula begins with an apostrophe.
    """
    plain = []
    for row in rows:
        texts = {key: " ".join(value.split()) for key, value in row.items() if isinstance(value, str)}
        plain.append(row | {key: f"'{text}" if text.startswith(FORMULA) else text for key, text in texts.items()})
    return pd.DataFrame(plain, dtype=object).to_csv(index=False, lineterminator="\n")


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [list(map(markdown, line)) for line in (header, *body)]
    lines.insert(1, ["---"] * len(header))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown(text: str) -> str:
    """One line in which names that came from a file are no markup; underscores inside words and intervals never are."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return MARKUP.sub(lambda found: "\\" + found[0], plain)


def tex_escape(text: str) -> str:
    """One line of plain LaTeX; a character beyond ASCII that needs a font of its own by its number, such as U+4E2D."""
    escaped = " ".join(text.split()).replace(" ⚠", "⚠").translate(TEX)
    return NOT_ASCII.sub(lambda found: f"U+{ord(found[0]):04X}", escaped)


def _tex(caption: str, columns: str, head: str, tables: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """Tables as wide as the page, each a remark and its cells."""
    lines = [f"% {caption}", rf"% $^\dagger$ {MARKED}", "% needs \\usepackage{booktabs,graphicx}"]
    for remark, body in tables:
        lines += [f"% {tex_escape(remark)}", r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}"]
        lines += [r"\toprule", head, r"\midrule", *(" & ".join(cells) + r" \\" for cells in body)]
        lines += [r"\bottomrule", r"\end{tabular}}", ""]
    return "\n".join(lines)


def _markdown_page(name: str, caption: str, parts: Sequence[str]) -> str:
    return "\n".join([f"# {name}\n", f"{caption} ⚠ {MARKED} leaderboard.csv has the words.\n", *parts])


def _section(group: Group, header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {markdown(group.title)}: {markdown(group.machine_label)}\n", markdown_table(header, body)]


def _source(row: dict[str, Any]) -> str:
    source = "demonstration" if row["demonstration"] else row["source"]
    return f"{source}, {row['setting']}" if row["setting"] else source


def with_cr(speedup: float | None, cr: float | None, warned: bool = False) -> str:
    """A table cell, such as `1.52× (1.90) ⚠`; empty for what was not measured."""
    mark = " ⚠" if warned else ""
    if speedup is None:
        return f"(CR {show(cr)}){mark}" if cr is not None else mark.strip()
    return f"{show(speedup)}× ({show(cr)}){mark}" if cr is not None else f"{show(speedup)}×{mark}"


def _table1(tables: Sequence[tuple[Group, list[dict[str, Any]]]]) -> tuple[str, str]:
    """Each group's rows as Markdown and as LaTeX."""
    header = ["Model", "Method", "", *(f"{title(s)}: speedup (CR)" for s in PAPER_ORDER), "Avg. speedup"]
    subtasks = " & ".join(rf"\multicolumn{{2}}{{c}}{{{title(s)}}}" for s in PAPER_ORDER)
    second = " & " + " & CR & Speedup" * len(PAPER_ORDER) + r" & Speedup \\"
    parts, tex = [], []
    for group, rows in tables:
        body, tex_body = [], []
        for row in rows:
            model, method, source, warned = row["model"], row["method"], _source(row), row["warned"].split()
            cells = [with_cr(row[f"{s}_speedup"], row[f"{s}_cr"], s in warned) for s in PAPER_ORDER]
            body.append([model, method, source, *cells, _times(row, AVERAGE, "")])
            pairs = [cell for s in PAPER_ORDER for cell in (show(row[f"{s}_cr"]), _times(row, s))]
            tex_body.append(list(map(tex_escape, (model, f"{method} ({source})", *pairs, _times(row, AVERAGE)))))
        parts += _section(group, header, body)
        tex.append((f"{group.title}: {group.machine_label}", tex_body))
    head = f"Model & Method & {subtasks} & Avg. \\\\\n{second}"
    columns = "ll" + "cc" * len(PAPER_ORDER) + "c"
    return _markdown_page("Table 1", TABLE1_CAPTION, parts), _tex(TABLE1_CAPTION, columns, head, tex)


def _times(row: dict[str, Any], subtask: str, unit: str = "×") -> str:
    speedup = row[f"{subtask}_speedup"]
    return ("" if speedup is None else show(speedup) + unit) + (" ⚠" if subtask in row["warned"].split() else "")


PARTS = {"input_ln": "Input LN", "attention": "Attention", "post_ln": "Post LN", "ffn": "FFN", "linear": "Linear",
         "last_ln": "Last LN", "head": "Head"}  # fmt: skip
TABLE2_CAPTION = (
    "Draft architectures: how many of each part, extra parameters, and the mean of the six speedups. "
    f"Published rows: {published.PAPER}, Table 2 (Vicuna-7B, V100). Counted: this project's, at the shape of Vicuna."
)


def _table2_cells(row: dict[str, Any]) -> list[str]:
    parameters = "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.3g} M"
    parts = [str(row[key]) if row[key] else "–" for key in PARTS]
    counted = f"{row['counted_vicuna_7b'] / 1e6:.0f} M / {row['counted_vicuna_13b'] / 1e6:.0f} M"
    average = show(row["average_speedup"]) + (" ⚠" if row["warnings"] else "")
    return [row["model"], row["method"], _source(row), *parts, parameters, counted, average]


def write_tables(collection: Collection, out: Path) -> list[Path]:
    """Writes every table that the runs allow below `out`; returns what was written."""
    files = {
        "leaderboard.md": _leaderboard_markdown(collection),
        "leaderboard.csv": csv_text(leaderboard_rows(collection)),
    }
    if tables := [(group, rows) for group in collection.groups if (rows := table1_rows(group))]:
        files["table1.md"], files["table1.tex"] = _table1(tables)
        files["table1.csv"] = csv_text([row for _, rows in tables for row in rows])
    if rows := table2_rows(collection):
        header = ["Model", "Architecture", "", *PARTS.values(), "Extra parameters", "Counted: 7B / 13B", "Avg. speedup"]
        body = [_table2_cells(row) for row in rows]
        files["table2.md"] = _markdown_page("Table 2", TABLE2_CAPTION, [markdown_table(header, body)])
        files["table2.csv"] = csv_text(rows)
        table = "every machine and model", [[tex_escape(cell) for cell in cells] for cells in body]
        columns = "lll" + "c" * (len(PARTS) + 3)
        files["table2.tex"] = _tex(TABLE2_CAPTION, columns, " & ".join(header) + r" \\", [table])
    for name, text in files.items():
        replace_text(out / name, text)
    return [out / name for name in files]


def _leaderboard_markdown(collection: Collection) -> str:
    parts = []
    for group in collection.groups:
        rank, subtasks = ranks(group), group.subtasks
        header = ["Rank", "Method", *map(title, subtasks), "Overall [95 %]", "CR", "Lossless"]
        body = [_leaderboard_cells(entry, subtasks, rank[entry.label]) for entry in by_speed(group)]
        parts += _section(group, header, body)
        notes = [f"- {markdown(text)}" for text in group_notes(group)]
        parts += ["\n".join(notes) + "\n"] if notes else []
    return _markdown_page("Leaderboard", LEADERBOARD_CAPTION, parts)


def by_speed(group: Group) -> list[Entry]:
    """Entries with the fastest first; those without a speedup last."""
    return sorted(group.entries, key=lambda e: -(e.metrics["overall"]["speedup"] or 0.0))


def _leaderboard_cells(entry: Entry, subtasks: Sequence[str], rank: int | None) -> list[str]:
    rows = [entry.row(s) or {} for s in subtasks]
    overall = entry.metrics["overall"]
    cells = [
        with_cr(r.get("speedup"), r.get("cr"), bool(entry.warning(s))) for s, r in zip(subtasks, rows, strict=True)
    ]
    whole = show_interval(overall) + (" ⚠" if entry.warning("overall") else "")
    return ["" if rank is None else str(rank), entry.label, *cells, whole, show(overall["cr"]), lossless(overall)]


def lossless(row: dict[str, Any]) -> str:
    """Turns equal / near tie / mismatch; empty when nothing was compared."""
    counts = [row["equal"], row["near_tie"], row["mismatch"]]
    return " / ".join(map(str, counts)) if any(counts) else ""


def group_notes(group: Group) -> list[str]:
    """Warnings of a group as lines, the same text of several subtasks or methods said once."""
    where: dict[str, dict[str, list[str]]] = {}
    for entry in group.entries:
        for warning in entry.metrics["warnings"]:
            where.setdefault(warning["text"], {}).setdefault(entry.label, []).append(warning["scope"])
    notes = list(group.warnings)
    for text, methods in where.items():
        scopes = {label: _scopes(group, found) for label, found in methods.items()}
        if len(methods) == len(group.entries) > 1 and len(set(scopes.values())) == 1:
            notes.append(f"all methods{next(iter(scopes.values()))}: {text}")
        else:
            notes.append(f"{'; '.join(label + scope for label, scope in scopes.items())}: {text}")
    return notes


def _scopes(group: Group, scopes: Sequence[str]) -> str:
    if list(scopes) == ["run"]:
        return ""
    names = [title(s) for s in scopes if s == "overall"]
    subtasks = [s for s in scopes if s != "overall"]
    every = len(group.subtasks) > 1 and set(subtasks) == set(group.subtasks)
    return f" ({', '.join((['every subtask'] if every else [title(s) for s in subtasks]) + names)})"
