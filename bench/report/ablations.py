"""Kangaroo's ablations as the paper draws them, from whatever runs vary the exit layer, gamma or eta; and step cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import published
from bench.records.identity import file_keys
from bench.report.collect import Group, identity, measured_rows
from bench.report.cost_chart import CostChart
from bench.report.style import COLOURS, COLUMN, DOTTED, MARKERS, colour, marker, model_title, plain, shared_legend

FIGURES = ("cr", "speedup", "speedup_low", "speedup_high")
FIGURE_NAMES = {"cr": "compression ratio", "speedup": "speedup over vanilla"}


SWEPT = ("exit_layer", "gamma", "eta")


def kangaroo_settings(group: Group) -> pd.DataFrame:
    """exit_layer, gamma, eta and overall CR and speedup (with interval) of every Kangaroo run; one row a run.

    share: the exit layer in per cent of the model's layers, NaN for runs that did not record these; draft: hashes of
    the draft's weights; rest: every other setting, as text.
    """
    rows = []
    for entry in group.entries:
        method = entry.run.config.get("method")
        if entry.architecture != "kangaroo" or not isinstance(method, dict):
            continue
        overall = entry.metrics["overall"]
        settings = {key: _number(method.get(key)) for key in SWEPT}
        figures = {key: _number(overall[key]) for key in FIGURES}
        figures["share"] = 100 * settings["exit_layer"] / (_number(entry.run.info.get("layers")) or float("nan"))
        hashes = entry.run.info.get("checkpoint_sha256") or {}
        draft = {name: digest for name, digest in hashes.items() if not name.startswith("target/")}
        varied = {*file_keys(entry.run.info), *(f"method.{key}" for key in SWEPT)}
        rest = {key: value for key, value in identity(entry.run).items() if key not in varied}
        same = {"draft": json.dumps(draft, sort_keys=True), "rest": json.dumps(rest, sort_keys=True, default=str)}
        rows.append(settings | figures | same | {"started": str(entry.run.info.get("started"))})
    return pd.DataFrame(rows, columns=[*SWEPT, *FIGURES, "share", "draft", "rest", "started"])


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
    return _exit_layers(group, "exit_layer", r"exit layer $\ell$")


def figure_exit_layer_share(group: Group) -> Figure | None:
    """The same by the share of the layers, in which models of different depth compare."""
    return _exit_layers(group, "share", r"exit layer $\ell$, in per cent of the layers")


def _exit_layers(group: Group, x: str, name: str) -> Figure | None:
    sweep = _largest_sweep(kangaroo_settings(group), ["gamma", "eta", "rest"], ["exit_layer"]).sort_values("exit_layer")
    if not sweep[x].count():
        return None
    beside, name_beside = _beside(group, published.exit_layers)
    figure, panels = _panels(group)
    _curves(panels, 0, x, (sweep, "measured"), (beside, name_beside))
    panels[1].set_xlabel(name)
    panels[0].legend()
    return figure


def figure_threshold(group: Group) -> Figure | None:
    """CR and speedup against eta, one curve per gamma, exit layer equal; the paper's curves dotted."""
    sweep = _largest_sweep(kangaroo_settings(group), ["exit_layer", "draft", "rest"], ["gamma", "eta"])
    if not len(sweep):
        return None
    beside, name_beside = _beside(group, published.thresholds)
    figure, panels = _panels(group)
    for place, gamma in enumerate(sorted({*sweep.gamma, *beside.gamma})):
        mine, theirs = (rows[rows.gamma == gamma].sort_values("eta") for rows in (sweep, beside))
        label = rf"$\gamma={gamma:g}$"
        _curves(panels, place, "eta", (mine, label), (theirs, f"{label}, {name_beside}"))
    panels[1].set_xlabel(r"confidence threshold $\eta$")
    # Above the panels: six curves leave no corner of them free.
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda n: "published" in labels[n])
    figure.legend([handles[n] for n in order], [labels[n] for n in order], loc="outside upper center",
                  ncols=2 if len(beside) else 3)  # fmt: skip
    return figure


def _beside(group: Group, read: Callable[[str], pd.DataFrame]) -> tuple[pd.DataFrame, str]:
    """The paper's curve for the model, or for Vicuna-7B where it has none, and what to call it."""
    rows, name = read(group.model), "published"
    if not len(rows):
        rows, name = read("vicuna-7b"), "Vicuna-7B, published"
    return rows.rename(columns={"compression_ratio": "cr"}), name


def _panels(group: Group) -> tuple[Figure, list[Axes]]:
    figure, panels = plt.subplots(2, 1, figsize=(COLUMN, 3.9), sharex=True, layout="constrained")
    panels[0].set_title(model_title(group))
    for axes, name in zip(panels, FIGURE_NAMES.values(), strict=True):
        axes.set_ylabel(name)
    return figure, list(panels)


def _curves(
    panels: list[Axes], place: int, x: str, measured: tuple[pd.DataFrame, str], beside: tuple[pd.DataFrame, str]
) -> None:
    """CR and speedup of the runs and their label, with intervals; the paper's rows and their label dotted."""
    look: Any = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
    (mine, label), (theirs, label_beside) = measured, beside
    for axes, name in zip(panels, FIGURE_NAMES, strict=True):
        if len(mine):
            known = mine.dropna(subset=[name])
            axes.plot(known[x], known[name], **look, label=label)
        if len(theirs):
            axes.plot(theirs[x], theirs[name], **look, **DOTTED, label=label_beside)
    bounded = mine.dropna(subset=["speedup", "speedup_low", "speedup_high"])
    panels[1].vlines(bounded[x], bounded.speedup_low, bounded.speedup_high, color=look["color"], linewidth=0.7)


def step_cost(group: Group) -> Figure | None:
    """Decode speedup against CR; on a dashed line every step costs c target passes beyond its own."""
    found = measured_rows(group.drawn, "overall", "cr", "decode_speedup")
    if not any(entry.run.method != "vanilla" for entry, _ in found):
        return None
    figure, axes = plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")
    chart = CostChart.of([row for _, row in found])
    for c, end, height in chart.lines():
        axes.plot(
            [0, chart.right], [0, chart.right / (1 + c)], color="#888888", linewidth=0.6, linestyle="--", marker=""
        )
        offset, align = ((0, 2), "center") if end < chart.right else ((2, -2), "left")
        axes.annotate(f"$c={c:g}$", (end, height), xytext=offset, textcoords="offset points", fontsize=6,
                      color="#555555", ha=align, annotation_clip=False)  # fmt: skip
    for entry, row in found:
        axes.plot(row["cr"], row["decode_speedup"], linestyle="none", marker=marker(entry), color=colour(entry),
                  markersize=5, label=plain(entry.label), clip_on=False)  # fmt: skip
    axes.set(xlim=(chart.left, chart.right), ylim=(chart.low, chart.top))
    c_said = "$c$: what a step costs beyond its own target pass, in passes"
    axes.set(xlabel=f"compression ratio (tokens per step)\n{c_said}", ylabel="decode speedup")
    axes.set_title(model_title(group), pad=12)
    shared_legend(figure, [axes])
    return figure
