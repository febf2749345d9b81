"""Blocks of the engine by themselves, against their plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from methods.engine.kv_cache import KVCache
from methods.engine.llama import AttentionWeights, Rope, self_attention
from methods.engine.matrix import Matrix
from tests.tiny import tiny_llama


def test_attention_takes_an_input_of_any_width_beside_its_residual() -> None:
    """Twice as wide as hidden, as in EAGLE-3, in one pass and token by token over a cache."""
    config = tiny_llama(num_kv_heads=4).config
    heads, size, hidden = config.num_heads, config.head_dim, config.hidden_size
    generator = torch.Generator().manual_seed(0)
    wide, residual = (torch.randn(7, width, generator=generator) for width in (2 * hidden, hidden))
    qkv = torch.randn(3 * heads * size, 2 * hidden, generator=generator) * 0.1
    output = torch.randn(hidden, heads * size, generator=generator) * 0.1
    rope = Rope(config, 32, torch.float32, torch.device("cpu"))

    query, keys, values = ((wide @ part.T).view(7, heads, size) for part in qkv.chunk(3))
    turned = rope.at(torch.arange(7))
    plain = F.scaled_dot_product_attention(
        *(part.transpose(0, 1)[None] for part in (turned(query), turned(keys), values)), is_causal=True
    )
    wanted = residual + plain[0].transpose(0, 1).reshape(7, -1) @ output.T

    weights = AttentionWeights(qkv=Matrix(qkv), output=Matrix(output))
    got = self_attention(wide, residual, weights, config, turned, None, None, 0)
    torch.testing.assert_close(got, wanted)
    cache = KVCache(torch.zeros(1, 2, heads, 8, size), 8)
    for row in range(7):
        at = slice(row, row + 1)
        one = self_attention(wide[at], residual[at], weights, config, rope.at(torch.tensor([row])), None, cache, 0)
        torch.testing.assert_close(one, wanted[at])


def test_a_full_cache_takes_no_row_more() -> None:
    model = tiny_llama()
    cache, shape = model.new_cache(3), model.config
    rows = torch.zeros(3, shape.num_kv_heads, shape.head_dim)
    cache.append(0, rows, rows)
    with pytest.raises(IndexError):
        cache.append(0, rows[:1], rows[:1])
