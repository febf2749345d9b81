"""Attention with kernels that a CPU does not have: what they return may lie in memory in another order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from methods.decoder import Decoder
from methods.engine.attention import attention_mask, choose_kernels, kernels
from methods.vanilla import Vanilla
from tests.tiny import tiny_llama


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_before_heads_in_memory(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the GPU's memory-efficient kernel lays out its result."""
    model, prompt = tiny_llama(num_kv_heads=kv_heads), torch.tensor([5, 6, 7])
    expected = Decoder(model, Vanilla(model)).generate(prompt, 20).tokens
    kernel = F.scaled_dot_product_attention

    def rows_first(*arguments: Any, **keywords: Any) -> torch.Tensor:
        return kernel(*arguments, **keywords).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", rows_first)
    assert Decoder(model, Vanilla(model)).generate(prompt, 20).tokens == expected


def test_a_mask_adds_nothing_or_minus_infinity_in_aligned_rows() -> None:
    seen = torch.tensor([[True, False, True], [True, True, True]])
    added = attention_mask(seen, torch.zeros(2, 8, dtype=torch.bfloat16), 1, groups=2)
    assert added is not None and added.dtype == torch.bfloat16 and added.stride() == (16, 1)
    assert torch.equal(added == 0, seen.repeat(2, 1)) and torch.equal(added.isneginf(), ~seen.repeat(2, 1))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "masked", "plain"),
    [
        (torch.float16, 128, (9, 0), "memory-efficient", "flash"),
        (torch.bfloat16, 64, (8, 0), "memory-efficient", "flash"),
        (
            torch.float32,
            128,
            (9, 0),
            "memory-efficient",
            "memory-efficient, for flash attention wants float16 or bfloat16, this is float32",
        ),
        (
            torch.float16,
            128,
            (7, 0),
            "memory-efficient",
            "memory-efficient, for flash attention wants capability 8.0, this GPU has 7.0",
        ),
        (
            torch.bfloat16,
            128,
            (7, 5),
            "plain, for a GPU of capability 7.5 has none for bfloat16",
            "plain, for flash attention wants capability 8.0, this GPU has 7.5",
        ),
        (
            torch.float16,
            20,
            (9, 0),
            "plain, for a head size of 20 is no multiple of 8, as 16 bytes of float16 are",
            "flash",
        ),
        (
            torch.float16,
            512,
            (9, 0),
            "memory-efficient",
            "memory-efficient, for flash attention wants a head size of at most 256, this is 512",
        ),
    ],
)
def test_which_kernel_serves(
    dtype: torch.dtype, head_dim: int, capability: tuple[int, int], masked: str, plain: str
) -> None:
    found = [str(kernel) for kernel in kernels(dtype, head_dim, 1, capability)]
    assert found == [f"rows under a mask: {masked}", f"rows without a mask: {plain}"]


def test_a_prompt_whose_heads_share_key_heads_is_left_to_the_plain_kernel_without_flash() -> None:
    flash = [str(kernel) for kernel in kernels(torch.float16, 128, 4, (9, 0))]
    assert flash == ["rows under a mask: memory-efficient", "rows without a mask: flash"]
    masked, unmasked = map(str, kernels(torch.float16, 128, 4, (7, 0)))
    assert masked == "rows under a mask: memory-efficient"
    assert unmasked.startswith(
        "rows without a mask: memory-efficient (one row) and plain (a prompt, 4 heads to a key head), for flash"
    )
    assert str(kernels(torch.float16, 20, 4, (7, 0))[1]).startswith("rows without a mask: plain, for flash")


def test_a_cpu_has_one_kernel() -> None:
    assert choose_kernels(torch.device("cpu"), torch.float32, 20, 1) == ()
