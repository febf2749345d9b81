"""A draft head over the target's most frequent tokens only, as in EAGLE-3 (Li et al., arXiv 2503.01840).

A checkpoint then holds d2t, one int64 offset for each of the draft's tokens: the target's id is d + d2t[d]. A token
outside is never drafted, and that is all: verification is the target's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from methods.engine.checkpoint import read_tensors, tensor_shapes
from methods.engine.llama import Llama
from methods.errors import UserError

OFFSETS = "d2t"


def read_vocabulary(folder: Path, target: Llama) -> Tensor | None:
    """The target's id of each of the draft's tokens, [draft vocab] int64 on the target's device; None for all of them.

    Raises UserError for offsets that lead outside the target's vocabulary, or twice to one token.
    """
    shapes = tensor_shapes(folder)
    if OFFSETS not in shapes:
        return None
    size = target.config.vocab_size
    cpu = torch.device("cpu")
    offsets = read_tensors(folder, shapes, device=cpu, dtype=torch.int64, only=[OFFSETS])[OFFSETS]
    ids = (offsets + torch.arange(len(offsets))).tolist() if offsets.dim() == 1 else []
    if not ids or len({*ids}) < len(ids) or not 0 <= min(ids) <= max(ids) < size:
        raise UserError(f"method.checkpoint={folder}: {OFFSETS} must lead to different tokens of the target's {size}")
    return torch.tensor(ids, device=target.device)


def offsets(ids: Tensor) -> Tensor:
    """Target ids [draft vocab] as a checkpoint holds them."""
    return ids - torch.arange(len(ids), device=ids.device)
