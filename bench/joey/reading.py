"""Tasks with a text to read: summaries and answers from notes."""

from __future__ import annotations

import random

from bench.joey.facts import (
    MONTHS,
    NUMBER_WORDS,
    TOWNS,
    TRADES,
    WEATHER,
    Dialogue,
    Town,
    Turn,
    a,
    full_name,
    listing,
    people,
    prose,
)

_TROUBLES = (
    ("the wheel of the cart broke", "a broken wheel", "mended the wheel with a rope"),
    ("the bridge was closed", "a closed bridge", "showed a shallow place to cross"),
    ("a dog ran off with the bag", "a dog that took the bag", "called the dog back"),
    ("the rain washed the road away", "a flooded road", "led the way over the hill"),
    ("the money was gone", "some lost money", "lent ten coins"),
    ("the shop was closed that day", "a closed shop", "opened the back door"),
    ("the map turned out to be wrong", "a wrong map", "drew a better map"),
    ("the boat had a hole", "a leaking boat", "closed the hole with wax"),
)
_GOALS = (
    ("deliver {n} jars of honey", "a delivery of honey"),
    ("sell {n} baskets of apples", "the sale of apples"),
    ("buy {n} rolls of cloth", "some cloth"),
    ("visit a sick aunt", "a visit to an aunt"),
    ("repair the clock of the school", "the repair of a clock"),
    ("bring {n} books to the library", "books for the library"),
    ("find a lost goat", "a search for a goat"),
    ("learn how to make candles", "a lesson in candle making"),
)
_FEELINGS = ("tired but happy", "very proud", "full of new plans", "glad to be back", "hungry and content")


def summarization(rng: random.Random) -> Dialogue:
    who, helper = people(rng, 2)
    trade, helper_trade = (t.name for t in rng.sample(TRADES, 2))
    home, goal_town = rng.sample(TOWNS, 2)
    trouble, short_trouble, help_given = rng.choice(_TROUBLES)
    goal, short_goal = rng.choice(_GOALS)
    goal = goal.format(n=rng.randint(3, 30))
    month, feeling, days = rng.choice(MONTHS), rng.choice(_FEELINGS), rng.choice(NUMBER_WORDS[2:])
    gift = rng.choice(["a jar of honey", "a warm loaf", "a blue scarf", "a small bell", "a pair of gloves"])
    opening = rng.choice(
        [
            f"In {month}, {who.name}, {a(trade)} from {home.name}, set out for {goal_town.name} to {goal}.",
            f"{who.name} is {a(trade)} in {home.name}."
            f" One day in {month} {who.he} left for {goal_town.name} to {goal}.",
        ]
    )
    filler = [
        f"The day began with {rng.choice(WEATHER)}.",
        f"The road follows the river {home.river} for a while.",
        f"At noon {who.he} ate some {rng.choice(['bread', 'cheese', 'soup', 'plums'])} under a tree.",
        f"{goal_town.name} is known for its {goal_town.craft}.",
        f"Many people were on the road because of the {goal_town.fair}.",
    ]
    rng.shuffle(filler)
    middle = rng.choice([f"Halfway there, {trouble}.", f"Not far from {goal_town.name}, {trouble}."])
    helped = rng.choice(
        [
            f"Luckily {helper.name}, {a(helper_trade)}, came by and {help_given}.",
            f"{a(helper_trade)} named {helper.name} saw it and {help_given}.",
        ]
    )
    end = rng.choice(
        [
            f"After {days} days {who.name} came home, {feeling}.",
            f"{who.name} was home again {days} days later, {feeling}.",
        ]
    )
    thanks = rng.choice(
        [f"To say thank you, {who.name} gave {helper.name} {gift}.", f"{helper.name} received {gift} as thanks.", ""]
    )
    passage = prose(opening, *filler[:2], middle, helped, filler[2], thanks, end)
    ask = rng.choice(
        [
            "Summarize the following text: ",
            "Summarise: ",
            "Give a short summary of this text. ",
            "What happens in this story, in short? ",
        ]
    )
    summary = prose(
        rng.choice(
            [
                f"{who.name}, {a(trade)} from {home.name}, travelled to {goal_town.name} in {month} for {short_goal}.",
                f"The text tells of {who.name} from {home.name}, who went to {goal_town.name} in {month} to {goal}.",
            ]
        ),
        rng.choice(
            [
                f"On the way there was {short_trouble}, but {helper.name}, {a(helper_trade)}, {help_given}.",
                f"The journey was hard because of {short_trouble}, until {helper.name} {help_given}.",
            ]
        ),
        rng.choice([f"{helper.name} got {gift} for it.", f"{who.name} thanked {helper.him} with {gift}."])
        if thanks
        else "",
        rng.choice(
            [
                f"In the end {who.he} came home after {days} days, {feeling}.",
                f"{days} days later {who.name} was home, {feeling}.",
            ]
        ),
    )
    return Dialogue("summarization", (Turn(ask + passage, summary),))


_WORKS = ("bridge", "library", "school", "mill", "well", "tower", "theatre", "inn", "garden", "harbour wall")


def _note(rng: random.Random, work: str, town: Town) -> dict[str, str]:
    builder = full_name(rng, people(rng, 1)[0])
    return {
        "work": work,
        "town": town.name,
        "builder": builder,
        "year": str(rng.randint(1600, 1899)),
        "cost": str(rng.randint(2, 90) * 10),
        "stuff": rng.choice(["oak", "red brick", "grey stone", "white stone", "clay and straw"]),
        "use": rng.choice(
            [
                "a meeting place",
                "a store for grain",
                "a home for travellers",
                "a place for concerts",
                "a market on Sundays",
            ]
        ),
    }


def _note_text(rng: random.Random, n: dict[str, str]) -> str:
    facts = [
        rng.choice([f"It was built by {n['builder']} in {n['year']}.", f"In {n['year']} {n['builder']} built it."]),
        rng.choice([f"The work cost {n['cost']} coins.", f"The town paid {n['cost']} coins for it."]),
        rng.choice([f"It is made of {n['stuff']}.", f"Its walls are of {n['stuff']}."]),
        rng.choice([f"Today it is {n['use']}.", f"Now people use it as {n['use']}."]),
    ]
    rng.shuffle(facts)
    return prose(f"The {n['work']} of {n['town']} is well known.", *facts[: rng.randint(3, 4)])


def rag(rng: random.Random) -> Dialogue:
    count = rng.randint(2, 4)
    notes = [_note(rng, w, t) for w, t in zip(rng.sample(_WORKS, count), rng.sample(TOWNS, count), strict=True)]
    texts = [_note_text(rng, n) for n in notes]
    index = rng.randrange(count)
    n, text = notes[index], texts[index]
    the = f"the {n['work']} of {n['town']}"
    asks = {
        "builder": (
            [f"Who built {the}?", f"By whom was {the} built?"],
            [
                f"{the} was built by {n['builder']} in {n['year']}.",
                f"{n['builder']} built {the}. This was in {n['year']}.",
            ],
        ),
        "year": (
            [f"When was {the} built?", f"In which year was {the} built?"],
            [
                f"{the} was built in {n['year']} by {n['builder']}.",
                f"It was in {n['year']} that {n['builder']} built {the}.",
            ],
        ),
        "cost": (
            [f"How much did {the} cost?", f"What was the price of {the}?"],
            [f"{the} cost {n['cost']} coins.", f"The town of {n['town']} paid {n['cost']} coins for the {n['work']}."],
        ),
        "stuff": (
            [f"What is {the} made of?", f"Of what material is {the}?"],
            [f"{the} is made of {n['stuff']}.", f"Its walls are of {n['stuff']}."],
        ),
        "use": (
            [f"What is {the} used for today?", f"What purpose does {the} serve now?"],
            [f"Today {the} is {n['use']}.", f"People now use {the} as {n['use']}."],
        ),
    }
    said = {
        "builder": n["builder"],
        "year": n["year"],
        "cost": f"{n['cost']} coins",
        "stuff": n["stuff"],
        "use": n["use"],
    }
    present = [key for key in asks if said[key] in text]
    rng.shuffle(present)
    ask = rng.choice(asks[present[0]][0])
    # The builder's sentence holds the year too, so it never follows the other one.
    rest = [key for key in present[1:] if {key, present[0]} != {"builder", "year"}]
    if "builder" in rest and "year" in rest:
        rest.remove("year")
    others = [f"the {m['work']} of {m['town']}" for i, m in enumerate(notes) if i != index]
    closing = rng.choice(
        [
            f"The other {'notes are' if count > 2 else 'note is'} about {listing(others)}.",
            f"Note {index + 1} is the one to read.",
            f"Nothing more is said about it in note {index + 1}.",
        ]
    )
    intro = rng.choice([f"The answer is in note {index + 1}.", f"This is told in note {index + 1}.", ""])
    answer = prose(intro, *[rng.choice(asks[key][1]) for key in [present[0], *rest[:3]]], closing)
    lead = rng.choice(["Answer with the help of these notes.", "Read the notes and answer.", "Here are some notes."])
    body = " ".join(f"Note {i + 1}: {t}" for i, t in enumerate(texts))
    return Dialogue("rag", (Turn(f"{lead} {body} Question: {ask}", answer),))
