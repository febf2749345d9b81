"""Texts with alternatives: what is drawn, from what, and in which order."""

from __future__ import annotations

import random

import pytest

from bench.joey.wording import Chance, prose


def draws(text: str) -> set[str]:
    return {Chance(seed).say(text) for seed in range(60)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one sentence.", {"One sentence."}),
        ("a. | b.", {"A.", "B."}),
        ("a. | b.\n        | c.", {"A.", "B.", "C."}),
        ("a. |", {"A.", ""}),
        ("| a.", {"A.", ""}),
        ("go [up|down].", {"Go up.", "Go down."}),
        ("a. | b.\n    c. | d.", {"A. C.", "A. D.", "B. C.", "B. D."}),
        ("a.\n\n    b.", {"A. B."}),
    ],
)
def test_each_alternative_of_each_line_is_drawn_and_nothing_else(text: str, said: set[str]) -> None:
    assert draws(text) == said


def test_choices_within_come_first_also_those_of_alternatives_not_taken() -> None:
    drawn, told = random.Random(3), Chance(3)
    for _ in range(20):
        inner = [drawn.choice("ab"), drawn.choice("cd")]
        assert told.pick("[a|b]1 | [c|d]2 | 3") == drawn.choice([f"{inner[0]}1", f"{inner[1]}2", "3"])


def test_a_line_with_no_alternative_draws_nothing() -> None:
    rng = Chance(3)
    rng.say("all. of\nthis.")
    assert rng.getstate() == random.Random(3).getstate()


def test_empty_sentences_leave_no_blank() -> None:
    assert prose("", "one.", "", "two.") == "One. Two."
