from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bench.train.loss import Picked, Sums, Target, as_is, cross_entropy, final_states
from bench.train.packing import build_row
from tests.bench.train.test_packing import made
from tests.tiny import tiny_llama


def leaves(seed=0, n=13, hidden=8, vocab=21):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, hidden), (vocab, hidden), (n, hidden), (vocab, hidden))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).float() for shape in shapes]


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("hard", [False, True])
def test_values_and_gradients_equal_the_plain_formula(chunk, hard):
    states, head, wanted, wanted_head = leaves()
    labels = torch.arange(13) if hard else None
    states.requires_grad_(), head.requires_grad_()
    p, q = (wanted @ wanted_head.T).softmax(-1), (states @ head.T).log_softmax(-1)
    plain = F.nll_loss(q, labels, reduction="sum") if hard else -(p * q).sum()
    expected = torch.autograd.grad(3 * plain, (states, head))

    sums = cross_entropy(states, head, Target(wanted, wanted_head), labels=labels, chunk=chunk)
    (3 * sums.loss).backward()
    torch.testing.assert_close(sums.loss, plain)
    torch.testing.assert_close((states.grad, head.grad), expected, atol=1e-5, rtol=1e-4)
    assert int(sums.agree) == int((p.argmax(-1) == q.argmax(-1)).sum())
    torch.testing.assert_close(sums.overlap, torch.minimum(p, q.exp()).sum())
    assert int(sums.positions) == 13


def test_the_target_gets_no_gradient_and_a_frozen_head_none():
    states, head, wanted, _ = leaves()
    states.requires_grad_()
    cross_entropy(states, head, Target(wanted, head), chunk=4).loss.backward()
    assert head.grad is None and wanted.grad is None and states.grad is not None


def test_a_draft_that_is_the_target_has_the_targets_entropy():
    states, head, _, _ = leaves()
    sums = cross_entropy(states, head, Target(states.detach(), head), chunk=4)
    entropy = torch.distributions.Categorical(logits=states @ head.T).entropy().sum()
    torch.testing.assert_close(sums.loss, entropy)
    assert int(sums.agree) == 13 and abs(float(sums.overlap) - 13) < 1e-4


def test_a_head_in_half_precision_has_its_loss_and_gradients_of_float32_logits():
    states, head, wanted, wanted_head = leaves()
    states.requires_grad_()
    head, target = head.bfloat16(), Target(wanted, wanted_head)
    q = F.linear(states.bfloat16(), head).float().log_softmax(-1)
    plain = -((wanted @ wanted_head.T).softmax(-1) * q).sum()
    (expected,) = torch.autograd.grad(plain, states)
    sums = cross_entropy(states, head, target, chunk=5)
    sums.loss.backward()
    torch.testing.assert_close(sums.loss, plain)
    torch.testing.assert_close(states.grad, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_for_weights_in_float32_alone(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16), as_is(dtype, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is (dtype == torch.float32)


def test_conversations_of_a_row_have_the_states_that_they_have_alone():
    target, (first, second) = tiny_llama(), made([6, 4])
    beside = final_states(target, build_row([first, second]))
    alone = torch.cat([final_states(target, build_row([one])) for one in (first, second)])
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-4)


def test_losses_of_parts_are_weighted_and_all_else_is_their_mean():
    parts = [Sums(*torch.tensor(values)) for values in ([1.0, 2.0, 3.0, 8.0], [5.0, 4.0, 1.0, 6.0])]
    assert Sums.of_parts(parts, [1.0, 0.5]).detached().tolist() == [3.5, 3.0, 2.0, 7.0]


def test_no_position_gives_zero():
    states, head, wanted, _ = leaves(n=0)
    assert float(cross_entropy(states, head, Target(wanted, head), chunk=4).loss) == 0


def test_a_position_where_the_drafts_tokens_have_no_share_teaches_nothing():
    wanted_head = torch.eye(3) * torch.tensor([1.0, 1.0, 200.0])
    target = Target(torch.tensor([[0.0, 0.0, 1.0]]), wanted_head, torch.tensor([0, 1]))
    states, head = torch.ones(1, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    sums = cross_entropy(states, head, target, chunk=4)
    sums.loss.backward()
    assert sums.loss.item() == 0 and not states.grad.any() and not head.grad.any()


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize(("hard", "kept"), [(False, False), (True, False), (False, True)])
def test_over_a_draft_vocabulary_the_target_is_renormalised_and_what_lies_outside_teaches_nothing(chunk, hard, kept):
    states, head, wanted, wanted_head = leaves()
    vocabulary = torch.tensor([1, 2, 5, 9, 14, 20])
    head = head[:6].clone()
    labels = torch.arange(13) if hard else None
    states.requires_grad_(), head.requires_grad_()
    p, q = (wanted @ wanted_head.T).softmax(-1), (states @ head.T).log_softmax(-1)
    top = labels if hard else p.argmax(-1)
    known = [row for row in range(13) if int(top[row]) in vocabulary.tolist()]
    assert 0 < len(known) < 13
    part = p[:, vocabulary]
    if hard:
        plain = -sum(q[row, vocabulary.tolist().index(int(labels[row]))] for row in known)
    else:
        plain = -(part / part.sum(-1, keepdim=True) * q)[known].sum()
    expected = torch.autograd.grad(plain, (states, head))

    target = Target(wanted, wanted_head, vocabulary)
    if kept:
        backwards = torch.arange(12, -1, -1)
        target = Picked(Target(wanted[backwards], wanted_head, vocabulary).kept(3), backwards)
    places = target.places(labels) if hard else None
    sums = cross_entropy(states, head, target, labels=places, chunk=chunk)
    sums.loss.backward()
    torch.testing.assert_close(sums.loss, plain)
    torch.testing.assert_close((states.grad, head.grad), expected, atol=1e-5, rtol=1e-4)
    assert int(sums.agree) == int((p.argmax(-1) == vocabulary[q.argmax(-1)]).sum())
    torch.testing.assert_close(sums.overlap, torch.minimum(part, q.exp()).sum())
