"""Decode speedup against CR, as the page and the figures draw it alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NAME_WIDTH = 0.13  # of a chart's width, which the name of a line may take


@dataclass(frozen=True)
class CostChart:
    """Decode speedup against CR: its range, and the lines on which every step costs c target passes beyond its own."""

    right: float
    low: float
    top: float
    left: float = 0.9

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> CostChart:
        speedups = [row["decode_speedup"] for row in rows]
        right = max(2.0, max(row["cr"] for row in rows) * 1.08)
        return cls(right, min(0.5, min(speedups) * 0.9), max(1.5, max(speedups) * 1.15))

    def lines(self) -> Iterator[tuple[float, float, float]]:
        """(c, CR, decode speedup) where each line that is seen leaves the chart: at the top, or else on the right.

        One whose name would touch that of the line before, above the chart, is left out.
        """
        free = self.left
        for c in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
            end = min(self.right, self.top * (1 + c))
            if end / (1 + c) > self.low and (end == self.right or end >= free):
                free = end + NAME_WIDTH * (self.right - self.left)
                yield c, end, end / (1 + c)
