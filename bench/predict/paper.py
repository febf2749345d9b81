"""The paper's Table 1 beside what its CR gives on the roofline of its card, a V100.

The paper prints no drafted tokens: of Kangaroo one more than it accepted is taken, CR in all, which is what drafting
until the first rejection costs (its threshold stops near there), and the last goes through the first layers too. Medusa
runs its heads once a step; REST and Lookahead read nothing to draft, and verify up to 64 and 90 rows: a V100 is bound
by memory there. No overhead and no cache is counted; by how much the print lies below is the implementation's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bench import published
from bench.predict.costs import Costs, Draft, card_named, head_share, on_card
from bench.predict.model import predict
from bench.published import PAPER_ORDER
from bench.words import aligned, show

# Vicuna's shape: layers, hidden size, parameters of the whole; the vocabulary is 32000.
SHAPES = {"vicuna-7b": (32, 4096, 6_738_415_616), "vicuna-13b": (40, 5120, 13_015_864_320)}
EXITS = {"vicuna-7b": 2, "vicuna-13b": 3}
VERIFIED = {"rest": 64, "lookahead": 90}  # rows; of Medusa's chain and Kangaroo's about CR


def _costs(model: str, method: str) -> tuple[Costs, Draft]:
    layers, hidden, parameters = SHAPES[model]
    extra = published.adapter_parameters()[method][list(SHAPES).index(model)] if method in ("kangaroo", "medusa") else 0
    head = 2 * 32000 * hidden
    # Of the embedding table, which is as large as the head, a step reads a row.
    info = {"step_bytes": 2 * parameters - head, "dtype": "float16", "extra_parameters": extra, "head_bytes": head}
    share = 1 - (1 - head_share(info)) * EXITS[model] / layers if method == "kangaroo" else 1.0
    draft = Draft(method, method, method in ("kangaroo", "medusa"), share, 0)
    return on_card(card_named("V100"), info, draft), draft


@dataclass(frozen=True)
class Cell:
    """One of the table: the CR and speedup that are printed, and the speedup that is predicted from the CR."""

    cr: float
    printed: float
    predicted: float


def by_row() -> list[dict[str, Any]]:
    """Rows of Table 1: model, method, and `cells` by subtask, without those that the paper does not give."""
    found = []
    for model, method in product(SHAPES, ("kangaroo", "medusa", "lookahead", "rest")):
        costs, draft = _costs(model, method)
        cells = {}
        for subtask, (cr, printed) in published.table1(model, method).items():
            if cr is None or printed is None or subtask not in PAPER_ORDER:
                continue
            drafted = VERIFIED.get(method, 0) - 1 if method in VERIFIED else cr
            cells[subtask] = Cell(cr, printed, predict(np.array([drafted]), np.array([cr]), costs, draft).speedup)
        found.append({"model": model, "method": method, "cells": cells})
    return found


def table() -> str:
    """As text."""
    lines = [["model", "method", "subtask", "CR", "predicted", "printed", "printed by predicted"]]
    for row in by_row():
        for subtask, cell in row["cells"].items():
            figures = show(cell.cr), show(cell.predicted), show(cell.printed), f"{cell.printed / cell.predicted:.0%}"
            lines.append([row["model"], row["method"], subtask, *figures])
    return "\n".join([f"{published.PAPER}, Table 1; predicted: its CR on a V100's roofline", *aligned(lines, left=3)])
