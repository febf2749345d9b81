"""The training log: CSV beside the weights, and a figure of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from bench.files import replace_file, replace_text


@dataclass(frozen=True)
class Point:
    """Means since the point before, or over the held-out conversations. Losses in nats a position."""

    step: int
    part: str  # train | held_out
    tokens: int  # trained on so far, prompts included
    loss: float
    agreement: float  # share of positions where the draft's top token is the target's
    acceptance: float  # mean of sum min(p, q)
    learning_rate: float
    tokens_per_s: float | None = None


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """The whole log, atomically replaced."""
    cells = [[f"{v:.6g}" if isinstance(v, float) else v for v in vars(point).values()] for point in points]
    table = pd.DataFrame(cells, columns=[field.name for field in fields(Point)], dtype=object)
    replace_text(path, table.to_csv(index=False, lineterminator="\n"))


def draw(path: Path, points: Sequence[Point], title: str) -> None:
    """Loss on the left, agreement and acceptance on the right, training and held-out conversations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for part, style in (("train", "-"), ("held_out", "o--")):
        chosen = [p for p in points if p.part == part]
        million = [p.tokens / 1e6 for p in chosen]
        name = part.replace("_", "-")
        panels[0].plot(million, [p.loss for p in chosen], style, label=name, markersize=4)
        panels[1].plot(million, [p.agreement for p in chosen], style, label=f"top-1 agreement, {name}", markersize=4)
        panels[1].plot(million, [p.acceptance for p in chosen], style, label=f"Σ min(p, q), {name}", markersize=4)
    panels[0].set_ylabel("cross-entropy (nats)")
    panels[1].set_ylabel("agreement with the target")
    for panel in panels:
        panel.set_xlabel("tokens (millions)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title)
    replace_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))
