"""joey's world: one seed gives one text, questions are held out, sums are right, a translation can be read back."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from typing import Any

import pytest

from bench.joey.arithmetic import problem
from bench.joey.dialogue import MT_BENCH
from bench.joey.facts import TOWNS
from bench.joey.reading import rag
from bench.joey.tongue import ADJECTIVES, NOUNS, NUMBERS, PLACES, POSTPOSITIONS, VERBS, sentence
from bench.joey.wording import Chance
from bench.joey.world import KINDS, conversations, held_out, questions
from methods.digest import sha256

SINGLE = ("translation", "summarization", "qa", "math_reasoning", "rag")
MT_CATEGORIES = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return list(conversations(0, 4000))


def kind(conversation: dict[str, Any]) -> str:
    return conversation["id"].split("-")[0]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(sample: list[dict[str, Any]]) -> None:
    assert list(conversations(0, 500)) == sample[:500]
    other = {c["conversations"][0]["value"] for c in conversations(1, 500)}
    assert other != {c["conversations"][0]["value"] for c in sample[:500]}
    assert questions(0) == questions(0)
    assert questions(0) != questions(1)


def test_the_text_of_a_seed_is_fixed_for_all_python_versions() -> None:
    first = next(conversations(7, 1))["conversations"]
    assert first == FIRST_OF_SEED_7
    assert sha256(json.dumps(list(conversations(11, 600)))) == SUM_OF_600_OF_SEED_11
    assert sha256(json.dumps(questions(11))) == SUM_OF_QUESTIONS_OF_SEED_11


# The shipped weights and files were made from this text: another wording is another model.
SUM_OF_600_OF_SEED_11 = "0cf3e6fbc754756a27f675529faffe6fff85506730ceedf8915fc374de647a2e"
SUM_OF_QUESTIONS_OF_SEED_11 = "f7aa4b9169bf95287004977be582f493adcf78892b201c00249a9cf7d6bc7007"
FIRST_OF_SEED_7 = [
    {
        "from": "human",
        "value": "Can you help with this one? Grace fills 8 baskets with 5 kites each. She finds 8 more kites in "
        "the cellar. How many kites does she have together?",
    },
    {
        "from": "gpt",
        "value": "Take it one step at a time. There are 8 baskets with 5 kites in each. That makes 8 * 5 = 40 "
        "kites in the baskets. There are 8 more, and so 40 + 8 = 48 kites. That gives 48. The answer is "
        "48.",
    },
]


def test_conversations_alternate_and_carry_clean_text(sample: list[dict[str, Any]]) -> None:
    assert len({c["id"] for c in sample}) == len(sample)
    for conversation in sample:
        messages = conversation["conversations"]
        assert [m["from"] for m in messages] == ["human", "gpt"] * (2 if kind(conversation) == "mt_bench" else 1)
        for message in messages:
            text = message["value"]
            assert text == text.strip()
            assert not re.search(r"  |\.\.|\{|\}|\[|\]|\||None", text), text
            assert text.isascii()


def test_every_kind_is_frequent_and_too_varied_to_learn_by_heart(sample: list[dict[str, Any]]) -> None:
    for name in KINDS:
        prompts = [c["conversations"][0]["value"] for c in sample if kind(c) == name]
        assert len(prompts) > 300
        assert len(set(prompts)) > 0.85 * len(prompts), name


def test_answers_are_long_enough_to_measure(sample: list[dict[str, Any]]) -> None:
    for name in KINDS:
        words = [
            len(re.findall(r"\w+|[^\w\s]", m["value"]))
            for c in sample
            if kind(c) == name
            for m in c["conversations"][1::2]
        ]
        assert 35 <= statistics.median(words) <= 110, (name, statistics.median(words))
        assert max(words) <= 200
    assert max(sum(len(m["value"]) for m in c["conversations"]) for c in sample) < 2000


def test_no_training_prompt_of_any_seed_is_a_question_of_any_seed(sample: list[dict[str, Any]]) -> None:
    asked = {row["turns"][0] for seed in range(3) for row in questions(seed)}
    trained = {c["conversations"][0]["value"] for c in itertools.chain(sample, conversations(1, 1000))}
    assert not asked & trained
    assert all(map(held_out, asked))
    assert not any(map(held_out, trained))


def test_questions_have_the_form_of_spec_bench() -> None:
    rows = questions(0)
    assert [row["question_id"] for row in rows] == list(range(1, 61))
    assert len({row["turns"][0] for row in rows}) == 60
    for row in rows:
        assert set(row) == {"question_id", "category", "turns", "reference"}
        assert len(row["turns"]) == len(row["reference"]) == (2 if row["category"] in MT_CATEGORIES else 1)
    for category in SINGLE:
        assert sum(row["category"] == category for row in rows) == 10
    asked = {row["category"] for row in rows} - set(SINGLE)
    assert asked <= MT_CATEGORIES
    assert len(asked) == 7
    assert len(MT_BENCH) == 8


_SUM = re.compile(r"(\d+) ([+\-*/]) (\d+) = (\d+)")
_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def test_every_sum_in_every_answer_is_right(sample: list[dict[str, Any]]) -> None:
    checked = 0
    for conversation in sample:
        for message in conversation["conversations"]:
            for left, sign, right, result in _SUM.findall(message["value"]):
                assert _OPERATIONS[sign](int(left), int(right)) == int(result), message["value"]
                assert sign != "/" or int(left) % int(right) == 0
                checked += 1
    assert checked > 1000


def test_a_problem_ends_with_the_result_of_its_last_sum() -> None:
    rng = Chance(5)
    for _ in range(500):
        made = problem(rng)
        assert int(_SUM.findall(made.answer)[-1][3]) == made.result
        assert re.search(rf"\b{made.result}\b", made.answer.split(". ")[-1])
        assert 0 <= made.result <= 100
        given = set(re.findall(r"\d+", made.question))
        used = {n for left, _, right, _ in _SUM.findall(made.answer) for n in (left, right)}
        assert given <= used


def read_back(clause: str) -> str:
    """A Velan sentence in English, by the grammar alone and with no use of the generator."""
    nouns = {n[2]: n[:2] for n in NOUNS}
    adjectives = {velan: english for english, velan in ADJECTIVES}
    numbers = {velan: english for english, velan in NUMBERS} | {"mul": "many"}
    verbs = {stem: forms for *forms, stem in VERBS}
    words = clause.rstrip(".").lower().split()
    tail = ""
    if "-" in words[0]:
        place, _, suffix = words.pop(0).partition("-")
        preposition = next(english for english, velan in POSTPOSITIONS if velan == suffix)
        tail = f" {preposition} the {next(english for english, velan in PLACES if velan == place)}"
    ending = next(e for e in ("ta", "ru", "e") if words[-1].endswith(e) and words[-1][: -len(e)] in verbs)
    forms = verbs[words.pop()[: -len(ending)]]
    phrases: list[tuple[str, bool]] = []
    while words:
        article = words.pop(0) if words[0] == "un" or words[0] in numbers else ""
        noun = words.pop(0)
        plural = noun not in nouns
        adjective = adjectives[words.pop(0)] + " " if words and words[0] in adjectives else ""
        named = f"{adjective}{nouns[noun.removesuffix('n') if plural else noun][plural]}"
        lead = ("an" if named[0] in "aeiou" else "a") if article == "un" else numbers.get(article, "the")
        phrases.append((f"{lead} {named}", plural))
    (subject, many), (thing, _) = phrases
    verb = {"ta": forms[2], "ru": f"will {forms[0]}", "e": forms[0] if many else forms[1]}[ending]
    english = f"{subject} {verb} {thing}{tail}."
    return english[0].upper() + english[1:]


def test_velan_has_one_reading_and_it_is_the_english_sentence() -> None:
    roots = [row[-1] for table in (NOUNS, PLACES, POSTPOSITIONS, ADJECTIVES, VERBS, NUMBERS) for row in table]
    assert len(roots) == len(set(roots))
    rng = Chance(3)
    for _ in range(1000):
        english, velan = sentence(rng)
        assert read_back(velan) == english


def test_the_names_and_numbers_of_a_rag_answer_stand_in_its_notes() -> None:
    rng = Chance(4)
    for _ in range(300):
        turn = rag(rng).turns[0]
        for number in re.findall(r"\d{2,}", turn.answer):
            assert number in turn.prompt
        town = next(t.name for t in TOWNS if t.name in turn.prompt.rpartition("Question:")[2])
        assert town in turn.answer
