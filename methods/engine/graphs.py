"""Captured passes: on CUDA one launch replays what the host took hundreds for.

A capture repeats its kernels on the same memory, so a pass that is to be captured reads and writes tensors that stay
where they are. Elsewhere nothing is captured, and the same rules hold: the work that was handed over once is done
again, and its results are put where the first ones lay. So a pass that does not keep to them shows on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from methods.errors import first_line

Work = Callable[[], tuple[Tensor, ...]]
WARM_UP = 3  # runs before a capture, in which libraries choose their kernels and take their workspaces


class CudaGraph:
    """A pass as one CUDA graph. The pool is memory that graphs share, as they run one after another."""

    def __init__(self, work: Work, pool: Any) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.results = work()

    def replay(self) -> tuple[Tensor, ...]:
        """Launch it."""
        self.graph.replay()
        return self.results


class Repeated:
    """A pass on a device without graphs: done anew each time, into the first results."""

    def __init__(self, work: Work) -> None:
        self.work, self.results = work, work()

    def replay(self) -> tuple[Tensor, ...]:
        """Do the work."""
        for kept, new in zip(self.results, self.work(), strict=True):
            kept.copy_(new)
        return self.results


class Graphs:
    """Passes by key. Captured while `recording`; later, one without a capture is done as it is, and counted."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.recorded = False  # whether there was a recording at all
        self.missed = 0  # passes after it that no capture was there for
        self.refused = ""  # why a capture failed; none is tried after it
        self.is_recording = False
        self._captured: dict[Hashable, CudaGraph | Repeated] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.cuda else None

    def __len__(self) -> int:
        return len(self._captured)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, a pass that is new is captured before it is done."""
        self.is_recording = self.recorded = True
        try:
            yield
        finally:
            self.is_recording = False

    def do(self, key: Hashable, work: Work) -> tuple[Tensor, ...]:
        """The results of a pass; copy what must outlast the next one."""
        if self.is_recording:
            self.capture(key, work)
        found = self._captured.get(key)
        if found is None:
            self.miss()
            return work()
        return found.replay()

    def miss(self) -> None:
        """Count a pass without a capture, unless it is of a warm-up."""
        self.missed += self.recorded and not self.is_recording

    def capture(self, key: Hashable, work: Work) -> None:
        """Make a pass ready; it may be done several times. Where the device refuses, passes are done as they are."""
        if key in self._captured or self.refused:
            return
        try:
            self._captured[key] = CudaGraph(work, self._pool) if self.cuda else Repeated(work)
        except RuntimeError as error:  # a kernel that cannot be captured, or no memory left
            self.refused = first_line(error)
