"""The engine whose units have fixed shapes, so that a GPU can be handed each as one captured graph.

Rows are filled up to ROWS, the cache is read up to a bucket of slots under a mask, and everything that differs between
two passes of one shape stands in buffers: inputs, positions, the slots that are written and what each row sees. Passes
over a prompt, and of more rows than the last of ROWS, are the eager engine's.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from methods.engine.attention import Mask
from methods.engine.graphs import Graphs
from methods.engine.kv_cache import KVCache, Places
from methods.engine.llama import Llama, ModelConfig, Weights
from methods.engine.unit import Caches, Rows, Unit

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SLOT_ALIGNMENT = 64  # slots of a cache, so that rows of a mask begin where the GPU's kernels want them
FIRST_BUCKET = 256  # slots; each bucket is twice the one before, the last is the whole cache


def row_bucket(rows: int) -> int:
    """The number of rows that so many are filled up to."""
    return next(bucket for bucket in ROWS if bucket >= rows)


def slot_buckets(slots: int) -> list[int]:
    """How many of a cache's slots may be read, ascending."""
    sizes = [FIRST_BUCKET]
    while sizes[-1] < slots:
        sizes.append(sizes[-1] * 2)
    return [*sizes[:-1], slots]


class SlotCache(KVCache):
    """A cache whose storage stays for the next one of its shape, so that what was captured over it stays of use.

    One slot more than can be read takes what rows that only fill up would write. rows: most rows of a pass.
    """

    def __init__(self, storage: Tensor, capacity: int, rows: int) -> None:
        super().__init__(storage, capacity)
        self.rows, self.spare = rows, storage.shape[3] - 1
        self.buckets = slot_buckets(self.spare)
        self._used = 0

    def truncate(self, length: int) -> None:
        """As ever; remembers how far there may be something behind the new end."""
        self._used = max(self._used, *self.lengths)
        super().truncate(length)

    def reset(self) -> None:
        """Forget the sequence, numbers included: a masked slot must be finite, for -inf and NaN add up to NaN."""
        super().reset()
        self.storage[:, :, :, : self._used].zero_()
        self._used = 0


Shapes = tuple[tuple[torch.Size, torch.dtype], ...]  # of a unit's inputs, a row of each


class Frame:
    """What a pass of one shape reads, filled anew for each."""

    def __init__(self, rows: int, bucket: int, inputs: Shapes, device: torch.device) -> None:
        self.inputs = [torch.zeros(rows, *shape, dtype=dtype, device=device) for shape, dtype in inputs]
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slots = torch.zeros(rows, dtype=torch.int64, device=device)  # where the rows' keys and values go
        self.sees = torch.zeros(rows, bucket, dtype=torch.bool, device=device)
        self.sees[:, 0] = True  # a row that sees nothing gives no numbers
        self.order = torch.arange(bucket, device=device)
        self.count, self.end = rows, self.order[rows - 1 : rows].clone()  # of the rows that count, and the last of them

    def fill(self, inputs: Sequence[Tensor], positions: Tensor, mask: Tensor | None, past: int, spare: int) -> None:
        """n rows behind `past` slots; mask [n, past + n] as in `Llama.run`. The other rows write to the spare slot."""
        rows, end = len(positions), past + len(positions)
        own = self.order[past:end]
        for buffer, given in zip(self.inputs, inputs, strict=True):
            buffer[: len(given)].copy_(given)
        self.positions[:rows].copy_(positions)
        if rows < len(self.slots):
            self.slots.fill_(spare)
        if rows != self.count:
            self.end.fill_(rows - 1)
            self.count = rows
        self.slots[:rows].copy_(own)
        if mask is None:
            torch.le(self.order, own[:, None], out=self.sees[:rows])
        else:
            self.sees[:rows, :end].copy_(mask)
            self.sees[:rows, end:].fill_(False)


@dataclass(frozen=True)
class Met:
    """A unit that ran over storages, of which there is none where the unit does not append to that cache."""

    unit: Unit
    storages: tuple[Tensor | None, ...]
    rows: int  # most rows of a pass
    inputs: Shapes

    @property
    def spare(self) -> int:
        """The slot that no row sees; 0 where there is no cache, and none is written."""
        return next((storage.shape[3] - 1 for storage in self.storages if storage is not None), 0)

    def key(self, frame: Frame) -> tuple[Hashable, ...]:
        """Names the pass for which the frame was made."""
        return self.unit.key, tuple(map(id, self.storages)), *frame.sees.shape

    def work(self, frame: Frame) -> tuple[Tensor, ...]:
        """The pass: it allocates what it needs and reads nothing that the next one has elsewhere."""
        rows, bucket = frame.sees.shape
        caches = (None if storage is None else Places(storage, frame.slots, bucket) for storage in self.storages)
        return self.unit.run(
            *frame.inputs, *(Rows(frame.positions, cache, bucket - rows, frame.sees, frame.end) for cache in caches)
        )


class Fixed:
    """Buffers, storage and captures of the models that take turns: a target and the models that draft for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graphs = device, Graphs(device)
        self._frames: dict[tuple[int, int, Shapes], Frame] = {}
        self._storage: list[tuple[weakref.ref[SlotCache], Tensor]] = []  # and the cache that has it, or had it last
        self._met: dict[Hashable, Met] = {}

    def cache(self, shape: Sequence[int], dtype: torch.dtype, capacity: int, rows: int) -> SlotCache:
        """A cache over storage of this shape that no cache has any more, or over new storage."""
        idle = [entry for entry in self._storage if entry[0]() is None]
        fitting = [entry for entry in idle if list(entry[1].shape) == list(shape) and entry[1].dtype == dtype]
        if fitting:
            self._storage.remove(fitting[0])
            storage = fitting[0][1].zero_()
        else:
            with torch.inference_mode(False):  # the next cache may be made outside of it
                storage = torch.zeros(*shape, dtype=dtype, device=self.device)
        made = SlotCache(storage, capacity, rows)
        self._storage.append((weakref.ref(made), storage))
        return made

    def frame(self, rows: int, bucket: int, inputs: Shapes) -> Frame:
        """The buffers of a shape."""
        key = (rows, bucket, inputs)
        if key not in self._frames:
            self._frames[key] = Frame(*key, self.device)
        return self._frames[key]

    def do(self, met: Met, frame: Frame) -> tuple[Tensor, ...]:
        """The pass that the frame was filled for; copy its results."""
        key = met.key(frame)
        if self.graphs.is_recording:
            self._met.setdefault((*key[:2], met.rows), met)
        return self.graphs.do(key, partial(met.work, frame))

    def complete(self) -> None:
        """Capture what was met for every number of rows and every bucket of slots that it may come to."""
        for met in self._met.values():
            most = row_bucket(min(met.rows, ROWS[-1]))
            counts = [met.rows] if met.unit.results == "whole" else [rows for rows in ROWS if rows <= most]
            for rows, bucket in product(counts, slot_buckets(met.spare or FIRST_BUCKET)):
                frame = self.frame(rows, bucket, met.inputs)
                frame.slots.fill_(met.spare)
                self.graphs.capture(met.key(frame), partial(met.work, frame))


class FixedLlama(Llama):
    """The target model with units of fixed shapes; its results are the eager engine's but for rounding."""

    def __init__(
        self, config: ModelConfig, weights: Weights, folder: Path | None = None, fixed: Fixed | None = None
    ) -> None:
        super().__init__(config, weights, folder)
        self.fixed = fixed or Fixed(self.device)

    @classmethod
    def of(cls, model: Llama) -> FixedLlama:
        """A model of the eager engine on this one, with the same weights."""
        made = cls(model.config, model.weights, model.folder)
        made.packed = model.packed
        return made

    @property
    def uncaptured_passes(self) -> int:  # type: ignore[override]
        """Passes behind a prompt, since `preparing`, that no capture was there for."""
        return self.fixed.graphs.missed

    @property
    def unprepared(self) -> str:  # type: ignore[override]
        """How many passes since `preparing` no capture was there for, and why if the device refused to capture."""
        graphs = self.fixed.graphs
        shapes = f"with a shape that the warm-up did not meet, or more than {ROWS[-1]} rows"
        why = f": {graphs.refused}" if graphs.refused else f", {shapes}"
        return f"{graphs.missed} target or draft passes were not captured{why}" if graphs.missed else ""

    def alike(self, config: ModelConfig, weights: Weights, folder: Path | None = None) -> FixedLlama:
        """Another model that takes turns with this one."""
        return FixedLlama(config, weights, folder, self.fixed)

    def new_cache(self, capacity: int, *, rows: int = 1, config: ModelConfig | None = None) -> SlotCache:
        """As the eager engine's, over storage that may have served before."""
        config = config or self.config
        slots = -(-capacity // SLOT_ALIGNMENT) * SLOT_ALIGNMENT + 1
        shape = (config.num_layers, 2, config.num_kv_heads, slots, config.head_dim)
        return self.fixed.cache(shape, self.dtype, capacity, rows)

    def through(
        self, unit: Unit, inputs: Sequence[Tensor], positions: Tensor, caches: Caches, mask: Mask | None = None
    ) -> tuple[Tensor, ...]:
        """As the eager engine's, and so for prompts, for many rows and over caches of another making."""
        places = list(zip(caches, unit.layers, strict=True))
        held = [(cache, layers) for cache, layers in places if layers and isinstance(cache, SlotCache)]
        wanted, rows = sum(map(bool, unit.layers)), len(positions)
        past = held[0][0].lengths[held[0][1][0]] if held else 0
        if rows > ROWS[-1] or len(held) < wanted or (wanted and past == 0):
            if past or not wanted:
                self.fixed.graphs.miss()
            return super().through(unit, inputs, positions, caches, mask)
        end, buckets = past + rows, held[0][0].buckets if held else [FIRST_BUCKET]
        if held and end > held[0][0].capacity:
            raise IndexError(f"the cache holds {held[0][0].capacity} slots, {end} are needed")
        assert len({cache.spare for cache, _ in held}) <= 1
        most = max([rows, *(cache.rows for cache in caches[:1] if isinstance(cache, SlotCache))])
        assert not isinstance(mask, tuple) and not callable(mask)
        whole = unit.results == "whole"
        met = Met(
            unit,
            tuple(cache.storage if cache and layers else None for cache, layers in places),
            rows if whole else most,
            tuple((given.shape[1:], given.dtype) for given in inputs),
        )
        bucket = next(bucket for bucket in buckets if bucket >= end)
        frame = self.fixed.frame(rows if whole else row_bucket(rows), bucket, met.inputs)
        frame.fill(inputs, positions, mask if wanted else None, past, met.spare)  # without a cache nothing is seen
        results = self.fixed.do(met, frame)
        for one, layers in held:
            for layer in layers:
                one.lengths[layer] = end
        return tuple((result[:rows] if unit.results == "each" else result).clone() for result in results)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within, what runs is captured; at the end also the shapes that did not come up."""
        with self.fixed.graphs.recording(), torch.inference_mode():
            yield
            self.fixed.complete()
