"""What an experiment is going to take: downloads, and time. Said before it begins, and rough."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bench.assembly import hollow
from bench.binder import Bound, bind
from bench.places import locate
from bench.questions.choice import chosen
from bench.questions.sets import find
from bench.settings import Run
from bench.sources import Source
from bench.words import plural
from methods.engine.checkpoint import pick_device
from methods.engine.hub import pending_bytes, resolve

ANSWER_TOKENS = 300  # of a turn, as chat models answer Spec-Bench on average; fewer where max_new_tokens is less
TEXT = "text"  # key of what a datastore is made of
ELSEWHERE = re.compile("gdrive:|[^/]+/[^/]+$")  # folders of Google Drive, ids of the hub
BANDWIDTH = {"cuda": 1e12, "cpu": 2e10}  # bytes/s that weights are read with: a data-centre GPU, a desktop


def outlook(cells: Sequence[Run]) -> Iterator[str]:
    """One line on what will be downloaded, and one on the time. Raises UserError for questions that cannot be had."""
    names = dict.fromkeys((cell.model.path, cell.model.revision) for cell in cells)
    files = [file for cell in cells for file in bind(cell.method, "method", model=cell.model.name).sources()]
    names |= {(file, None): None for file in files if isinstance(file, str) and ELSEWHERE.match(file)}
    sizes = {path: pending_bytes(locate(path), revision) for path, revision in names}
    texts = [made.arguments for made in files if isinstance(made, Bound) and TEXT in made.arguments]
    for text in texts:
        source = Source(text[TEXT], text.get("revision"), text.get("sha256"), "method", TEXT)
        sizes[source.source] = source.pending_bytes()
    known = sum(size for size in sizes.values() if size)
    unknown = [path for path, size in sizes.items() if size is None]
    parts = [f"{known / 1e9:.1f} GB from the hub"] if known else []
    parts += [f"of unknown size: {', '.join(unknown)}"] if unknown else []
    yield f"to download: {'; '.join(parts) or 'nothing'}"
    minutes = max(1, round(sum(map(_seconds, cells)) / 60))
    time = plural("minute", minutes) if minutes < 90 else plural("hour", round(minutes / 60))
    rate = f"{_rate(cells[0]) / 1e9:.0f} GB/s"
    yield f"to measure: about {time}, if a token takes as long as reading the weights at {rate}"


def _seconds(cell: Run) -> float:
    """Of both sides, as if the method were no faster than vanilla."""
    turns = sum(len(question.turns) for question in chosen(cell, find(cell.questions, cell.data.path), []))
    sides = 2 if cell.baseline == "paired" else 1
    tokens = turns * min(ANSWER_TOKENS, cell.max_new_tokens) * cell.repeats * sides
    folder = resolve(locate(cell.model.path), cell.model.revision, weights=False)
    return tokens * hollow(cell.model, folder).step_bytes / _rate(cell)


def _rate(cell: Run) -> float:
    return BANDWIDTH[pick_device(cell.model.device).type]
