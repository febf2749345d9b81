"""The ruler, with a clock that the test moves: what is timed, what is left over, and nothing from the turn before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.measure import PhaseTimer, Timed, timed_generation
from methods.decoder import Decoder, Generation, NoPhases, Phases, Step
from methods.vanilla import Vanilla
from tests.tiny import tiny_llama

CPU = torch.device("cpu")


class Clock:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A generator whose phases take the given seconds; `slow` between them is overhead."""

    context = 64

    def __init__(self, clock: Clock, prefill: float, draft: float, verify: float, slow: float, steps: int) -> None:
        self.clock, self.prefill, self.draft, self.verify = clock, prefill, draft, verify
        self.slow, self.steps = slow, steps

    def generate(self, prompt: torch.Tensor, max_new_tokens: int, phases: Phases | None = None) -> Generation:
        phases = phases or NoPhases()
        with phases.prefill():
            self.clock.now += self.prefill
        for _ in range(self.steps):
            with phases.draft():
                self.clock.now += self.draft
            with phases.verify():
                self.clock.now += self.verify
            self.clock.now += self.slow
        return Generation(tuple(range(2 * self.steps + 1)), (Step(1, 2),) * self.steps, "length")


def test_phases_add_up_and_the_rest_is_overhead() -> None:
    clock = Clock()
    generator = Scripted(clock, prefill=1.0, draft=0.25, verify=0.5, slow=0.125, steps=4)
    for _ in range(2):  # a leak would show the second time
        timed = timed_generation(generator, [1, 2, 3], 9, CPU, clock)
        assert (timed.wall_s, timed.prefill_s, timed.draft_s, timed.verify_s) == (4.5, 1.0, 1.0, 2.0)
        assert timed.wall_s - timed.prefill_s - timed.draft_s - timed.verify_s == 0.5
        assert timed.peak_memory_bytes is None


def test_a_turn_with_no_step_has_no_draft_and_no_verify_time() -> None:
    clock = Clock()
    timed = timed_generation(Scripted(clock, 1.0, 1.0, 1.0, 0.0, steps=0), [1], 9, CPU, clock)
    assert (timed.wall_s, timed.draft_s, timed.verify_s) == (1.0, 0.0, 0.0)


def test_time_counts_when_a_phase_fails() -> None:
    clock = Clock()
    timer = PhaseTimer(CPU, clock)
    with pytest.raises(RuntimeError), timer.verify():
        clock.now += 2.0
        raise RuntimeError
    assert timer.spans["verify"].seconds() == 2.0


def test_the_decoder_spends_every_pass_in_a_phase() -> None:
    """Every reading moves the clock by one: one prefill, then draft, verify, draft a step."""
    clock = Clock()

    def ticking() -> float:
        clock.now += 1.0
        return clock.now

    model = tiny_llama()
    timed = _timed(Decoder(model, Vanilla(model)), ticking)
    steps = len(timed.generation.steps)
    assert timed.prefill_s == 1.0 and timed.verify_s == steps
    assert timed.draft_s == 2 * steps - 1, "observe is drafting time, and is not called for the last pass"


def _timed(decoder: Decoder, clock: Callable[[], float]) -> Timed:
    return timed_generation(decoder, [5, 6, 7], 8, CPU, clock)
