"""The page's charts as plain SVG: drawn here, coloured by the page's style sheet, so that light and dark both work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from bench.records.frame import CTAR_POSITIONS
from bench.report.collect import PUBLISHED, Entry, Group, ctar_curves, measured_rows
from bench.report.cost_chart import CostChart
from bench.report.tables import title
from bench.words import show

WIDTH = 380  # units; close to a phone's width, so that text keeps its size there
COLOURS = 12  # classes m0..m11 of page.css


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about five of them."""
    values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(value), 10) for value in values if low - 1e-9 <= value <= high + 1e-9]


@dataclass
class Canvas:
    """SVG elements of one chart. x and y map data to units; text is escaped here and nowhere else."""

    height: float
    label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float] = (0.0, 1.0)
    left: float = 36
    right: float = 12
    top: float = 10
    bottom: float = 34
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def add(self, element: str) -> None:
        self.parts.append(element)

    def text(self, x: float, y: float, text: str, kind: str = "tick", anchor: str = "middle") -> None:
        self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.add(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def warn(self, x: float, y: float, hint: str) -> None:
        self.add(f'<text class="warning" x="{x:.1f}" y="{y:.1f}">⚠<title>{escape(hint)}</title></text>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str, hint: str) -> None:
        size = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
        self.add(f'<rect class="{kind}" {size}><title>{escape(hint)}</title></rect>')

    def mark(self, x: float, y: float, entry: Entry, hint: str, kind: str = "") -> None:
        self.add(f'<path class="mark {colour(entry)} {kind}" d="{marker(entry.index, x, y)}">'
                 f"<title>{escape(hint)}</title></path>")  # fmt: skip

    def x_axis(self, values: Sequence[float], name: str, grid: bool = True) -> None:
        base = self.height - self.bottom
        for value in values:
            if grid:
                self.line(self.x(value), self.top, self.x(value), base, "grid")
            self.text(self.x(value), base + 13, f"{value:g}")
        self.text((self.left + WIDTH - self.right) / 2, self.height - 5, name, "axis")

    def y_axis(self, values: Sequence[float], name: str) -> None:
        for value in values:
            self.line(self.left, self.y(value), WIDTH - self.right, self.y(value), "grid")
            self.text(self.left - 5, self.y(value) + 4, f"{value:g}", anchor="end")
        middle = (self.top + self.height - self.bottom) / 2
        self.add(f'<text class="axis" text-anchor="middle" transform="translate(10 {middle:.1f}) rotate(-90)">'
                 f"{escape(name)}</text>")  # fmt: skip

    def render(self) -> Markup:
        head = f'<svg viewBox="0 0 {WIDTH} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
        return Markup(head + "".join(self.parts) + "</svg>")


def colour(entry: Entry) -> str:
    return f"m{entry.index % COLOURS}"


def marker(index: int, x: float, y: float, r: float = 4) -> str:
    """Path of the marker that goes with a method's colour: six shapes, so colour is never the only sign."""
    shape = (index + index // COLOURS) % 6  # where colours begin again, shapes do not
    if shape == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.1), (1.05, 0.85), (-1.05, 0.85)],
        3: [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        4: [(0, 1.1), (1.05, -0.85), (-1.05, -0.85)],
        5: [(-1.1, 0), (0.85, -1.05), (0.85, 1.05)],
    }[shape]
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "z"


def legend_mark(entry: Entry) -> Markup:
    return Markup(
        f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true"><path class="mark {colour(entry)}" '
        f'd="{marker(entry.index, 6, 6)}"/></svg>'
    )


def shorten(text: str, length: int = 52) -> str:
    """Without its middle: labels of one method's runs differ at the end."""
    half = length // 2
    return text if len(text) <= length else f"{text[: half - 1]}…{text[-half:]}"


def ctar_chart(group: Group, subtask: str) -> Markup | None:
    """CTAR(w) in per cent of steps; the paper's curve dotted, where it has one."""
    curves = ctar_curves(group, subtask)
    if not curves:
        return None
    top = max(5.0, max(max(values) for _, _, values in curves) * 1.05)
    canvas = Canvas(230, f"CTAR by position, {title(subtask)}", (0.8, 6.2), (0, top))
    canvas.y_axis(ticks(0, top), "CTAR(w), % of steps")
    canvas.x_axis([float(w) for w in CTAR_POSITIONS], "position w", grid=False)
    for entry, label, values in curves:
        kind = "published" if label.endswith(PUBLISHED) else ""
        points = [(canvas.x(w), canvas.y(v)) for w, v in zip(CTAR_POSITIONS, values, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        canvas.add(f'<path class="curve {colour(entry)} {kind}" d="{path}"/>')
        for w, value, (x, y) in zip(CTAR_POSITIONS, values, points, strict=True):
            canvas.mark(x, y, entry, f"{label}: CTAR({w}) = {value:.1f} %", kind)
    return canvas.render()


def rows_of_bars(entries: Sequence[Entry], label: str, high: float, name: str, one: bool = False) -> Canvas:
    """A chart with a row per entry, whose label stands above its bar, so that long ones fit. one: a line at 1."""
    height = 30 * len(entries) + 44
    canvas = Canvas(height, label, (0, high), left=6, right=14)
    canvas.x_axis(ticks(0, high), name)
    if one:
        canvas.line(canvas.x(1), canvas.top, canvas.x(1), height - canvas.bottom, "one")
    for place, entry in enumerate(entries):
        canvas.text(canvas.left + 2, canvas.top + 30 * place + 10, shorten(entry.label), "name", "start")
    return canvas


def speedup_chart(group: Group, subtask: str) -> Markup | None:
    """Speedup bars with 95 % intervals; the paper's value as a diamond."""
    found = measured_rows(group.entries, subtask, "speedup")
    if not found:
        return None
    published = [e.published.get(subtask, (None, None))[1] if e.comparable else None for e, _ in found]
    beside = dict(zip([e.label for e, _ in found], published, strict=True))
    tops = [max(row["speedup"], row["speedup_high"] or 0, beside[e.label] or 0) for e, row in found]
    top, entries = max(1.1, max(tops) * 1.05), [entry for entry, _ in found]
    canvas = rows_of_bars(entries, f"Speedup, {title(subtask)}", top, "speedup over vanilla", one=True)
    for place, (entry, row) in enumerate(found):
        y = canvas.top + 30 * place + 14
        low, high = row["speedup_low"], row["speedup_high"]
        bounds = f", 95 % interval {low:.3f} to {high:.3f}" if low is not None else ", no interval"
        hint = f"{entry.label}: {row['speedup']:.3f}{bounds}"
        canvas.bar(canvas.x(0), y, canvas.x(row["speedup"]) - canvas.x(0), 11, f"bar {colour(entry)}", hint)
        canvas.line(canvas.x(1), y, canvas.x(1), y + 11, "one")
        if entry.warning(subtask):
            end = max(row["speedup"], high or 0, beside[entry.label] or 0)
            canvas.warn(canvas.x(end) + 8, y + 9, entry.warning(subtask))
        if low is not None:
            canvas.line(canvas.x(low), y + 5.5, canvas.x(high), y + 5.5, "whisker")
            for end in (low, high):
                canvas.line(canvas.x(end), y + 2, canvas.x(end), y + 9, "whisker")
        value = beside[entry.label]
        if value is not None:
            x = canvas.x(value)
            canvas.add(f'<path class="reference" d="{marker(3, x, y + 5.5, 4.5)}"><title>'
                       f"{escape(entry.run.method)}, published: {value:.2f}</title></path>")  # fmt: skip
    return canvas.render()


def split_chart(group: Group, subtask: str) -> Markup | None:
    """Milliseconds per step: draft, verify, overhead; the tick is one vanilla step."""
    found = measured_rows(group.entries, subtask, "verify_ms")
    if not found:
        return None
    high = max(1e-3, *(max(row["step_ms"] or 0, row["baseline_step_ms"] or 0) for _, row in found)) * 1.05
    canvas = rows_of_bars([e for e, _ in found], f"Time per step, {title(subtask)}", high, "milliseconds per step")
    for place, (entry, row) in enumerate(found):
        y, start = canvas.top + 30 * place + 14, 0.0
        for phase in ("draft", "verify", "overhead"):
            value = max(row[f"{phase}_ms"], 0.0)
            hint = f"{entry.label}: {phase} {row[f'{phase}_ms']:.3f} ms per step"
            canvas.bar(canvas.x(start), y, canvas.x(start + value) - canvas.x(start), 11, phase, hint)
            start += value
        if row["baseline_step_ms"] is not None:
            x = canvas.x(row["baseline_step_ms"])
            canvas.line(x, y - 2, x, y + 13, "vanilla-step")
    return canvas.render()


def cost_chart(group: Group, subtask: str) -> Markup | None:
    """Decode speedup against CR. On a line every step costs the same: c target passes beyond its own."""
    found = measured_rows(group.entries, subtask, "cr", "decode_speedup")
    if not found:
        return None
    chart = CostChart.of([row for _, row in found])
    y_range = (chart.low, chart.top)
    canvas = Canvas(250, f"Speedup against CR, {title(subtask)}", (chart.left, chart.right), y_range, left=48, right=40)
    canvas.y_axis(ticks(*y_range), "decode speedup")
    canvas.x_axis(ticks(chart.left, chart.right), "CR, tokens per step", grid=False)
    for c, end, height in chart.lines():
        start = max(chart.left, chart.low * (1 + c))
        x, y = canvas.x(end), canvas.y(height)
        canvas.line(canvas.x(start), canvas.y(start / (1 + c)), x, y, "iso")
        if end < chart.right:
            canvas.text(x, canvas.top - 1, f"c={c:g}", "iso-name")
        else:
            canvas.text(x + 3, y + 4, f"c={c:g}", "iso-name", "start")
    for entry, row in found:
        hint = f"{entry.label}: CR {show(row['cr'], 3)}, decode speedup {show(row['decode_speedup'], 3)}, "
        x, y = canvas.x(row["cr"]), canvas.y(row["decode_speedup"])
        canvas.mark(x, y, entry, hint + f"step cost {show(row['step_cost'], 3)}")
    return canvas.render()
