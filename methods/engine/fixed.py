"""The engine with passes of fixed shapes, which a GPU can be handed as one captured graph.

Rows are filled up to ROWS, the cache is read up to a bucket of slots under a mask, and everything that differs between
two passes of one shape stands in buffers: states, positions, the slots that are written and what each row sees. Passes
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

from methods.engine.attention import Mask, attention_mask
from methods.engine.graphs import Graphs
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Block, Llama, ModelConfig, Weights

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
        self._hold(storage, capacity)
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


class Places(KVCache):
    """A cache as a captured pass has it: rows go to the slots that a tensor names, the first `bucket` are read."""

    def __init__(self, storage: Tensor, slots: Tensor, bucket: int) -> None:
        self._hold(storage, bucket)
        self.slots = slots

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [n, kv_heads, head_dim]; views of the bucket, each [kv_heads, bucket, head_dim]."""
        layer_keys, layer_values = self._keys[layer], self._values[layer]
        layer_keys.index_copy_(1, self.slots, keys.transpose(0, 1))
        layer_values.index_copy_(1, self.slots, values.transpose(0, 1))
        return layer_keys[:, : self.capacity], layer_values[:, : self.capacity]


class Frame:
    """What a pass of one shape reads, filled anew for each."""

    def __init__(self, rows: int, bucket: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.states = torch.zeros(rows, width, dtype=dtype, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slots = torch.zeros(rows, dtype=torch.int64, device=device)  # where the rows' keys and values go
        self.sees = torch.zeros(rows, bucket, dtype=torch.bool, device=device)
        self.sees[:, 0] = True  # a row that sees nothing gives no numbers
        self.order = torch.arange(bucket, device=device)

    def fill(self, states: Tensor, positions: Tensor, mask: Tensor | None, past: int, spare: int) -> None:
        """n rows behind `past` slots; mask [n, past + n] as in `Llama.run`. The other rows write to the spare slot."""
        rows, end = len(states), past + len(states)
        own = self.order[past:end]
        self.states[:rows].copy_(states)
        self.positions[:rows].copy_(positions)
        if rows < len(self.slots):
            self.slots.fill_(spare)
        self.slots[:rows].copy_(own)
        if mask is None:
            torch.le(self.order, own[:, None], out=self.sees[:rows])
        else:
            self.sees[:rows, :end].copy_(mask)
            self.sees[:rows, end:].fill_(False)

    def work(self, block: Block, storage: Tensor) -> tuple[Tensor, ...]:
        """The pass: it allocates what it needs and reads nothing that the next one has elsewhere."""
        rows, bucket = self.sees.shape
        added = attention_mask(self.sees, self.states, bucket - rows, block.groups)
        return block.run(self.states, self.positions, added, Places(storage, self.slots, bucket))


@dataclass(frozen=True)
class Met:
    """A block that ran over a storage."""

    block: Block
    storage: Tensor
    rows: int  # most rows of a pass
    states: Tensor  # one that it was given, for its width and dtype


class Fixed:
    """Buffers, storage and captures of the models that take turns: a target and the models that draft for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graphs = device, Graphs(device)
        self._frames: dict[tuple[int, int, int, torch.dtype], Frame] = {}
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

    def frame(self, rows: int, bucket: int, states: Tensor) -> Frame:
        """The buffers of a shape, for states as wide as these."""
        key = (rows, bucket, states.shape[1], states.dtype)
        if key not in self._frames:
            self._frames[key] = Frame(*key, self.device)
        return self._frames[key]

    def do(self, block: Block, cache: SlotCache, frame: Frame) -> tuple[Tensor, ...]:
        """The pass that the frame was filled for; copy its results."""
        if self.graphs.is_recording:
            met = Met(block, cache.storage, cache.rows, frame.states)
            self._met.setdefault((block.key, id(cache.storage)), met)
        return self.graphs.do(_key(block, cache.storage, frame), partial(frame.work, block, cache.storage))

    def complete(self) -> None:
        """Capture what was met for every number of rows and every bucket of slots that it may come to."""
        for met in self._met.values():
            spare = met.storage.shape[3] - 1
            most = row_bucket(min(met.rows, ROWS[-1]))
            for rows, bucket in product((rows for rows in ROWS if rows <= most), slot_buckets(spare)):
                frame = self.frame(rows, bucket, met.states)
                frame.slots.fill_(spare)
                self.graphs.capture(_key(met.block, met.storage, frame), partial(frame.work, met.block, met.storage))


def _key(block: Block, storage: Tensor, frame: Frame) -> Hashable:
    return block.key, id(storage), *frame.sees.shape


class FixedLlama(Llama):
    """The target model with passes of fixed shapes; its results are the eager engine's but for rounding."""

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
    def unprepared(self) -> str:  # type: ignore[override]
        """How many passes since `preparing` no capture was there for, and why if the device refused to capture."""
        graphs = self.fixed.graphs
        why = f": {graphs.refused}" if graphs.refused else ", with a shape that the warm-up did not meet"
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
        self, block: Block, hidden: Tensor, positions: Tensor, cache: KVCache | None, mask: Mask | None = None
    ) -> tuple[Tensor, ...]:
        """As the eager engine's, and so for prompts, for many rows and over caches of another making."""
        held = isinstance(cache, SlotCache) and bool(block.layers)
        past, rows = cache.lengths[block.layers[0]] if cache and held else 0, len(hidden)
        if past == 0 or rows > ROWS[-1]:
            return super().through(block, hidden, positions, cache, mask)
        assert isinstance(cache, SlotCache) and not isinstance(mask, tuple)
        end = past + rows
        if end > cache.capacity:
            raise IndexError(f"the cache holds {cache.capacity} slots, {end} are needed")
        bucket = next(bucket for bucket in cache.buckets if bucket >= end)
        frame = self.fixed.frame(row_bucket(rows), bucket, hidden)
        frame.fill(hidden, positions, mask, past, cache.spare)
        results = self.fixed.do(block, cache, frame)
        for layer in block.layers:
            cache.lengths[layer] = end
        return tuple(states[:rows].clone() for states in results)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within, what runs is captured; at the end also the shapes that did not come up."""
        with self.fixed.graphs.recording(), torch.inference_mode():
            yield
            self.fixed.complete()
