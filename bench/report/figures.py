"""The paper's figures as PNG and PDF: fonts embedded, colours safe for colour-blind readers, at column width."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from bench.files import replace_file
from bench.published import PAPER_ORDER
from bench.records.frame import CTAR_POSITIONS
from bench.report.ablations import figure_exit_layer, figure_exit_layer_share, figure_threshold, step_cost
from bench.report.collect import PUBLISHED, Collection, Group, ctar_curves, file_name, measured_rows
from bench.report.servers import crossing_span, load_curve
from bench.report.style import (
    COLOURS,
    COLUMN,
    DOTTED,
    MARKERS,
    PAGE,
    STYLE,
    colour,
    marker,
    model_title,
    plain,
    shared_legend,
)
from bench.report.tables import title
from bench.serve.words import crossing_label


def write_figures(collection: Collection, out: Path) -> list[Path]:
    """Writes every figure that the runs and servers allow below `out`; returns what was written."""
    written = []
    with plt.rc_context(STYLE):
        for group in collection.groups:
            for name, draw in FIGURES.items():
                written += _saved(draw(group), out / f"{name}{group.slug}")
        names = Counter[str]()
        for comparison in collection.servers:
            name = file_name(f"{comparison.metrics['model']}_{comparison.metrics['name']}")
            names[name] += 1
            ending = f"_{names[name]}" if names[name] > 1 else ""
            written += _saved(figure_load(comparison.metrics), out / f"figure_load_{name}{ending}")
    return written


def _saved(figure: Figure | None, stem: Path) -> list[Path]:
    """PNG and PDF. By their own canvases: savefig would draw every figure once more before each."""
    if figure is None:
        return []
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found; it need not be again for each format
    plt.close(figure)
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    replace_file(png, FigureCanvasAgg(figure).print_png)
    pages = FigureCanvasPdf(figure)
    replace_file(pdf, lambda file: pages.print_pdf(file, metadata={"CreationDate": None}))  # same records, same file
    return [png, pdf]


def _ctar_axes(axes: Axes, group: Group, subtask: str) -> None:
    for entry, label, values in ctar_curves(group, subtask):
        look = DOTTED if label.endswith(PUBLISHED) else {}
        axes.plot(CTAR_POSITIONS, values, color=colour(entry), marker=marker(entry), label=plain(label), **look)
    axes.set_xticks(list(CTAR_POSITIONS))


def _from_zero(all_axes: Sequence[Axes]) -> None:
    """One scale that begins at 0 and holds every curve of all axes."""
    tops = [float(np.max(np.asarray(line.get_ydata()))) for axes in all_axes for line in axes.get_lines()]
    for axes in all_axes:
        axes.set_ylim(0, 1.06 * max([1.0, *tops]))


def figure1_ctar(group: Group) -> Figure | None:
    """CTAR decay on math_reasoning (the paper's Figure 1, left), or on the first subtask that was run."""
    if not group.subtasks:
        return None
    subtask = "math_reasoning" if "math_reasoning" in group.subtasks else group.subtasks[0]
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    _ctar_axes(axes, group, subtask)
    _from_zero([axes])
    axes.set(
        xlabel="position $w$", ylabel="CTAR($w$), % of steps", title=f"{plain(title(subtask))}, {model_title(group)}"
    )
    if len(axes.get_lines()) > 6 or max(map(len, axes.get_legend_handles_labels()[1]), default=0) > 24:
        shared_legend(figure, [axes])
    else:
        axes.legend()
    return figure


def figure1_ctar_subtasks(group: Group) -> Figure | None:
    """CTAR decay on every subtask, as small panels with one scale."""
    names = group.subtasks
    if len(names) < 2:
        return None
    rows = math.ceil(len(names) / 3)
    figure, grid = plt.subplots(rows, 3, figsize=(PAGE, 1.75 * rows + 0.4), sharex=True, sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for axes, subtask in zip(grid.flat, names, strict=False):
        _ctar_axes(axes, group, subtask)
        axes.set_title(plain(title(subtask)))
    _from_zero(list(grid.flat[: len(names)]))
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("CTAR($w$), % of steps", fontsize=8)
    figure.supxlabel(f"position $w$; {model_title(group)}", fontsize=8)
    shared_legend(figure, grid.flat)
    return figure


def figure1_speedup(group: Group) -> Figure | None:
    """Speedup bars by subtask and overall with 95 % intervals (the paper's Figure 1, right)."""
    entries = [entry for entry, _ in measured_rows(group.drawn, "overall", "speedup")]
    if not entries:
        return None
    names = [*sorted(group.subtasks, key=[*PAPER_ORDER, *group.subtasks].index), "overall"]
    wide = len(entries) * len(names) > 42
    figure, axes = plt.subplots(figsize=(PAGE if wide else COLUMN, 2.4), layout="constrained")
    width = 0.8 / len(entries)
    for number, entry in enumerate(entries):
        for place, subtask in enumerate(names):
            row = entry.row(subtask)
            if row is None or row["speedup"] is None:
                continue
            x = place + (number - (len(entries) - 1) / 2) * width
            axes.bar(x, row["speedup"], width * 0.92, color=colour(entry), label=plain(entry.label),
                     hatch="//" if entry.index >= len(COLOURS) else None, edgecolor="white", linewidth=0.3)  # fmt: skip
            top = row["speedup_high"] or row["speedup"]
            if entry.warning(subtask):
                axes.annotate("†", (x, top), xytext=(0, 1), textcoords="offset points", fontsize=6, ha="center")
            if row["speedup_low"] is not None:
                axes.plot([x, x], [row["speedup_low"], row["speedup_high"]], color="#222222", linewidth=0.7)
            beside = entry.published.get(subtask) if entry.comparable else None
            if beside and beside[1] is not None:
                axes.plot(x, beside[1], marker="_", color="black", markersize=6, linestyle="none",
                          label="published")  # fmt: skip
    axes.axhline(1, color="#222222", linewidth=0.6)
    axes.set_xticks(
        range(len(names)),
        [plain(title(s)) for s in names],
        rotation=0 if wide else 30,
        ha="center" if wide else "right",
    )
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="speedup over vanilla", title=model_title(group))
    if axes.texts:
        axes.text(1, 1, "† with a warning", transform=axes.transAxes, fontsize=6, ha="right", va="bottom")
    shared_legend(figure, [axes])
    return figure


def figure_load(found: Mapping[str, Any]) -> Figure | None:
    """Speedup of a pair of servers and ratio of their throughputs by requests at a time, with 95 % intervals.

    found: the pair's metrics. The bar on the line at 1 is the interval of the load at which the speedup falls to 1, the
    stroke in it that load. Only the throughputs stand aside, so that the speedup's curve meets 1 where the stroke is.
    """
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    for number, key in enumerate(("speedup", "throughput_ratio")):
        shift = 1.06**number  # side by side, so that both intervals are seen
        rows = [row for row in found["levels"] if row[key] is not None]
        if rows:
            x, y = load_curve(rows, key)
            axes.plot(x * shift, y, color=COLOURS[number])
        for row in rows:
            axes.plot(row["level"] * shift, row[key], color=COLOURS[number], marker=MARKERS[number], linestyle="none",
                      label=key.replace("_", " "))  # fmt: skip
            if row[f"{key}_low"] is not None:
                ends = row[f"{key}_low"], row[f"{key}_high"]
                axes.plot([row["level"] * shift] * 2, ends, color=COLOURS[number], linewidth=0.7)
    if not axes.get_lines():
        plt.close(figure)
        return None
    levels = sorted(row["level"] for row in found["levels"])
    axes.axhline(1, color="#222222", linewidth=0.6)
    if span := crossing_span(found["crossing"]):
        axes.plot(span, [1, 1], color=COLOURS[0], linewidth=3, alpha=0.4, solid_capstyle="butt",
                  label=crossing_label(found["crossing"]))  # fmt: skip
        if at := found["crossing"]["at"]:
            axes.plot(at, 1, color=COLOURS[0], marker="|", markersize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    label = " (demonstration)" if found["demonstration"] else ""
    axes.set(xlabel="requests at a time", ylabel="gain over the plain server",
             title=plain(f"{found['model']}{label}, {found['name']} on {found['engine']}"))  # fmt: skip
    shared_legend(figure, [axes])
    return figure


FIGURES: dict[str, Callable[[Group], Figure | None]] = {
    "figure1_ctar": figure1_ctar,
    "figure1_ctar_subtasks": figure1_ctar_subtasks,
    "figure1_speedup": figure1_speedup,
    "figure_exit_layer": figure_exit_layer,
    "figure_exit_layer_share": figure_exit_layer_share,
    "figure_threshold": figure_threshold,
    "step_cost": step_cost,
}
