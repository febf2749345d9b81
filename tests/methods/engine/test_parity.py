"""The engine's logits against transformers' own models: random tiny checkpoints of every family, float32.

With the matrices as they were loaded, and packed as `bench.run` has them on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.engine.checkpoint import load_model
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama
from tests.tiny import FAMILIES, packed, reference_model, write_checkpoint

TOLERANCE = 1e-4
LENGTH = 96  # beyond original_max_position_embeddings of the llama3 family
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 5, -1, 8]  # a tree under the pending token, two branches at the root


@dataclass(frozen=True)
class Pair:
    reference: Any
    engine: Llama
    tokens: Tensor  # [LENGTH]
    expected: Tensor  # [LENGTH, vocab], transformers' logits of the whole sequence

    def truth(self, tokens: Tensor) -> Tensor:
        return self.reference(tokens[None]).logits[0]


@pytest.fixture(scope="module", params=itertools.product(FAMILIES, ("loaded", "packed")), ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family, state = request.param
    reference = reference_model(family)
    folder = write_checkpoint(tmp_path_factory.mktemp("parity"), reference)
    tokens = torch.randint(0, 128, (LENGTH,), generator=torch.Generator().manual_seed(1))
    engine = load_model(folder, device="cpu")
    if state == "packed":
        packed(engine)
    yield Pair(reference, engine, tokens, reference(tokens[None]).logits[0])


def states(model: Llama, tokens: Tensor, cache: KVCache | None, layers: slice = slice(None), start: int = 0) -> Tensor:
    return model.run(model.embed(tokens), torch.arange(start, start + len(tokens)), cache, layers)


def logits(model: Llama, tokens: Tensor, cache: KVCache | None, start: int = 0) -> Tensor:
    return model.head(states(model, tokens, cache, start=start))


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def test_random_logits_are_worth_comparing(pair: Pair) -> None:
    assert pair.expected.std() > 0.5
    assert len(set(pair.expected.argmax(-1).tolist())) > 20


@pytest.mark.parametrize("cached", [False, True])
def test_whole_prompt(pair: Pair, cached: bool) -> None:
    cache = pair.engine.new_cache(LENGTH) if cached else None
    assert difference(logits(pair.engine, pair.tokens, cache), pair.expected) <= TOLERANCE


@pytest.mark.parametrize("pieces", [[40] + [1] * (LENGTH - 40), [1, 30, 7, 2, LENGTH - 40]], ids=["steps", "chunks"])
def test_prompt_in_pieces(pair: Pair, pieces: list[int]) -> None:
    cache = pair.engine.new_cache(LENGTH)
    found, start = [], 0
    for piece in pair.tokens.split(pieces):
        found.append(logits(pair.engine, piece, cache, start))
        start += len(piece)
    assert cache.lengths == [LENGTH] * 4
    assert difference(torch.cat(found), pair.expected) <= TOLERANCE


def ancestry(row: int) -> list[int]:
    """Rows from the root to `row`; row 0 is the pending token, draft node i is row i + 1."""
    return [0] if row == 0 else [*ancestry(PARENTS[row - 1] + 1), row]


def verify_tree(pair: Pair, past: int, cache: KVCache) -> tuple[Tensor, Tensor]:
    """Rows of the tree behind `past` cached tokens: (tokens [rows], logits [rows, vocab]) in one masked pass."""
    rows = len(PARENTS) + 1
    tokens = torch.randint(0, 128, (rows,), generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(rows, past + rows, dtype=torch.bool)
    mask[:, :past] = True
    for row in range(rows):
        mask[row, [past + ancestor for ancestor in ancestry(row)]] = True
    positions = torch.tensor([past + len(ancestry(row)) - 1 for row in range(rows)])
    if past:
        logits(pair.engine, pair.tokens[:past], cache)
    hidden = pair.engine.run(pair.engine.embed(tokens), positions, cache, slice(None), mask)
    return tokens, pair.engine.head(hidden)


@pytest.mark.parametrize("past", [0, 70])
def test_tree_rows_equal_their_paths_as_plain_sequences(pair: Pair, past: int) -> None:
    tokens, found = verify_tree(pair, past, pair.engine.new_cache(past + len(PARENTS) + 1))
    for row in range(len(tokens)):
        path = ancestry(row)
        expected = pair.truth(torch.cat((pair.tokens[:past], tokens[path])))[past:]
        assert difference(found[path], expected) <= TOLERANCE, f"row {row}"


def test_tree_without_cache(pair: Pair) -> None:
    rows = len(PARENTS) + 1
    mask = torch.zeros(rows, rows, dtype=torch.bool)
    for row in range(rows):
        mask[row, ancestry(row)] = True
    positions = torch.tensor([len(ancestry(row)) - 1 for row in range(rows)])
    tokens = pair.tokens[:rows]
    found = pair.engine.head(pair.engine.run(pair.engine.embed(tokens), positions, None, slice(None), mask))
    for row in range(rows):
        assert difference(found[ancestry(row)], pair.truth(tokens[ancestry(row)])) <= TOLERANCE


def test_sequences_side_by_side_equal_each_alone(pair: Pair) -> None:
    lengths = (30, 1, 40)
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = pair.tokens[: sum(lengths)]
    found = pair.engine.head(pair.engine.run(pair.engine.embed(tokens), positions, None, slice(None), lengths))
    for part, sequence in zip(found.split(lengths), tokens.split(lengths), strict=True):
        assert difference(part, pair.truth(sequence)) <= TOLERANCE


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("path", [[0], [0, 1, 2, 5], [0, 1, 3, 6, 8], [0, 9, 10]])
def test_kept_path_continues_as_a_fresh_prefill(pair: Pair, path: list[int], on_device: bool) -> None:
    past = 20
    cache = pair.engine.new_cache(past + len(PARENTS) + 1)
    tokens, _ = verify_tree(pair, past, cache)
    if on_device:
        cache.keep_rows(past, torch.tensor(path), range(4))
    else:
        cache.keep(past, path)
    assert cache.lengths == [past + len(path)] * 4
    after = torch.cat((pair.tokens[:past], tokens[path], pair.tokens[-3:]))
    found = logits(pair.engine, after[-3:], cache, len(after) - 3)
    fresh = logits(pair.engine, after, pair.engine.new_cache(len(after)))[-3:]
    assert difference(found, fresh) <= TOLERANCE
    assert difference(found, pair.truth(after)[-3:]) <= TOLERANCE


def test_keeping_rows_of_two_branches_shows(pair: Pair) -> None:
    past, mixed = 20, [0, 1, 2, 6]  # row 6 saw row 3, not row 2
    cache = pair.engine.new_cache(past + len(PARENTS) + 1)
    tokens, _ = verify_tree(pair, past, cache)
    cache.keep(past, mixed)
    after = torch.cat((pair.tokens[:past], tokens[mixed], pair.tokens[-1:]))
    assert difference(logits(pair.engine, after[-1:], cache, len(after) - 1), pair.truth(after)[-1:]) > TOLERANCE


@pytest.mark.parametrize("exit_layer", range(5))
@pytest.mark.parametrize("cached", [False, True])
def test_split_range_equals_the_whole(pair: Pair, exit_layer: int, cached: bool) -> None:
    cache = pair.engine.new_cache(LENGTH) if cached else None
    early = states(pair.engine, pair.tokens, cache, slice(0, exit_layer))
    if cache is not None:
        assert cache.lengths == [LENGTH] * exit_layer + [0] * (4 - exit_layer)
    found = pair.engine.run(early, torch.arange(LENGTH), cache, slice(exit_layer, None))
    assert torch.equal(
        found, states(pair.engine, pair.tokens, None if cache is None else pair.engine.new_cache(LENGTH))
    )
    assert difference(pair.engine.head(found), pair.expected) <= TOLERANCE


def test_early_states_are_transformers_hidden_states(pair: Pair) -> None:
    hidden = pair.reference(pair.tokens[None], output_hidden_states=True).hidden_states
    for exit_layer in range(4):  # transformers' last entry is already normalised
        found = states(pair.engine, pair.tokens, None, slice(0, exit_layer))
        assert difference(found, hidden[exit_layer][0]) <= TOLERANCE


def test_draft_layers_ahead_then_verified_step_by_step(pair: Pair) -> None:
    """Early layers see draft tokens one by one, the rest sees them in one pass: Kangaroo's use of the cache."""
    model, past = pair.engine, 50
    cache = model.new_cache(LENGTH)
    logits(model, pair.tokens[:past], cache)
    early = [states(model, pair.tokens[i : i + 1], cache, slice(0, 2), i) for i in range(past, past + 5)]
    assert cache.lengths == [past + 5] * 2 + [past] * 2
    found = model.head(model.run(torch.cat(early), torch.arange(past, past + 5), cache, slice(2, None)))
    assert difference(found, pair.expected[past : past + 5]) <= TOLERANCE
    cache.truncate(past + 2)
    assert cache.lengths == [past + 2] * 4
    again = logits(model, pair.tokens[past + 2 : past + 9], cache, past + 2)
    assert difference(again, pair.expected[past + 2 : past + 9]) <= TOLERANCE
    cache.reset()
    assert difference(logits(model, pair.tokens, cache), pair.expected) <= TOLERANCE
