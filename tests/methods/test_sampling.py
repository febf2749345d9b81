"""Acceptance: the deepest agreeing path, whatever the target says; and what it says above temperature 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from methods.draft import Draft, Extra, Tree
from methods.errors import NonFiniteLogits
from methods.sampling import Sampler, accept

CPU = torch.device("cpu")
# pending -> 5, 7;  5 -> 1, 2;  2 -> 4;  7 -> 3
PARENTS, TOKENS = [-1, -1, 0, 0, 3, 1], [5, 7, 1, 2, 4, 3]


def draft_of(tokens: list[int], parents: list[int]) -> Draft:
    return Draft(tokens=torch.tensor(tokens, dtype=torch.int64), tree=Tree.build(parents, CPU))


def logits_that_say(predicted: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), 10).float()


@pytest.mark.parametrize(
    ("predicted", "path", "emitted"),
    [
        ([9, 0, 0, 0, 0, 0, 0], (0,), (9,)),
        ([5, 8, 0, 0, 0, 0, 0], (0, 1), (5, 8)),
        ([5, 2, 0, 0, 4, 6, 0], (0, 1, 4, 5), (5, 2, 4, 6)),
        ([7, 2, 3, 0, 4, 6, 1], (0, 2, 6), (7, 3, 1)),
        ([7, 1, 9, 0, 4, 6, 1], (0, 2), (7, 9)),
        ([0, 2, 3, 0, 4, 6, 1], (0,), (0,)),  # deep agreement under a rejected candidate counts for nothing
    ],
)
def test_greedy_takes_the_deepest_agreeing_path(
    predicted: list[int], path: tuple[int, ...], emitted: tuple[int, ...]
) -> None:
    logits = logits_that_say(predicted)
    accepted = accept(logits, logits.argmax(-1), draft_of(TOKENS, PARENTS))
    assert (accepted.path, accepted.tokens) == (path, emitted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_logits_are_refused(bad: float) -> None:
    logits = logits_that_say([5, 1])
    logits[1, 3] = bad
    draft = draft_of([5], [-1])
    with pytest.raises(NonFiniteLogits):
        accept(logits, logits.argmax(-1), draft)
    with pytest.raises(NonFiniteLogits):
        accept(logits, Sampler(1.0, 0, 10, CPU).choose(logits, 3, draft), draft)


@pytest.mark.parametrize(("temperature", "draws"), [(0.5, 10_000), (1.0, 100_000), (2.0, 10_000)])
def test_samples_follow_the_targets_distribution(temperature: float, draws: int) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 1.9, -4.0, 3.0]])
    sampler = Sampler(temperature, 1, 8, CPU)
    drawn = torch.cat([sampler.choose(logits, position) for position in range(draws)])
    expected = torch.softmax(logits[0].double() / temperature, -1) * draws
    assert chisquare(torch.bincount(drawn, minlength=8).double().numpy(), expected.numpy()).pvalue > 1e-3


def test_neighbouring_positions_and_seeds_are_independent() -> None:
    logits, draws = torch.zeros(1, 4), 20_000
    rows = [torch.cat([Sampler(1.0, seed, 4, CPU).choose(logits, p) for p in range(draws // 4)]) for seed in (1, 2)]
    for first, second in ((rows[0][:-1], rows[0][1:]), (rows[0], rows[1]), (rows[0][1:], rows[1][:-1])):
        pairs = torch.bincount(4 * first + second, minlength=16).double()
        assert chisquare(pairs.numpy()).pvalue > 1e-3


def test_noise_belongs_to_a_position_whatever_is_drafted() -> None:
    """Each row of a tree says what a single row says at its position; rows of equal depth share the noise."""
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    draft, alone = draft_of(TOKENS, PARENTS), Sampler(0.8, 5, 10, CPU)
    said = Sampler(0.8, 5, 10, CPU).choose(logits, 20, draft)
    depths = draft.tree.depths.tolist()
    singly = [alone.choose(row[None], 20 + depth)[0] for row, depth in zip(logits, depths, strict=True)]
    assert said.tolist() == [int(token) for token in singly]
    assert alone.choose(logits[:1], 20, Draft.empty(CPU)).tolist() == said[:1].tolist()
    assert Sampler(0.0, 5, 10, CPU).choose(logits, 20, draft).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_extra_rows_say_their_argmax_beside_what_the_pending_token_says(temperature: float) -> None:
    logits = torch.randn(9, 10, generator=torch.Generator().manual_seed(0))
    plain, rows = draft_of(TOKENS, PARENTS), torch.arange(2)
    extra = Extra(tokens=rows, offsets=rows + 1, mask=torch.zeros(2, 9, dtype=torch.bool))
    draft = replace(plain, extra=extra)
    said = Sampler(temperature, 5, 10, CPU).choose(logits, 20, draft)
    assert said[:7].tolist() == Sampler(temperature, 5, 10, CPU).choose(logits[:7], 20, plain).tolist()
    assert said[7:].tolist() == logits[7:].argmax(-1).tolist()
    accepted = accept(logits[:7], said, draft)
    assert accepted.extra == (said[0], said[7], said[8])
    assert (accepted.path, accepted.tokens) == (
        (alone := accept(logits[:7], said[:7], plain)).path,
        alone.tokens,
    )


def test_a_drafter_with_fewer_tokens_has_the_same_noise() -> None:
    scores = Sampler(1.0, 5, 10, CPU).scores(torch.zeros(1, 10), 3)
    assert torch.equal(Sampler(1.0, 5, 10, CPU).scores(torch.zeros(1, 6), 3), scores[:, :6])


def test_logits_in_half_precision_are_divided_in_float32() -> None:
    logits = torch.linspace(-3, 3, 10).bfloat16()[None]
    scores = [Sampler(0.7, 5, 10, CPU).scores(given, 3) for given in (logits, logits.float())]
    assert torch.equal(*scores)


def test_noise_of_positions_that_are_past_is_not_kept() -> None:
    sampler = Sampler(1.0, 5, 10, CPU)
    for first in range(20, 200, 3):
        sampler.choose(torch.zeros(7, 10), first, draft_of(TOKENS, PARENTS))
    assert len(sampler._drawn) == 4
