"""Acceptance: the deepest agreeing path under greedy, the target's distribution under sampling."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from methods.draft import Draft, Tree
from methods.errors import NonFiniteLogits
from methods.sampling import greedy, speculative

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
    accepted = greedy(logits, logits.argmax(-1), draft_of(TOKENS, PARENTS))
    assert (accepted.path, accepted.tokens) == (path, emitted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_logits_are_refused(bad: float) -> None:
    logits = logits_that_say([5, 1])
    logits[1, 3] = bad
    draft = draft_of([5], [-1])
    with pytest.raises(NonFiniteLogits):
        greedy(logits, logits.argmax(-1), draft)
    with pytest.raises(NonFiniteLogits):
        speculative(logits, logits.argmax(-1), draft, 1.0, torch.Generator())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_sampled_token_is_distributed_as_the_target_says(temperature: float) -> None:
    """Three siblings, one of them likely, must not bend the distribution of the token after the pending one."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0]).repeat(4, 1)
    draft, generator = draft_of([1, 4, 0], [-1, -1, -1]), torch.Generator().manual_seed(1)
    draws = 4000
    counts = torch.zeros(5)
    for _ in range(draws):
        counts[speculative(logits, logits.argmax(-1), draft, temperature, generator).tokens[0]] += 1
    expected = torch.softmax(logits[0].double() / temperature, -1) * draws
    assert chisquare(counts.double().numpy(), expected.numpy()).pvalue > 1e-3


def test_second_sampled_token_depends_on_the_accepted_first() -> None:
    logits = torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])  # pending; after 1; after 1, 2
    draft, generator = draft_of([1, 2], [-1, 0]), torch.Generator().manual_seed(2)
    counts = torch.zeros(3)
    for _ in range(6000):
        tokens = speculative(logits, logits.argmax(-1), draft, 1.0, generator).tokens
        if len(tokens) > 1:
            assert tokens[0] == 1
            counts[tokens[1]] += 1
    expected = torch.softmax(logits[1].double(), -1) * counts.sum()
    assert chisquare(counts.double().numpy(), expected.numpy()).pvalue > 1e-3
