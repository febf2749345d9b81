"""What a frozen target says of a conversation, kept on disk: further epochs read it instead of running the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.files import replace_file
from bench.train.packing import Row
from methods.digest import sha256

HALF = np.float16


class KeptStates:
    """States of two places of the target for every token, in half precision: a file a conversation.

    folder: where, beside the weights that are trained; a conversation is known by its tokens. With float16 a token of
    a model 576 wide takes 2.3 kB.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, row: Row, compute: Callable[[Row], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The two states [n, hidden] of a row, float32 where they come from the disk; `compute` gives what is lacking.

        What half precision cannot hold is not kept. Raises UserError when the disk is full.
        """
        files = [self.folder / f"{sha256(part.cpu().numpy().tobytes())}.npy" for part in row.tokens.split(row.lengths)]
        if all(file.is_file() for file in files):
            kept = torch.from_numpy(np.concatenate([np.load(file) for file in files], 1)).to(row.tokens.device)
            return kept[0].float(), kept[1].float()
        states = compute(row)
        with np.errstate(over="ignore"):
            parts = torch.stack(states).cpu().float().numpy().astype(HALF)
        ends = np.cumsum(row.lengths)[:-1]
        for file, part in zip(files, np.split(parts, ends, 1), strict=True):
            if np.isfinite(part).all() and not file.exists():
                replace_file(file, partial(np.save, arr=part))
        return states
