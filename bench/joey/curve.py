"""The loss curve of joey's base training as a small picture."""

from __future__ import annotations

import csv
from pathlib import Path

from bench.files import replace_file


def draw(log: Path, picture: Path) -> None:
    """Draw training loss and held-out answer loss of a base_loss.csv over the tokens seen."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6, 3.5), dpi=100)
    axes = figure.subplots()
    labels = {"loss": "training (prompt tokens weighted less)", "heldout_answer_loss": "held-out answers"}
    for name, label in labels.items():
        kept = [row for row in rows if row[name]]
        axes.plot([int(row["tokens"]) / 1e6 for row in kept], [float(row[name]) for row in kept], label=label, lw=1)
    axes.set(xlabel="training tokens (millions)", ylabel="loss (nats per token)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    replace_file(picture, lambda file: figure.savefig(file, format="png"), "--out")
