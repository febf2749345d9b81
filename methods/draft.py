"""What a method proposes: a tree of candidate tokens over the pending token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def upload(values: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """Tensor of integers (int64) or of an array on the device; a GPU copies it while the host goes on."""
    array = np.ascontiguousarray(values if isinstance(values, np.ndarray) else np.asarray(values, dtype=np.int64))
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def _order(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device)


@dataclass(frozen=True)
class Tree:
    """Shape of a draft. Row 0 is the pending token, row i + 1 is candidate i; n candidates make n + 1 rows.

    Everything the target pass and the acceptance walk need is laid out as tensors, so neither loops over nodes. Trees
    that repeat from step to step are built once and reused.
    """

    parents: Tensor  # [n + 1] row of each row's parent; the pending token is its own
    depths: Tensor  # [n + 1] distance from the pending token
    mask: Tensor  # [n + 1, n + 1] bool: row i sees row j when j is i or an ancestor of i
    paths: Tensor  # [n + 1, deepest + 1] rows from the pending token to each row, the last one repeated
    is_chain: bool

    @property
    def size(self) -> int:
        """Number of candidates n."""
        return len(self.parents) - 1

    @classmethod
    def build(cls, parents: Sequence[int] | np.ndarray, device: torch.device) -> Tree:
        """Tree from each candidate's parent: the index of an earlier candidate, or -1 for the pending token.

        Raises ValueError when a candidate stands before its parent.
        """
        rows = np.concatenate(([0], np.asarray(parents, dtype=np.int64) + 1))
        order = np.arange(len(rows))
        if np.any(rows[1:] >= order[1:]) or np.any(rows < 0):
            raise ValueError(f"a candidate must come after its parent, got parents {list(parents)}")
        ancestors = [order]  # after k rounds: each row's k-th ancestor; the pending token stays where it is
        while ancestors[-1].any():
            ancestors.append(rows[ancestors[-1]])
        climb = np.stack(ancestors, 1)  # [n + 1, deepest + 1]
        depths = (climb > 0).sum(1)
        mask = np.zeros((len(rows), len(rows)), dtype=bool)
        mask[order[:, None], climb] = True
        # Reading a row's climb backwards from its depth gives the way down; beyond its own depth it stays on the row.
        paths = np.take_along_axis(climb, np.maximum(depths[:, None] - np.arange(climb.shape[1]), 0), 1)

        return cls(
            parents=upload(rows, device),
            depths=upload(depths, device),
            mask=upload(mask, device),
            paths=upload(paths, device),
            is_chain=bool((rows[1:] == order[:-1]).all()),
        )

    @classmethod
    def on_device(cls, parents: Tensor, deepest: int) -> Tree:
        """The same from parents [n] int64 that are on the device already: nothing is read by the host.

        deepest: most levels that there can be, which fixes every shape. A candidate must come after its parent.
        """
        rows = torch.cat((parents.new_zeros(1), parents + 1))
        order = torch.arange(len(rows), device=parents.device)
        ancestors = [order]
        for _ in range(deepest):
            ancestors.append(rows[ancestors[-1]])
        climb = torch.stack(ancestors, 1)  # [n + 1, deepest + 1]
        depths = (climb > 0).sum(1)
        mask = torch.zeros(len(rows), len(rows), dtype=torch.bool, device=parents.device)
        mask.scatter_(1, climb, True)
        down = (depths[:, None] - torch.arange(deepest + 1, device=parents.device)).clamp(min=0)
        return cls(parents=rows, depths=depths, mask=mask, paths=climb.gather(1, down), is_chain=False)

    def only(self, rows: Tensor) -> Tree:
        """The same shape, of which only some rows count: rows [n + 1] bool on the device, whole branches at a time.

        The others ride along, at the pending token's position, and cannot be accepted: each is its own parent, at no
        depth. So a draft whose size is known to the device alone needs no wait.
        """
        order = _order(len(rows), rows.device)
        parents, depths = torch.where(rows, self.parents, order), torch.where(rows, self.depths, order[:1])
        return Tree(parents=parents, depths=depths, mask=self.mask, paths=self.paths, is_chain=False)

    @classmethod
    @lru_cache(maxsize=256)
    def chain(cls, length: int, device: torch.device) -> Tree:
        """Candidates in single file: each follows the one before. Without any, a target pass is a plain step."""
        return cls.build(range(-1, length - 1), device)


@dataclass(frozen=True)
class Extra:
    """Query rows that ride along in a target pass without being candidates, such as Lookahead's window.

    They see the whole past; among the rows of this pass they see what `mask` allows. No candidate sees them, and the
    cache drops them after the pass.
    """

    tokens: Tensor  # [e] int64
    offsets: Tensor  # [e] distance of each row's position from the pending token's
    mask: Tensor  # [e, 1 + n + e] bool over [pending, candidates, extra rows]


@dataclass(frozen=True)
class Resumed:
    """Where a target pass goes on, when the method itself has run the first layers on what it drafted.

    The cache of those layers has these rows already.
    """

    states: Tensor  # [n + 1, hidden] of [pending, *candidates] before `layer`
    layer: int


@dataclass(frozen=True)
class Draft:
    """Candidates for one target pass."""

    tokens: Tensor  # [n] int64
    tree: Tree
    hidden: Resumed | None = None  # None: the pass begins with the embeddings
    extra: Extra | None = None
    doubtful: bool = False  # a confidence on the way was no number

    def layout(self, base: int) -> tuple[Tensor, Tensor]:
        """Positions [rows] and mask [rows, base + rows] of a pass behind `base` slots that is not a plain chain's."""
        offsets, extra = self.tree.depths, self.extra
        candidates = len(offsets)
        rows = candidates + (0 if extra is None else len(extra.tokens))
        mask = torch.ones(rows, base + rows, dtype=torch.bool, device=offsets.device)
        mask[:candidates, base : base + candidates] = self.tree.mask
        if extra is not None:
            offsets = torch.cat((offsets, extra.offsets))
            mask[:candidates, base + candidates :] = False
            mask[candidates:, base:] = extra.mask
        return base + offsets, mask

    @classmethod
    def empty(cls, device: torch.device) -> Draft:
        """No candidates: the target pass is a plain step."""
        return cls(tokens=torch.empty(0, dtype=torch.int64, device=device), tree=Tree.chain(0, device))
