"""One look for all figures: fonts embedded, colours safe for colour-blind readers, readable at column width."""

from __future__ import annotations

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from bench.report.collect import Entry, Group

# Okabe and Ito (2008), without the yellow that fades on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D", "#7F3C8D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
DOTTED: Any = {"linestyle": ":", "markerfacecolor": "white"}  # a published curve
COLUMN, PAGE = 3.35, 6.9  # inches: one column and both columns of a two-column paper
STYLE: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "figure.dpi": 200,
}


def colour(entry: Entry) -> str:
    return COLOURS[entry.index % len(COLOURS)]


def marker(entry: Entry) -> str:
    return MARKERS[entry.index % len(MARKERS)]


def model_title(group: Group) -> str:
    return plain(f"{group.model} (demonstration)" if group.demonstration else group.model)


def plain(text: str) -> str:
    """A name as matplotlib draws it unchanged: no mathematics, and not hidden from legends."""
    return (" " if text.startswith("_") else "") + " ".join(text.split()).replace("$", r"\$")


def shared_legend(figure: Figure, all_axes: Any) -> None:
    """A legend above the axes, with as many columns as its longest label allows; the figure grows by its rows."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    characters = 19 * figure.get_figwidth()  # that fit in a line at the legend's size
    columns = max(1, min(int(characters / (max(map(len, found), default=0) + 7)), len(found)))
    figure.set_figheight(figure.get_figheight() + 0.14 * (math.ceil(len(found) / columns) - 1))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns)
