"""The loop itself, with methods written here that draft the truth, nonsense, or branches of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from methods.decoder import Decoder, Generation, Prefill, Verification
from methods.draft import Draft, Extra, Tree
from methods.engine.llama import Llama
from methods.errors import NonFiniteLogits, UserError
from methods.vanilla import Vanilla
from tests.tiny import tiny_llama

PROMPT = torch.arange(10, 25)
CPU = torch.device("cpu")


def with_eos(model: Llama, *eos: int) -> Llama:
    return Llama(replace(model.config, eos_token_ids=eos), model.weights)


def vanilla(model: Llama, prompt: torch.Tensor = PROMPT, new: int = 60, context: int | None = None) -> Generation:
    return Decoder(model, Vanilla(model), context=context).generate(prompt, new)


class Oracle:
    """Drafts a tree whose one branch is what vanilla says next, right for `right` tokens; the others are wrong.

    Extra rows, when asked for, must change nothing.
    """

    taps = (0, 2, 4)
    max_rows = 40
    extra_parameters = 0

    def __init__(self, truth: list[int], *, length: int, right: int, branches: int = 1, extra: int = 0) -> None:
        self.truth, self.length, self.right, self.branches, self.extra = truth, length, right, branches, extra
        self.seen: list[Verification] = []

    def start(self, prompt: list[int], prefill: Prefill) -> Oracle:
        self.prompt_length = len(prompt)
        assert [len(states) for states in prefill.tapped] == [len(prompt)] * 3 and prefill.final.shape[0] == 1
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        assert room >= 1
        done = len(tokens) - self.prompt_length
        length = min(self.length, room)
        chain = [*self.truth[done : done + length], *[0] * length][:length]
        chain[self.right :] = [(token + 1) % 128 for token in chain[self.right :]]
        tokens_, parents = [], []
        for branch in range(self.branches):
            wrong = branch < self.branches - 1  # the true branch comes last, so its rows have to move
            parents += [-1 if i == 0 else len(parents) + i - 1 for i in range(length)]
            tokens_ += [(token + 2) % 128 for token in chain] if wrong else chain
        extra = None
        if self.extra:
            rows = 1 + len(tokens_)
            mask = torch.eye(self.extra, rows + self.extra, dtype=torch.bool).roll(rows, 1)
            extra = Extra(torch.arange(self.extra), torch.ones(self.extra, dtype=torch.int64), mask)
        return Draft(torch.tensor(tokens_), Tree.build(parents, CPU), extra=extra)

    def observe(self, verification: Verification) -> None:
        self.seen.append(verification)


@pytest.fixture(scope="module")
def model() -> Llama:
    return with_eos(tiny_llama())


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize(("length", "right"), [(1, 1), (4, 4), (4, 2), (6, 0)])
def test_any_draft_gives_vanillas_tokens_and_the_expected_steps(
    model: Llama, length: int, right: int, branches: int, extra: int
) -> None:
    plain = vanilla(model)
    method = Oracle(list(plain.tokens), length=length, right=right, branches=branches, extra=extra)
    result = Decoder(model, method).generate(PROMPT, 60)
    assert result.tokens == plain.tokens
    assert {step.drafted for step in result.steps} == {length * branches}
    assert all(step.emitted == right + 1 for step in result.steps[:-1])
    assert len(result.tokens) == 1 + sum(step.emitted for step in result.steps) == 60
    assert len(method.seen) == len(result.steps) - 1
    assert all(seen.final.shape[0] == 1 + length * branches + extra for seen in method.seen)


def test_vanilla_emits_one_token_a_step(model: Llama) -> None:
    plain = vanilla(model)
    assert [step.emitted for step in plain.steps] == [1] * 59 and plain.stop == "length"


@pytest.mark.parametrize("place", range(8))
def test_eos_ends_the_output_wherever_it_stands_in_a_block(model: Llama, place: int) -> None:
    prompt = next(p for p in torch.randperm(128)[:100, None] if len(set(vanilla(model, p, 8).tokens)) == 8)
    plain = vanilla(model, prompt)
    stopping = with_eos(model, plain.tokens[place])
    method = Oracle(list(plain.tokens), length=6, right=6)
    result = Decoder(stopping, method).generate(prompt, 60)
    assert result.tokens == plain.tokens[: place + 1] and result.stop == "eos"
    assert 1 + sum(step.emitted for step in result.steps) == place + 1
    assert vanilla(stopping, prompt).tokens == result.tokens


@pytest.mark.parametrize("new", range(1, 9))
def test_max_new_tokens_shortens_the_last_step(model: Llama, new: int) -> None:
    truth = vanilla(model).tokens
    result = Decoder(model, Oracle(list(truth), length=3, right=3)).generate(PROMPT, new)
    assert result.tokens == truth[:new] and result.stop == "length"
    assert 1 + sum(step.emitted for step in result.steps) == new


@pytest.mark.parametrize("context", range(16, 26))
def test_context_fills_up_to_the_last_token(model: Llama, context: int) -> None:
    truth = vanilla(model).tokens
    result = Decoder(model, Oracle(list(truth), length=5, right=5, branches=2), context=context).generate(PROMPT, 60)
    assert result.tokens == truth[: context - len(PROMPT)] and result.stop == "context"
    assert vanilla(model, context=context).tokens == result.tokens


def test_a_second_sequence_is_not_changed_by_the_first(model: Llama) -> None:
    decoder = Decoder(model, Vanilla(model))
    other = torch.arange(40, 45)
    alone = Decoder(model, Vanilla(model)).generate(other, 30)
    decoder.generate(PROMPT, 60)
    assert decoder.generate(other, 30) == alone


@pytest.mark.parametrize("length", [0, 256, 300])
def test_prompt_without_room_is_refused(model: Llama, length: int) -> None:
    with pytest.raises(UserError, match=f"prompt of {length} tokens"):
        vanilla(model, torch.ones(length, dtype=torch.int64))


@pytest.mark.parametrize("context", [1, 257])
def test_context_out_of_range_is_refused(model: Llama, context: int) -> None:
    with pytest.raises(UserError, match=f"context={context}"):
        Decoder(model, Vanilla(model), context=context)


def test_nan_logits_stop_the_sequence() -> None:
    broken = tiny_llama()
    broken.weights.norm.fill_(float("nan"))
    with pytest.raises(NonFiniteLogits):
        vanilla(broken)


def test_sampling_starts_anew_for_every_sequence(model: Llama) -> None:
    decoder = Decoder(model, Vanilla(model), temperature=1.0, seed=3)
    first = decoder.generate(PROMPT, 30)
    assert decoder.generate(PROMPT, 30) == first
    assert Decoder(model, Vanilla(model), temperature=1.0, seed=4).generate(PROMPT, 30) != first


def test_phases_enclose_the_work(model: Llama) -> None:
    class Counting:
        def __init__(self) -> None:
            self.entered: list[str] = []

        def prefill(self):
            return self._note("prefill")

        def draft(self):
            return self._note("draft")

        def verify(self):
            return self._note("verify")

        def _note(self, name: str):
            from contextlib import nullcontext

            self.entered.append(name)
            return nullcontext()

    phases = Counting()
    result = Decoder(model, Vanilla(model)).generate(PROMPT, 5, phases)
    assert phases.entered == ["prefill"] + ["draft", "verify", "draft"] * 3 + ["draft", "verify"]
    assert len(result.steps) == 4


def test_a_sequence_is_over_once_another_begins_in_its_cache(model: Llama) -> None:
    decoder = Decoder(model, Vanilla(model))
    first = decoder.begin(torch.tensor([5, 6, 7]), 20)
    beside = decoder.begin(torch.tensor([5, 6, 7]), 20, cache=decoder.new_cache())
    first.step()
    second = decoder.begin(torch.tensor([9, 9]), 20)
    with pytest.raises(RuntimeError, match="this sequence is over: another one has begun in its cache"):
        first.step()
    second.step()
    beside.step()
    assert beside.tokens == first.tokens


def test_no_temperature_is_below_zero(model: Llama) -> None:
    with pytest.raises(UserError, match=r"^temperature=-1.0: must be 0"):
        Decoder(model, Vanilla(model), temperature=-1.0)
