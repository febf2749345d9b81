"""Attention of few rows over many slots, and which kernel serves it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Mask = Tensor | tuple[int, ...]  # who attends to whom; or the lengths of sequences side by side, each causal by itself


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Mask | None) -> Tensor:
    """Grouped-query attention of n rows over m slots: [n, heads, head_dim] -> [n, heads * head_dim].

    keys, values [kv_heads, m, head_dim]. mask comes from `attention_mask`; None means that a single row sees every
    slot, or that the n rows are all there is and see themselves and what precedes them.
    """
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
    # The query heads that share a key head become rows of one attention, so keys and values are never repeated.
    grouped = query.unflatten(1, (kv_heads, groups)).permute(1, 2, 0, 3).reshape(1, kv_heads, groups * rows, -1)
    out = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=mask)
    # Not a view: some of the GPU's kernels give heads and rows in another memory order.
    return out.reshape(heads, rows, -1).transpose(0, 1).reshape(rows, -1)


def attention_mask(mask: Mask | None, states: Tensor, past: int, groups: int) -> Mask | None:
    """What `attend` adds to the scores of states [n, hidden], made once for all layers: [groups * n, past + n] or None.

    mask [n, past + n], True = may attend; None = causal, which needs no mask for one row or an empty past. Lengths
    stay as they are.
    """
    if isinstance(mask, tuple):
        return mask
    rows, slots = len(states), past + len(states)
    if mask is None:
        if rows == 1 or past == 0:
            return None
        mask = torch.ones(rows, slots, dtype=torch.bool, device=states.device).tril_(past)
    # Added numbers, because attention would turn a bool mask into them in every layer; rows that start at multiples of
    # 16, because the GPU's kernel copies the mask otherwise.
    added = states.new_zeros(groups, rows, -(-slots // 16) * 16)[..., :slots]
    return added.masked_fill_(~mask, -torch.inf).flatten(0, 1)
