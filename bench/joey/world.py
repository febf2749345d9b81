"""joey's small world: conversations for training and held-out questions, both from a seed.

Held-out is a property of the text, not of the seed: one first prompt in 32, chosen by its SHA-256, belongs to the
questions and is never given to training. So no seed of `conversations` meets a question of any seed of `questions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.joey.arithmetic import math_reasoning
from bench.joey.dialogue import MT_BENCH, mt_bench
from bench.joey.facts import Dialogue
from bench.joey.knowledge import qa
from bench.joey.reading import rag, summarization
from bench.joey.tongue import translation
from bench.joey.wording import Chance
from methods.digest import sha256

KINDS: dict[str, Callable[[Chance], Dialogue]] = {
    "mt_bench": mt_bench,
    "translation": translation,
    "summarization": summarization,
    "qa": qa,
    "math_reasoning": math_reasoning,
    "rag": rag,
}
# mt_bench holds eight kinds in itself, and arithmetic and translation need the most practice.
_WEIGHTS = (6, 4, 3, 4, 4, 3)
_QUESTIONS_PER_KIND = 10


def held_out(prompt: str) -> bool:
    return sha256(prompt)[:2] < "08"


def conversations(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` training conversations, in ShareGPT form: {"id", "conversations": [{"from": human | gpt, "value"}]}."""
    rng = Chance(f"conversations {seed}")
    kinds = list(KINDS)
    made = 0
    while made < count:
        kind = rng.choices(kinds, _WEIGHTS)[0]
        dialogue = KINDS[kind](rng)
        if held_out(dialogue.turns[0].prompt):
            continue
        messages = []
        for turn in dialogue.turns:
            messages += [{"from": "human", "value": turn.prompt}, {"from": "gpt", "value": turn.answer}]
        yield {"id": f"{kind}-{seed}-{made}", "conversations": messages}
        made += 1


def _held_out_dialogue(make: Callable[[Chance], Dialogue], rng: Chance) -> Dialogue:
    while True:
        dialogue = make(rng)
        if held_out(dialogue.turns[0].prompt):
            return dialogue


def questions(seed: int) -> list[dict[str, Any]]:
    """Held-out questions in Spec-Bench's form, ten a subtask: {"question_id", "category", "turns", "reference"}."""
    rows: list[dict[str, Any]] = []
    for kind, make in KINDS.items():
        rng = Chance(f"questions {seed} {kind}")
        for index in range(_QUESTIONS_PER_KIND):
            # mt_bench goes through its own kinds in turn, so that all of them are asked.
            chosen = MT_BENCH[index % len(MT_BENCH)] if kind == "mt_bench" else make
            dialogue = _held_out_dialogue(chosen, rng)
            rows.append(
                {
                    "question_id": len(rows) + 1,
                    "category": dialogue.category,
                    "turns": [turn.prompt for turn in dialogue.turns],
                    "reference": [turn.answer for turn in dialogue.turns],
                }
            )
    return rows
