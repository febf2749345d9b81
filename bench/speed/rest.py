"""python -m bench.speed.rest [tokens=10000000] [lookups=2000]: building a REST datastore, and looking things up.

On one core. The text is generated: words as frequent as rank^-1, a third of it phrases that stood there before, so that
contexts match over every span. Wanted (REST is no use if it is slow): building at 5 M tokens/s, a lookup in 300 µs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.command import again, command, numbers

VOCABULARY = 32_000
DOCUMENT_TOKENS = 600
LOOKUP = {"depth": 10, "occurrences": 5_000, "nodes": 64}  # as in conf/method/rest.yaml, which a test holds to it
SPANS = range(2, 17)


@dataclass(frozen=True)
class Taken:
    """Time of one piece of work. On a busy machine the processor's own is less than what passed."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Measured:
    """What one run found."""

    tokens: int
    sort: list[Taken]  # the suffix array, in each round
    write: list[Taken]  # the whole file, suffix array included
    file_bytes: int
    lookup_us: list[float]  # longest match and candidates, of every lookup
    spans: list[int]  # matched; 0: nothing
    occurrences: list[int]


def text(tokens: int, seed: int = 0) -> NDArray[np.int32]:
    """Generated text with SEPARATOR at the end of each document."""
    from methods.datastore import SEPARATOR

    random = np.random.default_rng(seed)
    chances = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    drawn = np.searchsorted(chances / chances[-1], random.random(tokens)).astype(np.int32)
    count = tokens // 60  # phrases of 20 tokens on average: a third of the text
    sizes = random.integers(5, 36, count)
    places = np.sort(random.integers(tokens // 100 + 40, max(tokens - 40, tokens // 100 + 41), count))
    sources = (random.random(count) * (places - 40)).astype(np.int64)
    for place, source, size in zip(places.tolist(), sources.tolist(), sizes.tolist(), strict=True):
        drawn[place : place + size] = drawn[source : source + size]
    drawn[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = SEPARATOR
    drawn[-1] = SEPARATOR
    return drawn


def contexts(tokens: NDArray[np.int32], count: int, seed: int = 1) -> Iterator[list[int]]:
    """Contexts whose end, of 0 to 16 tokens, stands somewhere in the text."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        known = int(random.integers(0, 17))
        at = int(random.integers(0, len(tokens) - 16))
        unknown = random.integers(0, VOCABULARY, 16 - known).tolist()
        yield [*unknown, *tokens[at : at + known].tolist()]


def measure(tokens: int, lookups: int, rounds: int = 3) -> Measured:
    """Build a datastore in a temporary folder and look up contexts in it, on one core."""
    from bench.train.rest import suffix_array, write
    from methods.datastore import Datastore
    from methods.engine.vocabulary import Vocabulary

    with one_core(), tempfile.TemporaryDirectory() as folder:
        content, file = text(tokens), Path(folder) / "rest.safetensors"
        suffix_array(content[: tokens // 10])  # loads the library
        sort, written = [], []
        for _ in range(rounds):
            sort.append(_taken(lambda: suffix_array(content)))
            written.append(_taken(lambda: write(file, content, Vocabulary(VOCABULARY, "generated"))))
        store = Datastore(file)
        times, spans, occurrences = [], [], []
        for number, context in enumerate(contexts(content, lookups + lookups // 10)):
            started = time.perf_counter()
            match = store.longest_match(context, SPANS)
            if match is not None:
                store.candidates(*match, **LOOKUP)
            taken = time.perf_counter() - started
            if number >= lookups // 10:  # the first ones read the file's pages from the disk
                times.append(1e6 * taken)
                spans.append(match[0] if match else 0)
                occurrences.append(match[2] - match[1] if match else 0)
        return Measured(tokens, sort, written, file.stat().st_size, times, spans, occurrences)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _taken(work: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def report(found: Measured) -> str:
    """The figures as text, each beside what is wanted."""
    low, middle, high = (float(np.percentile(found.lookup_us, percent)) for percent in (5, 50, 95))
    hits = [count for count in found.occurrences if count]

    def rate(rounds: list[Taken]) -> str:
        wall, cpu = ([found.tokens / t / 1e6 for t in times] for times in zip(*map(astuple, rounds), strict=True))
        best = f"{max(wall):6.2f} M tokens/s, best of {len(rounds)} rounds (slowest {min(wall):.2f}"
        return f"{best}; by CPU time {max(cpu):.2f})"

    return "\n".join(
        [
            f"REST on {found.tokens / 1e6:g} M generated tokens, one core, other work on it included",
            f"suffix array  {rate(found.sort)}",
            f"datastore     {rate(found.write)}, {found.file_bytes / 1e6:.0f} MB; wanted: 5 or more",
            f"lookup        {middle:6.0f} us median, {low:.0f} to {high:.0f} (5 to 95 %); wanted: 300 or less",
            f"matches       {len(hits):,} of {len(found.spans):,} contexts, "
            f"span {statistics.median(found.spans):g} median, {statistics.median(hits or [0]):g} places median",
        ]
    )


@command(again)
def main(arguments: Sequence[str]) -> int:
    """Measure and print. Returns 0, or 2 for an argument that is none."""
    print(report(measure(**numbers(arguments, {"tokens": 10_000_000, "lookups": 2_000}, least=1_000))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
