"""Preallocated key-value cache for one sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class KVCache:
    """Keys and values of some layers, each layer filled to its own length.

    Lengths differ while a self-drafting method is at work: its first layers have already seen draft tokens that the
    rest of the model sees only at verification. After `keep` or `truncate` all layers agree again.

    Storage is one tensor [layers, 2, kv_heads, capacity, head_dim], so dropping or moving a slot touches every layer
    in one operation. No slot is allocated after construction.
    """

    def __init__(self, storage: Tensor, capacity: int) -> None:
        self.storage, self.capacity, self.sequences = storage, capacity, 0  # sequences: begun in it, one after another
        self.lengths = [0] * len(storage)
        self._keys = [layer[0] for layer in storage]
        self._values = [layer[1] for layer in storage]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [n, kv_heads, head_dim] behind the layer's last slot.

        Returns views of everything the layer holds, each [kv_heads, length, head_dim].
        Raises IndexError when the rows do not fit.
        """
        start = self.lengths[layer]
        end = start + keys.shape[0]
        if end > self.capacity:
            raise IndexError(f"layer {layer} of the cache holds {self.capacity} slots, {end} are needed")
        layer_keys, layer_values = self._keys[layer], self._values[layer]
        layer_keys[:, start:end].copy_(keys.transpose(0, 1))
        layer_values[:, start:end].copy_(values.transpose(0, 1))
        self.lengths[layer] = end
        return layer_keys[:, :end], layer_values[:, :end]

    def keep(self, base: int, path: Sequence[int]) -> None:
        """Keep slots 0..base-1 and, behind them, base + i for each i of the ascending path; drop the rest.

        Rows move towards lower slots only, in ascending order, so none is overwritten before it is read.
        """
        for offset, row in enumerate(path):
            if offset != row:
                self.storage[:, :, :, base + offset].copy_(self.storage[:, :, :, base + row])
        self.truncate(base + len(path))

    def keep_rows(self, base: int, rows: Tensor, layers: range) -> None:
        """The same for rows [n] int64 that the device alone knows, of layers that hold them; others end at base."""
        end, own = base + len(rows), self.storage[layers.start : layers.stop]
        own[:, :, :, base:end] = own.index_select(3, base + rows)
        self.truncate(end)

    def truncate(self, length: int) -> None:
        """Drop everything from slot `length` on, in every layer that has it."""
        self.lengths = [min(length, filled) for filled in self.lengths]

    def reset(self) -> None:
        """Forget the sequence: another one begins."""
        self.truncate(0)
        self.sequences += 1


class Places(KVCache):
    """A cache as a captured pass has it: rows go to the slots that a tensor names, the first `bucket` are read."""

    def __init__(self, storage: Tensor, slots: Tensor, bucket: int) -> None:
        super().__init__(storage, bucket)
        self.slots = slots

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [n, kv_heads, head_dim]; views of the bucket, each [kv_heads, bucket, head_dim]."""
        layer_keys, layer_values = self._keys[layer], self._values[layer]
        layer_keys.index_copy_(1, self.slots, keys.transpose(0, 1))
        layer_values.index_copy_(1, self.slots, values.transpose(0, 1))
        return layer_keys[:, : self.capacity], layer_values[:, : self.capacity]

    def only(self, row: Tensor) -> Places:
        """The same for a pass of that row [1] alone."""
        return Places(self.storage, self.slots[row], self.capacity)
