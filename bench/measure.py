"""The only clock: one generation, timed as a whole and by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.gauge import Gauge
from methods.decoder import Generation, Phases

Clock = Callable[[], float]


class Generator(Protocol):
    """Whatever can be measured: the engine's Decoder, or another library's generate."""

    context: int

    def generate(self, prompt: torch.Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation: ...


@dataclass(frozen=True)
class Timed:
    """One measured generation. Times in seconds; wall includes the three phases, and what is left is overhead."""

    generation: Generation
    wall_s: float
    prefill_s: float
    draft_s: float
    verify_s: float
    # Read by a Gauge around the turn; None where there is none, or the device does not say.
    peak_memory_bytes: int | None = None  # of this side, the target's weights included
    energy_millijoules: int | None = None  # of the whole card
    sm_mhz: int | None = None  # this and what follows: as the turn ended
    memory_mhz: int | None = None
    temperature_c: int | None = None
    throttled: str | None = None  # why clocks were low, or "none"
    uncaptured_passes: int | None = None  # that the engine had no graph for, where it has graphs and some were lacking


class _CpuSpan:
    """Adds up the time spent inside."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.total = clock, 0.0

    def __enter__(self) -> None:
        self.started = self.clock()

    def __exit__(self, *error: object) -> None:
        self.total += self.clock() - self.started

    def seconds(self) -> float:
        return self.total


class _CudaSpan:
    """Marks its ends in the GPU's stream; they are read after the turn, so that marking synchronises nothing."""

    def __init__(self) -> None:
        self.marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        ends = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        ends[0].record()
        self.marks.append(ends)

    def __exit__(self, *error: object) -> None:
        self.marks[-1][1].record()

    def seconds(self) -> float:
        return sum(start.elapsed_time(end) for start, end in self.marks) / 1e3


class PhaseTimer:
    """Seconds of one turn by phase, on a CPU by the clock, on a GPU by events."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        cuda = device.type == "cuda"
        self.spans = {name: _CudaSpan() if cuda else _CpuSpan(clock) for name in ("prefill", "draft", "verify")}

    def prefill(self) -> AbstractContextManager[None]:
        return self.spans["prefill"]

    def draft(self) -> AbstractContextManager[None]:
        return self.spans["draft"]

    def verify(self) -> AbstractContextManager[None]:
        return self.spans["verify"]


def timed_generation(
    generator: Generator,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
    gauge: Gauge | None = None,
    side: str = "",
) -> Timed:
    """Generate once. wall runs from prompt ids on the device to output ids on the host, synchronised at both ends.

    gauge: what else is read of the device, before and behind that, for this side.
    """
    cuda = device.type == "cuda"
    prompt = torch.tensor(prompt_ids, dtype=torch.int64, device=device)
    timer = PhaseTimer(device, clock)
    if cuda:
        torch.cuda.synchronize(device)
    if gauge is not None:
        gauge.begin(side)
    started = clock()
    generation = generator.generate(prompt, max_new_tokens, timer)
    if cuda:
        torch.cuda.synchronize(device)
    wall_s = clock() - started
    seconds: dict[str, Any] = {f"{name}_s": span.seconds() for name, span in timer.spans.items()}
    return Timed(generation, wall_s, **seconds, **(gauge.end() if gauge else {}))
