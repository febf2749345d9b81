"""The page's chart of predictions: what recorded steps would give on the roofline of other cards."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from markupsafe import Markup, escape

from bench.predict.costs import Draft, cards, on_card
from bench.predict.model import Prediction, predict
from bench.report.collect import Entry, Group, measured_rows
from bench.report.svg import Canvas, marker, rows_of_bars
from bench.report.tables import title
from methods.errors import UserError


def on_cards(entry: Entry, subtask: str) -> dict[str, Prediction]:
    """By card, from the steps of a subtask; empty where the run does not say what its draft and target read.

    Every step by itself: where some passes are bound by memory and others by compute, the mean step is too cheap.
    """
    row = entry.row(subtask)
    if row is None or row["cr"] is None or row["drafted_per_step"] is None:
        return {}
    answers = entry.run.answers
    asked = answers[~answers.question_id.isin(entry.run.failures.question_id)]
    if subtask != "overall":
        asked = asked[asked.subtask == subtask]
    info = {**entry.run.info, "extra_parameters": entry.metrics["extra_parameters"]}
    draft, step = Draft.of(info), (np.concatenate([*asked.candidates]), np.concatenate([*asked.lengths]))
    found = {}
    for name, card in cards().items():
        with suppress(UserError):  # of what is not known, or not computed on the card; the caption says so
            found[name] = predict(*step, on_card(card, info, draft), draft)
    return found


def predicted_chart(group: Group, subtask: str) -> Markup | None:
    """Bars: the decode speedup measured here; a mark for each card's prediction, the best named."""
    measured = [(e, row) for e, row in measured_rows(group.entries, subtask, "cr") if e.run.method != "vanilla"]
    found = [(entry, row, cards_) for entry, row in measured if (cards_ := on_cards(entry, subtask))]
    if not found:
        return None
    tops = [max(row["decode_speedup"] or 0, *(p.speedup for p in named.values())) for _, row, named in found]
    entries = [entry for entry, _, _ in found]
    canvas = rows_of_bars(
        entries, f"Predicted, {title(subtask)}", max(1.1, 1.25 * max(tops)), "decode speedup, predicted", one=True
    )
    for place, (entry, row, named) in enumerate(found):
        _draw(canvas, canvas.top + 30 * place + 14, entry, row["decode_speedup"], named)
    return canvas.render()


def _draw(canvas: Canvas, y: float, entry: Entry, measured: float | None, named: dict[str, Prediction]) -> None:
    if measured is not None:
        hint = f"{entry.label}: {measured:.3f}, measured here"
        canvas.bar(canvas.x(0), y, canvas.x(measured) - canvas.x(0), 11, f"bar m{entry.index % 12}", hint)
    places: dict[int, list[str]] = {}
    for name, one in named.items():
        places.setdefault(round(canvas.x(one.speedup)), []).append(name)
    for x, there in places.items():
        values = "; ".join(f"{name} {named[name].speedup:.3f}" for name in there)
        canvas.add(f'<path class="reference" d="{marker(3, x, y + 5.5, 4.5)}"><title>'
                   f"{escape(entry.label)}, prediction: {escape(values)}</title></path>")  # fmt: skip
    last = max(places)
    there = places[last]
    words = "all cards" if len(there) == len(cards()) else there[0] if len(there) == 1 else f"{len(there)} cards"
    canvas.text(last + 7, y + 9, words, "tick", "start")
