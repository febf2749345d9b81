"""The matrix of a linear, and the copies of it that a CPU multiplies fastest with."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 16  # outputs side by side: one AVX-512 register of float32
FEW_ROWS = 2  # up to here blocks are faster than oneDNN's order, from here on slower
DOUBLED_BYTES = 1 << 21  # from here on two rows are faster as four, where MKL is not on its maker's processor
PACKED_BYTES = 1 << 30  # of all weights together; packing holds them up to three times


class Matrix:
    """Weight [outputs, inputs]; called with states [n, inputs] it gives [n, outputs].

    `pack` adds copies for decoding: one for vanilla's single row, one for the few rows of a draft that is verified.
    MKL alone reads a float32 matrix for one row at half the speed of memory, and five rows through matrices 4096 wide
    cost it three times as much as one; bench/speed/packing.py measures what the copies gain.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._blocks: Tensor | None = None  # [outputs / BLOCK, inputs, BLOCK]
        self._packed: Tensor | None = None  # in oneDNN's own order
        self._doubles = False  # whether two rows are multiplied as four, which oneDNN takes less long for

    def pack(self) -> None:
        """Make the copies, where this machine has a use for them. No gradient flows through a packed matrix."""
        if not packs(self.weight):
            return
        weight = self.weight.detach()
        outputs, inputs = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        if weight.dtype == torch.float32 and outputs % BLOCK == 0:
            self._blocks = weight.view(-1, BLOCK, inputs).transpose(1, 2).contiguous()
            self._doubles = weight.nbytes >= DOUBLED_BYTES and not _is_intel()

    def __call__(self, states: Tensor, bias: Tensor | None = None) -> Tensor:
        """states @ weight.T + bias, bias [outputs]."""
        if self._packed is None:
            return F.linear(states, self.weight, bias)
        if self._blocks is not None and len(states) <= FEW_ROWS:
            if self._doubles and len(states) == 2:
                return self(torch.cat((states, states)), bias)[:2]
            return _block_product(states, self._blocks, bias)
        return torch.ops.mkldnn._linear_pointwise(states, self._packed, bias, "none", [], "")

    def add(self, residual: Tensor, states: Tensor) -> Tensor:
        """residual [n, outputs] + states @ weight.T, in one pass."""
        if self._packed is None:
            return torch.addmm(residual, states, self.weight.t())
        if self._blocks is not None and len(states) <= FEW_ROWS:
            if self._doubles and len(states) == 2:
                return self.add(torch.cat((residual, residual)), torch.cat((states, states)))[:2]
            return _block_product(states, self._blocks, residual)
        return torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._packed, None, "add")


def matrices(*parts: object) -> list[Matrix]:
    """Every matrix among the attributes of the parts."""
    return [value for part in parts for value in vars(part).values() if isinstance(value, Matrix)]


def _block_product(states: Tensor, blocks: Tensor, addend: Tensor | None) -> Tensor:
    """States [n, inputs] times blocks, plus an addend [outputs] or [n, outputs]: [n, outputs]."""
    rows, count = len(states), len(blocks)
    spread = states.expand(count, rows, -1)
    if addend is None:
        product = torch.bmm(spread, blocks)
    else:
        product = torch.baddbmm(addend.view(-1, count, BLOCK).transpose(0, 1), spread, blocks)
    return product.view(1, -1) if rows == 1 else product.transpose(0, 1).reshape(rows, -1)


@cache
def _is_intel() -> bool:
    """Whether this processor is of MKL's maker: on an EPYC its two rows were measured to cost nearly twice one."""
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text(errors="replace") if info.exists() else platform.processor())


def packs(weight: Tensor) -> bool:
    """Whether oneDNN takes this matrix on this machine: an x86 CPU, on which packing was measured."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if weight.device.type != "cpu" or not x86 or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def new_matrix(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [outputs, inputs] matrix of a linear, in the memory order that few rows multiply fastest with.

    In float32 on a CPU the longer side is contiguous: for one row of input, a [1280, 256] matrix stored by columns was
    measured 1.9 times as fast as by rows, a [256, 640] one 1.3 times as fast by rows (MKL, weights not in cache).
    Everywhere else matrices are stored by rows.
    """
    if device.type == "cpu" and dtype == torch.float32 and outputs > inputs:
        return torch.empty(inputs, outputs, dtype=dtype, device=device).t()
    return torch.empty(outputs, inputs, dtype=dtype, device=device)
