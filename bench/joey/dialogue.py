"""Conversations of two turns (mt_bench): the second turn refers to the first."""

from __future__ import annotations

import itertools

from bench.joey.arithmetic import math_in_two_turns
from bench.joey.facts import ANIMALS, ANY_TOWN, NUMBER_WORDS, TOWNS, TRADES, Dialogue, Turn, people
from bench.joey.wording import Chance, a, listing, prose
from bench.joey.writing import letter, roleplay, story

_SCALES = (
    ("older", "younger", "oldest", "youngest"),
    ("taller", "shorter", "tallest", "shortest"),
    ("faster", "slower", "fastest", "slowest"),
)


def ordering(rng: Chance) -> Dialogue:
    up, down, most, least = rng.choice(_SCALES)
    names = [p.name for p in people(rng, 4)]
    clues = [rng.pick(f"{x} is {up} than {y}. | {y} is {down} than {x}.") for x, y in itertools.pairwise(names[:3])]
    rng.shuffle(clues)
    want_most = rng.random() < 0.5
    ask = prose(*clues, f"Who is the {most if want_most else least}?")
    chain = f"{names[0]} is {up} than {names[1]}, and {names[1]} is {up} than {names[2]}."
    first = rng.say(f"""
        Let us put the clues in order. | First put the clues together. | We can compare them one by one.
        We know that {chain} | The clues say that {chain}
        So {names[0]} is also {up} than {names[2]}. | It follows that {names[2]} is {down} than {names[0]}.
        {f"The {most} is {names[0]}." if want_most else f"The {least} is {names[2]}."}""")
    end = rng.random() < 0.5
    clue = f"{names[3]} is {down} than {names[2]}." if end else f"{names[3]} is {up} than {names[0]}."
    order = names if end else [names[3], *names[:3]]
    second = rng.pick(f"[Now a new clue:|One more thing:] {clue} Name all four, the {most} first.")
    reply = rng.say(f"""
        With the new clue, {names[3]} comes {"last" if end else "first"}.
        | {names[3]} is {down if end else up} than all the others.
        Before, the order was {listing(names[:3])}. | The other three stay in the order {listing(names[:3])}.
        So the order is {listing(order)}. | From the {most} to the {least} they are {listing(order)}.
        The {most} is now {order[0]} and the {least} is {order[3]}.""")
    return Dialogue("reasoning", (Turn(ask, first), Turn(second, reply)))


def extraction(rng: Chance) -> Dialogue:
    crowd = people(rng, 3)
    trades, towns = rng.sample(TRADES, 3), rng.sample(TOWNS, 3)
    ages = rng.sample(range(19, 80), 3)
    rows = list(zip(crowd, trades, towns, ages, strict=True))
    text = rng.say(
        "\n".join(
            f"""{p.name} is {a(t.name)} from {w.name} and {n} years old.
            | In {w.name} lives {p.name}, {a(t.name)} who is {n}.
            | {p.name}, who is {n}, works as {a(t.name)} in {w.name}."""
            for p, t, w, n in rows
        )
    )
    ask = rng.pick("""
        List the name, trade, town and age of each person.
        | Extract all people with their trade, town and age.""")
    first = " ".join(
        f"{i}. Name: {p.name}; trade: {t.name}; town: {w.name}; age: {n}." for i, (p, t, w, n) in enumerate(rows, 1)
    )
    by_age = sorted(rows, key=lambda row: row[3])
    if rng.random() < 0.5:
        person, trade, town, age = by_age[-1]
        second = rng.pick("Who of them is the oldest? | Name the oldest and say where that person lives.")
        reply = rng.say(f"""
            The ages are {listing([str(n) for n in ages])}.
            The largest of these is {age}, so the oldest is {person.name}.
            {person.name} is {a(trade.name)} and lives in {town.name}.
            | {person.he} lives in {town.name} and works as {a(trade.name)}.""")
    else:
        second = rng.pick("Sort them by age, the youngest first. | Now order the list from young to old.")
        reply = " ".join(f"{i}. Name: {p.name}; age: {n}; town: {w.name}." for i, (p, _, w, n) in enumerate(by_age, 1))
    return Dialogue("extraction", (Turn(f"{ask} {text}", first), Turn(second, reply)))


def stem(rng: Chance) -> Dialogue:
    one, two = rng.sample(ANIMALS, 2)
    name = people(rng, 1)[0].name
    ask = rng.pick(f"""
        Explain to {name} why {a(one.name)} has {one.trait}.
        | {name} asks: why does {a(one.name)} have {one.trait}? Explain it.""")
    first = rng.say(f"""
        {a(one.name)} has {one.trait} for a good reason: {one.reason}. | The reason is that {one.reason}.
        It lives in {one.home} and eats {one.food}. | Its home is {one.home}, and its food is {one.food}.
        The {one.name} {one.habit}, and that fits its body. | {name} can see this when the {one.name} {one.habit}.
        A body follows the way of life. | Over a long time, each body fits its place.""")
    second = rng.pick(f"How is {a(two.name)} different? | Compare this with {a(two.name)}.")
    reply = rng.say(f"""
        {a(two.name)} has {two.trait} instead. | Unlike the {one.name}, {a(two.name)} has {two.trait}.
        There the reason is that {two.reason}. | This helps, because {two.reason}.
        It lives in {two.home}, not in {one.home}.
        | While the {one.name} eats {one.food}, the {two.name} eats {two.food}.
        And the {two.name} {two.habit}. | Both are common near {ANY_TOWN}.""")
    return Dialogue("stem", (Turn(ask, first), Turn(second, reply)))


_EVENTS = (
    ("a great fire", "the houses were rebuilt in stone"),
    ("a flood", "a wall was built along the river"),
    ("a hard winter", "every house was given a store for grain"),
    ("a long quarrel with the tax men", "the town received its own court"),
    ("the fall of the old bridge", "a new road was laid to the north"),
)


def humanities(rng: Chance) -> Dialogue:
    town, name = rng.choice(TOWNS), people(rng, 1)[0].name
    year, gap = rng.randint(1300, 1700), rng.choice(NUMBER_WORDS[2:])
    event, effect = rng.choice(_EVENTS)
    place = rng.choice(["a talk", "a school lesson", "a walk through the town", "the local paper"])
    ask = rng.pick(f"""
        {name} needs a short history of {town.name} for {place}. Mention {event} in {year}.
        | Tell the history of {town.name} for {place} by {name}, with {event} of {year}.""")
    first = rng.say(f"""
        {town.name} was founded by {town.founder} on the river {town.river}.
        | The history of {town.name} begins with {town.founder}.
        In {year} came {event}, and after it {effect}. | Then, in {year}, there was {event}. As a result {effect}.
        It took {gap} years until trade in {town.craft} was strong again.
        | {gap} years later the trade in {town.craft} began to grow.
        Since those days the {town.fair} is held in {town.month}.
        | The {town.fair} in {town.month} still reminds people of that time.
        Today visitors admire {town.landmark}. | From that time comes {town.landmark}.""")
    second = rng.pick("Give me that as a list of three points. | What are the three main points?")
    reply = rng.say(f"""
        1. {town.name} was founded by {town.founder}. | 1. The founding by {town.founder}.
        2. In {year} there was {event}, so that {effect}. | 2. The year {year} with {event}, after which {effect}.
        3. Trade in {town.craft} grew, and the {town.fair} in {town.month} began.
        | 3. The {town.fair} in {town.month} and the trade in {town.craft}.""")
    return Dialogue("humanities", (Turn(ask, first), Turn(second, reply)))


MT_BENCH = (letter, story, roleplay, ordering, math_in_two_turns, extraction, stem, humanities)


def mt_bench(rng: Chance) -> Dialogue:
    return rng.choice(MT_BENCH)(rng)
