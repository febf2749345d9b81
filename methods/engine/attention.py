"""Attention of few rows over many slots, and the one place that decides which kernel serves it.

torch picks one for each call, of those that are switched on and take what they are given. `choose_kernels` switches,
`attend` and `attention_mask` give what the wanted kernel takes:

- Rows under a mask (a tree, a chain behind a past, any pass over a bucket of slots): the memory-efficient kernel, the
  only one that takes a mask of added numbers and does not write all scores to memory.
- Rows without one (a prompt, one row over exactly what is there): flash attention.
- cuDNN's is off: it is planned anew for every number of slots, and an eager cache has one more at every step.
- What neither takes is left to the plain kernel: right, and slow, for it writes every score. `Kernel` says why. So is a
  prompt whose query heads share key heads, where flash attention cannot serve.

These are the conditions in torch's sources (sdp_utils.cpp); the tests marked gpu ask torch itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FLASH_HEAD_SIZE = 256
ALIGNMENT = 16  # numbers between two rows of a mask: of other masks the memory-efficient kernel makes a copy
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # as `attend` does, without a mask
# Who attends to whom; or the lengths of sequences side by side, each causal by itself; or what attends in its own way.
Mask = Tensor | tuple[int, ...] | Attention


@dataclass(frozen=True)
class Kernel:
    """What serves attention under a mask, or without one."""

    masked: bool
    name: str
    lacking: str | None = None  # which condition of the wanted kernel is not met

    def __str__(self) -> str:
        served = f"rows {'under a' if self.masked else 'without a'} mask: {self.name}"
        return served if self.lacking is None else f"{served}, for {self.lacking}"


def choose_kernels(device: torch.device, dtype: torch.dtype, head_dim: int, groups: int) -> tuple[Kernel, ...]:
    """Switch a GPU's kernels as written above; what serves there. Elsewhere torch has one, and nothing is said."""
    if device.type != "cuda":
        return ()
    torch.backends.cuda.enable_cudnn_sdp(False)
    return kernels(dtype, head_dim, groups, torch.cuda.get_device_capability(device))


def kernels(dtype: torch.dtype, head_dim: int, groups: int, capability: tuple[int, int]) -> tuple[Kernel, ...]:
    """What serves on a GPU of this compute capability, with and without a mask; `groups` heads share a key head."""
    half = (torch.float16, *((torch.bfloat16,) if capability >= (8, 0) else ()))
    shown, multiple = str(dtype).removeprefix("torch."), 16 // dtype.itemsize
    efficient = None
    if dtype not in (*half, torch.float32):
        efficient = f"a GPU of capability {capability[0]}.{capability[1]} has none for {shown}"
    elif head_dim % multiple:
        efficient = f"a head size of {head_dim} is no multiple of {multiple}, as 16 bytes of {shown} are"
    flash = None
    if capability < (8, 0):
        flash = f"flash attention wants capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    elif dtype not in half:
        flash = f"flash attention wants float16 or bfloat16, this is {shown}"
    elif head_dim > FLASH_HEAD_SIZE:
        flash = f"flash attention wants a head size of at most {FLASH_HEAD_SIZE}, this is {head_dim}"
    second = "plain" if efficient else "memory-efficient"
    unmasked = (
        second if groups == 1 or efficient else f"{second} (one row) and plain (a prompt, {groups} heads to a key head)"
    )
    return Kernel(True, second, efficient), Kernel(False, unmasked if flash else "flash", flash)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Mask | None) -> Tensor:
    """Grouped-query attention of n rows over m slots: [n, heads, head_dim] -> [n, heads * head_dim].

    keys, values [kv_heads, m, head_dim]. mask comes from `attention_mask`; None means that a single row sees every
    slot, or that the n rows are all there is and see themselves and what precedes them.
    """
    if callable(mask):
        return mask(query, keys, values)
    if isinstance(mask, tuple):
        parts = zip(query.split(mask), keys.split(mask, 1), values.split(mask, 1), strict=True)
        return torch.cat([attend(*part, None) for part in parts])
    rows, heads, _ = query.shape
    kv_heads = keys.shape[0]
    groups = heads // kv_heads
    if mask is None and rows > 1:
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys[None], values[None], is_causal=True, enable_gqa=groups > 1
        )
        return out[0].transpose(0, 1).reshape(rows, -1)
    # The query heads that share a key head become rows of one attention, so keys and values are never repeated. Those
    # of a single row are in that order already.
    grouped = query if rows == 1 else query.unflatten(1, (kv_heads, groups)).permute(1, 2, 0, 3)
    grouped = grouped.reshape(1, kv_heads, groups * rows, -1)
    out = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=mask)
    # Not a view: some of the GPU's kernels give heads and rows in another memory order.
    return out.reshape(1, -1) if rows == 1 else out.reshape(heads, rows, -1).transpose(0, 1).reshape(rows, -1)


def attention_mask(mask: Mask | None, states: Tensor, past: int, groups: int) -> Mask | None:
    """What `attend` adds to the scores of states [n, hidden], made once for all layers: [groups * n, past + n] or None.

    mask [n, past + n], True = may attend; None = causal, which needs no mask for one row or an empty past. Lengths
    stay as they are, and so does what attends by itself.
    """
    if isinstance(mask, tuple) or callable(mask):
        return mask
    rows, slots = len(states), past + len(states)
    if mask is None:
        if rows == 1 or past == 0:
            return None
        mask = torch.ones(rows, slots, dtype=torch.bool, device=states.device).tril_(past)
    # Added numbers, because attention would turn a bool mask into them in every layer.
    added = states.new_zeros(groups, rows, -(-slots // ALIGNMENT) * ALIGNMENT)[..., :slots]
    return added.masked_fill_(~mask, -torch.inf).flatten(0, 1)
