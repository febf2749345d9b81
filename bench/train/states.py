"""What a frozen target says of a conversation, kept on disk: further epochs read it instead of running the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.files import replace_file
from bench.train.packing import Row
from methods.digest import sha256

HALF = np.float16


def kept_states(folder: Path, row: Row, compute: Callable[[Row], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """States [n, hidden] of two places of the target for a row, float32 and as half precision holds them.

    folder: where they are kept so, a file a conversation, which is known by its tokens; `compute` gives what is
    lacking. With float16 a token of a model 576 wide takes 2.3 kB. A conversation that half precision cannot hold is
    not kept, and has its own states. Raises UserError when the disk is full.
    """
    files = [folder / f"{sha256(part.cpu().numpy().tobytes())}.npy" for part in row.tokens.split(row.lengths)]
    found = [_read(file, length) for file, length in zip(files, row.lengths, strict=True)]
    whole = [part for part in found if part is not None]
    if len(whole) == len(files):
        kept = torch.from_numpy(np.concatenate(whole, 1)).to(row.tokens.device)
        return kept[0].float(), kept[1].float()
    states = torch.stack(compute(row)).float()
    with np.errstate(over="ignore"):
        parts = states.cpu().numpy().astype(HALF)
    ends = np.cumsum(row.lengths)
    for file, part, known, end in zip(files, np.split(parts, ends[:-1], 1), found, ends.tolist(), strict=True):
        if known is None and np.isfinite(part).all():
            replace_file(file, partial(np.save, arr=part))
            known = part
        if known is not None:  # so that a row says the same when it is met again, as after an interruption
            states[:, end - known.shape[1] : end] = torch.from_numpy(known).to(states)
    return states[0], states[1]


def _read(file: Path, length: int) -> NDArray[np.float16] | None:
    """What is kept of a conversation; None where nothing is, or something else."""
    try:
        part = np.load(file) if file.is_file() else None
    except Exception:  # whatever numpy raises for a damaged header: what was kept is computed anew
        return None
    fits = isinstance(part, np.ndarray) and part.dtype == HALF and part.ndim == 3 and part.shape[:2] == (2, length)
    return part if fits else None
