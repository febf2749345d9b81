"""Kangaroo's ablations as the paper draws them, from whatever runs vary the exit layer, gamma or eta; and step cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.records.identity import file_keys
from bench.report import published
from bench.report.collect import Entry, Group, identity
from bench.report.style import COLOURS, COLUMN, MARKERS, colour, marker, model_title, plain, shared_legend

FIGURES = ("cr", "speedup", "speedup_low", "speedup_high")
FIGURE_NAMES = {"cr": "compression ratio", "speedup": "speedup over vanilla"}


SWEPT = ("exit_layer", "gamma", "eta")


def kangaroo_settings(group: Group) -> pd.DataFrame:
    """exit_layer, gamma, eta and overall CR and speedup (with interval) of every Kangaroo run; one row a run.

    draft: hashes of the draft's weights; rest: every other setting, as text.
    """
    rows = []
    for entry in group.entries:
        method = entry.run.config.get("method")
        if entry.architecture != "kangaroo" or not isinstance(method, dict):
            continue
        overall = entry.metrics["overall"]
        settings = {key: _number(method.get(key)) for key in SWEPT}
        figures = {key: _number(overall[key]) for key in FIGURES}
        hashes = entry.run.info.get("checkpoint_sha256") or {}
        draft = {name: digest for name, digest in hashes.items() if not name.startswith("target/")}
        varied = {*file_keys(entry.run.info), *(f"method.{key}" for key in SWEPT)}
        rest = {key: value for key, value in identity(entry.run).items() if key not in varied}
        same = {"draft": json.dumps(draft, sort_keys=True), "rest": json.dumps(rest, sort_keys=True, default=str)}
        rows.append(settings | figures | same | {"started": str(entry.run.info.get("started"))})
    return pd.DataFrame(rows, columns=[*SWEPT, *FIGURES, "draft", "rest", "started"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")


def _largest_sweep(runs: pd.DataFrame, fixed: list[str], varying: list[str]) -> pd.DataFrame:
    """The runs that share `fixed` and differ most in `varying`, of several in one place the latest.

    Empty unless at least two settings differ.
    """
    latest = runs.dropna(subset=varying).sort_values("started").drop_duplicates([*fixed, *varying], keep="last")
    sweeps = [sweep for _, sweep in latest.groupby(fixed, dropna=False)]
    best = max(sweeps, key=len, default=runs.iloc[:0])
    return best if len(best) > 1 else runs.iloc[:0]


def figure_exit_layer(group: Group) -> Figure | None:
    """CR and speedup against the exit layer, other settings equal; the paper's curve dotted."""
    sweep = _largest_sweep(kangaroo_settings(group), ["gamma", "eta", "rest"], ["exit_layer"]).sort_values("exit_layer")
    if not len(sweep):
        return None
    beside, name_beside = _beside(group, published.exit_layers)
    figure, panels = _panels(group)
    for axes, name in zip(panels, FIGURE_NAMES, strict=True):
        _curve(axes, sweep, "exit_layer", name, COLOURS[0], MARKERS[0], "measured")
        if len(beside):
            theirs = beside.compression_ratio if name == "cr" else beside.speedup
            _dotted(axes, beside.exit_layer, theirs, COLOURS[0], MARKERS[0], name_beside)
    panels[1].set_xlabel(r"exit layer $\ell$")
    panels[0].legend()
    return figure


def figure_threshold(group: Group) -> Figure | None:
    """CR and speedup against eta, one curve per gamma, exit layer equal; the paper's curves dotted."""
    sweep = _largest_sweep(kangaroo_settings(group), ["exit_layer", "draft", "rest"], ["gamma", "eta"])
    if not len(sweep):
        return None
    beside, name_beside = _beside(group, published.thresholds)
    figure, panels = _panels(group)
    gammas = sorted({*sweep.gamma, *beside.gamma})
    for axes, name in zip(panels, FIGURE_NAMES, strict=True):
        for place, gamma in enumerate(gammas):
            paint, sign = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            mine = sweep[sweep.gamma == gamma].sort_values("eta")
            if len(mine):
                _curve(axes, mine, "eta", name, paint, sign, rf"$\gamma={gamma:g}$")
            theirs = beside[beside.gamma == gamma]
            if len(theirs):
                values = theirs.compression_ratio if name == "cr" else theirs.speedup
                _dotted(axes, theirs.eta, values, paint, sign, rf"$\gamma={gamma:g}$, {name_beside}")
    panels[1].set_xlabel(r"confidence threshold $\eta$")
    # Above the panels: six curves leave no corner of them free.
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda n: "published" in labels[n])
    figure.legend([handles[n] for n in order], [labels[n] for n in order], loc="outside upper center",
                  ncols=2 if len(beside) else 3)  # fmt: skip
    return figure


def _beside(group: Group, read: Callable[[str], pd.DataFrame]) -> tuple[pd.DataFrame, str]:
    """The paper's curve for the model, or for Vicuna-7B where it has none, and what to call it."""
    rows = read(group.model)
    return (rows, "published") if len(rows) else (read("vicuna-7b"), "Vicuna-7B, published")


def _panels(group: Group) -> tuple[Figure, list[Axes]]:
    figure, panels = plt.subplots(2, 1, figsize=(COLUMN, 3.9), sharex=True, layout="constrained")
    panels[0].set_title(model_title(group))
    for axes, name in zip(panels, FIGURE_NAMES.values(), strict=True):
        axes.set_ylabel(name)
    return figure, list(panels)


def _curve(axes: Axes, rows: pd.DataFrame, x: str, name: str, paint: str, sign: str, label: str) -> None:
    known = rows.dropna(subset=[name])
    axes.plot(known[x], known[name], color=paint, marker=sign, label=label)
    if name == "speedup":
        bounded = known.dropna(subset=["speedup_low", "speedup_high"])
        axes.vlines(bounded[x], bounded.speedup_low, bounded.speedup_high, color=paint, linewidth=0.7)


def _dotted(axes: Axes, x: Iterable[float], y: Iterable[float], paint: str, sign: str, label: str) -> None:
    axes.plot(list(x), list(y), color=paint, marker=sign, linestyle=":", markerfacecolor="white", label=label)


def step_cost(group: Group) -> Figure | None:
    """Decode speedup against CR; on a dashed line every step costs c target passes beyond its own."""
    found = [(entry, row) for entry in group.drawn if (row := entry.metrics["overall"])["decode_speedup"] and row["cr"]]
    if not any(entry.run.method != "vanilla" for entry, _ in found):
        return None
    figure, axes = plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")
    right = max(2.0, max(row["cr"] for _, row in found) * 1.08)
    top = max(1.5, max(row["decode_speedup"] for _, row in found) * 1.15)
    low = min(0.5, min(row["decode_speedup"] for _, row in found) * 0.9)
    for c in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        axes.plot([0, right], [0, right / (1 + c)], color="#888888", linewidth=0.6, linestyle="--", marker="")
        inside = right / (1 + c) > top
        place = (top * (1 + c), top) if inside else (right, right / (1 + c))
        if place[1] > low:
            offset, align = ((0, 2), "center") if inside else ((2, -2), "left")
            axes.annotate(f"$c={c:g}$", place, xytext=offset, textcoords="offset points", fontsize=6,
                          color="#555555", ha=align, annotation_clip=False)  # fmt: skip
    _points(axes, found)
    axes.set(xlim=(0.9, right), ylim=(low, top), xlabel="compression ratio (tokens per step)", ylabel="decode speedup")
    axes.set_title(model_title(group), pad=12)
    shared_legend(figure, [axes])
    return figure


def _points(axes: Axes, found: list[tuple[Entry, dict[str, Any]]]) -> None:
    for entry, row in found:
        axes.plot(row["cr"], row["decode_speedup"], linestyle="none", marker=marker(entry), color=colour(entry),
                  markersize=5, label=plain(entry.label))  # fmt: skip
