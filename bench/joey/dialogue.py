"""Conversations of two turns (mt_bench): the second turn refers to the first."""

from __future__ import annotations

import itertools
import random

from bench.joey.arithmetic import math_in_two_turns
from bench.joey.facts import ANIMALS, NUMBER_WORDS, TOWNS, TRADES, Dialogue, Turn, a, listing, people, prose
from bench.joey.writing import letter, roleplay, story

_SCALES = (
    ("older", "younger", "oldest", "youngest"),
    ("taller", "shorter", "tallest", "shortest"),
    ("faster", "slower", "fastest", "slowest"),
)


def ordering(rng: random.Random) -> Dialogue:
    up, down, most, least = rng.choice(_SCALES)
    names = [p.name for p in people(rng, 4)]
    clues = [
        rng.choice([f"{x} is {up} than {y}.", f"{y} is {down} than {x}."]) for x, y in itertools.pairwise(names[:3])
    ]
    told = list(clues)
    rng.shuffle(told)
    want_most = rng.random() < 0.5
    ask = prose(*told, f"Who is the {most if want_most else least}?")
    chain = f"{names[0]} is {up} than {names[1]}, and {names[1]} is {up} than {names[2]}."
    first = prose(
        rng.choice(
            ["Let us put the clues in order.", "First put the clues together.", "We can compare them one by one."]
        ),
        rng.choice([f"We know that {chain}", f"The clues say that {chain}"]),
        rng.choice(
            [f"So {names[0]} is also {up} than {names[2]}.", f"It follows that {names[2]} is {down} than {names[0]}."]
        ),
        f"The {most} is {names[0]}." if want_most else f"The {least} is {names[2]}.",
    )
    end = rng.random() < 0.5
    clue = f"{names[3]} is {down} than {names[2]}." if end else f"{names[3]} is {up} than {names[0]}."
    order = names if end else [names[3], *names[:3]]
    second = f"{rng.choice(['Now a new clue:', 'One more thing:'])} {clue} Name all four, the {most} first."
    reply = prose(
        rng.choice(
            [
                f"With the new clue, {names[3]} comes {'last' if end else 'first'}.",
                f"{names[3]} is {down if end else up} than all the others.",
            ]
        ),
        rng.choice(
            [f"Before, the order was {listing(names[:3])}.", f"The other three stay in the order {listing(names[:3])}."]
        ),
        rng.choice(
            [f"So the order is {listing(order)}.", f"From the {most} to the {least} they are {listing(order)}."]
        ),
        f"The {most} is now {order[0]} and the {least} is {order[3]}.",
    )
    return Dialogue("reasoning", (Turn(ask, first), Turn(second, reply)))


def extraction(rng: random.Random) -> Dialogue:
    crowd = people(rng, 3)
    trades, towns = rng.sample(TRADES, 3), rng.sample(TOWNS, 3)
    ages = rng.sample(range(19, 80), 3)
    rows = list(zip(crowd, trades, towns, ages, strict=True))
    text = prose(
        *[
            rng.choice(
                [
                    f"{p.name} is {a(t.name)} from {w.name} and {n} years old.",
                    f"In {w.name} lives {p.name}, {a(t.name)} who is {n}.",
                    f"{p.name}, who is {n}, works as {a(t.name)} in {w.name}.",
                ]
            )
            for p, t, w, n in rows
        ]
    )
    ask = (
        rng.choice(
            [
                "List the name, trade, town and age of each person. ",
                "Extract all people with their trade, town and age. ",
            ]
        )
        + text
    )
    first = " ".join(
        f"{i}. Name: {p.name}; trade: {t.name}; town: {w.name}; age: {n}." for i, (p, t, w, n) in enumerate(rows, 1)
    )
    by_age = sorted(rows, key=lambda row: row[3])
    if rng.random() < 0.5:
        old = by_age[-1]
        second = rng.choice(["Who of them is the oldest?", "Name the oldest and say where that person lives."])
        reply = prose(
            f"The ages are {listing([str(n) for _, _, _, n in rows])}.",
            f"The largest of these is {old[3]}, so the oldest is {old[0].name}.",
            rng.choice(
                [
                    f"{old[0].name} is {a(old[1].name)} and lives in {old[2].name}.",
                    f"{old[0].he} lives in {old[2].name} and works as {a(old[1].name)}.",
                ]
            ),
        )
    else:
        second = rng.choice(["Sort them by age, the youngest first.", "Now order the list from young to old."])
        reply = " ".join(f"{i}. Name: {p.name}; age: {n}; town: {w.name}." for i, (p, _, w, n) in enumerate(by_age, 1))
    return Dialogue("extraction", (Turn(ask, first), Turn(second, reply)))


def stem(rng: random.Random) -> Dialogue:
    one, two = rng.sample(ANIMALS, 2)
    who = people(rng, 1)[0]
    ask = rng.choice(
        [
            f"Explain to {who.name} why {a(one.name)} has {one.trait}.",
            f"{who.name} asks: why does {a(one.name)} have {one.trait}? Explain it.",
        ]
    )
    first = prose(
        rng.choice(
            [f"{a(one.name)} has {one.trait} for a good reason: {one.reason}.", f"The reason is that {one.reason}."]
        ),
        rng.choice(
            [f"It lives in {one.home} and eats {one.food}.", f"Its home is {one.home}, and its food is {one.food}."]
        ),
        rng.choice(
            [
                f"The {one.name} {one.habit}, and that fits its body.",
                f"{who.name} can see this when the {one.name} {one.habit}.",
            ]
        ),
        rng.choice(["A body follows the way of life.", "Over a long time, each body fits its place."]),
    )
    second = rng.choice([f"How is {a(two.name)} different?", f"Compare this with {a(two.name)}."])
    reply = prose(
        rng.choice(
            [f"{a(two.name)} has {two.trait} instead.", f"Unlike the {one.name}, {a(two.name)} has {two.trait}."]
        ),
        rng.choice([f"There the reason is that {two.reason}.", f"This helps, because {two.reason}."]),
        rng.choice(
            [
                f"It lives in {two.home}, not in {one.home}.",
                f"While the {one.name} eats {one.food}, the {two.name} eats {two.food}.",
            ]
        ),
        rng.choice([f"And the {two.name} {two.habit}.", f"Both are common near {rng.choice(TOWNS).name}."]),
    )
    return Dialogue("stem", (Turn(ask, first), Turn(second, reply)))


def humanities(rng: random.Random) -> Dialogue:
    town, who = rng.choice(TOWNS), people(rng, 1)[0]
    year, gap = rng.randint(1300, 1700), rng.choice(NUMBER_WORDS[2:])
    event, effect = rng.choice(
        [
            ("a great fire", "the houses were rebuilt in stone"),
            ("a flood", "a wall was built along the river"),
            ("a hard winter", "every house was given a store for grain"),
            ("a long quarrel with the tax men", "the town received its own court"),
            ("the fall of the old bridge", "a new road was laid to the north"),
        ]
    )
    place = rng.choice(["a talk", "a school lesson", "a walk through the town", "the local paper"])
    ask = rng.choice(
        [
            f"{who.name} needs a short history of {town.name} for {place}. Mention {event} in {year}.",
            f"Tell the history of {town.name} for {place} by {who.name}, with {event} of {year}.",
        ]
    )
    first = prose(
        rng.choice(
            [
                f"{town.name} was founded by {town.founder} on the river {town.river}.",
                f"The history of {town.name} begins with {town.founder}.",
            ]
        ),
        rng.choice(
            [
                f"In {year} came {event}, and after it {effect}.",
                f"Then, in {year}, there was {event}. As a result {effect}.",
            ]
        ),
        rng.choice(
            [
                f"It took {gap} years until trade in {town.craft} was strong again.",
                f"{gap} years later the trade in {town.craft} began to grow.",
            ]
        ),
        rng.choice(
            [
                f"Since those days the {town.fair} is held in {town.month}.",
                f"The {town.fair} in {town.month} still reminds people of that time.",
            ]
        ),
        rng.choice([f"Today visitors admire {town.landmark}.", f"From that time comes {town.landmark}."]),
    )
    second = rng.choice(["Give me that as a list of three points.", "What are the three main points?"])
    reply = " ".join(
        [
            rng.choice([f"1. {town.name} was founded by {town.founder}.", f"1. The founding by {town.founder}."]),
            rng.choice(
                [
                    f"2. In {year} there was {event}, so that {effect}.",
                    f"2. The year {year} with {event}, after which {effect}.",
                ]
            ),
            rng.choice(
                [
                    f"3. Trade in {town.craft} grew, and the {town.fair} in {town.month} began.",
                    f"3. The {town.fair} in {town.month} and the trade in {town.craft}.",
                ]
            ),
        ]
    )
    return Dialogue("humanities", (Turn(ask, first), Turn(second, reply)))


MT_BENCH = (letter, story, roleplay, ordering, math_in_two_turns, extraction, stem, humanities)


def mt_bench(rng: random.Random) -> Dialogue:
    return rng.choice(MT_BENCH)(rng)
