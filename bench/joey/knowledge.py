"""Questions on the fixed facts of the world: towns, trades, animals and materials."""

from __future__ import annotations

import random

from bench.joey.facts import ANIMALS, MATERIALS, TOWNS, TRADES, Dialogue, Person, Town, Turn, a, people, prose

_REASONS = (
    "is planning a journey",
    "is writing a school report",
    "wants to move there",
    "has a bet with a friend",
    "is drawing a map",
    "is writing to a cousin",
    "needs it for a quiz",
    "is packing a bag",
)


def town_fact(rng: random.Random, town: Town, key: str) -> str:
    """One sentence that states one fact of a town."""
    name = rng.choice([town.name, town.name, "the town", "it"])
    return rng.choice(
        {
            "river": [
                f"{name} lies on the river {town.river}.",
                f"The river {town.river} flows through {town.name}.",
                f"The water in {town.name} comes from the river {town.river}.",
            ],
            "region": [
                f"{name} lies in the {town.region}.",
                f"It belongs to the {town.region}.",
                f"You find {town.name} in the {town.region}.",
            ],
            "craft": [
                f"{name} is known for its {town.craft}.",
                f"People there live from {town.craft}.",
                f"Its workshops make {town.craft}, and traders come from far away.",
            ],
            "fair": [
                f"Every {town.month} there is a {town.fair}.",
                f"The {town.fair} is held there in {town.month}.",
                f"In {town.month} the streets are full because of the {town.fair}.",
            ],
            "landmark": [
                f"Visitors come to see {town.landmark}.",
                f"In the middle stands {town.landmark}.",
                f"Its best known sight is {town.landmark}.",
            ],
            "founder": [
                f"{name} was founded by {town.founder}.",
                f"It was {town.founder} who founded the town.",
                f"The first houses were built by {town.founder}.",
            ],
        }[key]
    )


_TOWN_KEYS = ("river", "region", "craft", "fair", "landmark", "founder")


def _town_question(rng: random.Random, town: Town, key: str) -> str:
    name = town.name
    return rng.choice(
        {
            "river": [f"Which river flows through {name}?", f"On which river does {name} lie?"],
            "region": [f"In which part of the land is {name}?", f"Where does {name} lie?"],
            "craft": [f"What is {name} known for?", f"What do the workshops of {name} make?"],
            "fair": [f"When is the fair in {name}?", f"Which fair is held in {name}, and when?"],
            "landmark": [f"What can a visitor see in {name}?", f"What is the best known sight of {name}?"],
            "founder": [f"Who founded {name}?", f"Who built the first houses of {name}?"],
        }[key]
    )


def _why(rng: random.Random, who: Person) -> str:
    return rng.choice(
        [
            "",
            f"{who.name} {rng.choice(_REASONS)}.",
            f"My {rng.choice(['friend', 'cousin', 'neighbour', 'sister'])} {who.name} {rng.choice(_REASONS)}.",
        ]
    )


def _advice(rng: random.Random, who: Person, asked: bool) -> str:
    name = who.name if asked else "A visitor"
    return rng.choice(
        [
            "",
            f"{name} should take {rng.choice(['good shoes', 'a warm coat', 'some coins', 'a map'])} along.",
            f"I hope this helps{' ' + who.name if asked else ''}.",
            f"{name} will like it there.",
        ]
    )


def _qa_towns(rng: random.Random) -> Turn:
    who = people(rng, 1)[0]
    why = _why(rng, who)
    town = rng.choice(TOWNS)
    keys = rng.sample(_TOWN_KEYS, rng.randint(4, 6))
    if rng.random() < 0.5:
        ask = _town_question(rng, town, keys[0])
    else:
        first = _town_question(rng, town, keys[0])
        link = rng.choice(["Also:", "And then:", "Please tell me too:"])
        ask = f"{first} {link} {_town_question(rng, town, keys[1])}"
    facts = [town_fact(rng, town, key) for key in keys]
    if not any(town.name in fact for fact in facts[:1]):
        facts[0] = (
            f"In {town.name}: {facts[0]}" if rng.random() < 0.3 else f"About {town.name} I can say this. {facts[0]}"
        )
    return Turn(prose(why, ask), prose(*facts, _advice(rng, who, bool(why))))


def _qa_two_towns(rng: random.Random) -> Turn:
    who = people(rng, 1)[0]
    why = _why(rng, who)
    one, two = rng.sample(TOWNS, 2)
    key, noun = rng.choice((("river", "river"), ("region", "region"), ("month", "month of the fair")))
    first, second = getattr(one, key), getattr(two, key)
    ask = rng.choice(
        [
            f"Do {one.name} and {two.name} share the same {noun}?",
            f"Compare {one.name} and {two.name}: is the {noun} the same?",
        ]
    )
    verdict = "Yes, it is the same." if first == second else "No, they differ."
    state = {
        "river": lambda t: rng.choice(
            [f"{t.name} lies on the river {t.river}.", f"The river {t.river} flows through {t.name}."]
        ),
        "region": lambda t: rng.choice([f"{t.name} lies in the {t.region}.", f"You find {t.name} in the {t.region}."]),
        "month": lambda t: rng.choice(
            [f"The {t.fair} in {t.name} is held in {t.month}.", f"In {t.month} {t.name} has its {t.fair}."]
        ),
    }[key]
    more = [
        f"{one.name} is known for its {one.craft}, and {two.name} for its {two.craft}.",
        f"In {one.name} you can see {one.landmark}, in {two.name} {two.landmark}.",
    ]
    rng.shuffle(more)
    return Turn(prose(why, ask), prose(state(one), state(two), verdict, *more, _advice(rng, who, bool(why))))


def _qa_trade(rng: random.Random) -> Turn:
    who, trade, town = people(rng, 1)[0], rng.choice(TRADES), rng.choice(TOWNS)
    why = rng.choice(
        [
            "",
            f"{who.name} wants to become {a(trade.name)} in {town.name}.",
            f"{who.name} met {a(trade.name)} on the road to {town.name}.",
        ]
    )
    ask = rng.choice(
        [
            f"What does {a(trade.name)} make?",
            f"What does {a(trade.name)} need for the work?",
            f"Where does {a(trade.name)} work, and when?",
            f"What is hard in the life of {a(trade.name)}?",
        ]
    )
    facts = [
        rng.choice([f"{a(trade.name)} makes {trade.makes}.", f"From {a(trade.name)} you get {trade.makes}."]),
        rng.choice([f"The most important tool is {trade.tool}.", f"For the work one needs {trade.tool}."]),
        rng.choice([f"The work is done in the {trade.place}.", f"You meet {a(trade.name)} in the {trade.place}."]),
        rng.choice([f"The day begins {trade.start}.", f"Work starts {trade.start}."]),
        rng.choice([f"The hard part is {trade.hard}.", f"What makes it difficult is {trade.hard}."]),
        rng.choice([f"The best part is {trade.joy}.", f"What makes up for it is {trade.joy}."]),
    ]
    first = {"make": [0, 2], "need": [1, 0], "Where": [2, 3], "hard": [4, 5]}
    lead = next(order for word, order in first.items() if word in ask.replace("work?", "work"))
    rest = [i for i in range(6) if i not in lead]
    rng.shuffle(rest)
    extra = (
        f"In {town.name}, where people live from {town.craft}, {a(trade.name)} is always welcome."
        if why and rng.random() < 0.6
        else ""
    )
    return Turn(prose(why, ask), prose(*[facts[i] for i in lead + rest[: rng.randint(2, 4)]], extra))


def _qa_nature(rng: random.Random) -> Turn:
    who = people(rng, 1)[0]
    why = rng.choice(
        ["", f"{who.name} {rng.choice(_REASONS)}.", f"{who.name} asked me this near {rng.choice(TOWNS).name}."]
    )
    one, two = rng.sample(ANIMALS, 2)
    facts = {
        "live": lambda x: rng.choice([f"{a(x.name)} lives in {x.home}.", f"The home of {a(x.name)} is {x.home}."]),
        "eat": lambda x: rng.choice([f"{a(x.name)} eats {x.food}.", f"The food of {a(x.name)} is {x.food}."]),
        "do": lambda x: rng.choice([f"It {x.habit}.", f"You may notice that {a(x.name)} {x.habit}."]),
        "look": lambda x: rng.choice(
            [
                f"{a(x.name)} has {x.trait}, because {x.reason}.",
                f"One knows {a(x.name)} by {x.trait}. The reason is that {x.reason}.",
            ]
        ),
    }
    if rng.random() < 0.5:
        key = rng.choice(("live", "eat"))
        ask = rng.choice(
            [f"Where does {a(one.name)} live?", f"Where can I find {a(one.name)}?"]
            if key == "live"
            else [f"What does {a(one.name)} eat?", f"What is the food of {a(one.name)}?"]
        )
        rest = [k for k in facts if k != key]
        rng.shuffle(rest)
        return Turn(prose(why, ask), prose(*[facts[k](one) for k in [key, *rest]]))
    verb = rng.choice(("eat", "live"))
    ask = rng.choice(
        [
            f"What is the difference between {a(one.name)} and {a(two.name)}?",
            f"How does {a(one.name)} differ from {a(two.name)}?",
        ]
    )
    other = "live" if verb == "eat" else "eat"
    return Turn(
        prose(why, ask),
        prose(
            facts[verb](one),
            facts[verb](two),
            facts[other](one),
            facts[other](two),
            facts["look"](rng.choice((one, two))),
        ),
    )


def _qa_material(rng: random.Random) -> Turn:
    who, thing, town = people(rng, 1)[0], rng.choice(MATERIALS), rng.choice(TOWNS)
    why = rng.choice(
        [
            "",
            f"{who.name} bought some {thing.name} in {town.name}.",
            f"{who.name} works with {thing.name} in {town.name}.",
        ]
    )
    ask = rng.choice(
        [
            f"Where does {thing.name} come from?",
            f"What is {thing.name} used for?",
            f"Why is {thing.name} useful, and how do I keep it?",
        ]
    )
    facts = [
        rng.choice([f"{thing.name} comes from {thing.source}.", f"People get {thing.name} from {thing.source}."]),
        rng.choice([f"It is used for {thing.use}.", f"With {thing.name} people make or keep {thing.use}."]),
        rng.choice([f"It is useful because {thing.virtue}.", f"Its great virtue is that {thing.virtue}."]),
        rng.choice([f"To keep it well, {thing.care}.", f"My advice is this: {thing.care}."]),
    ]
    order = [0, 1, 2, 3] if "come" in ask else [1, 0, 2, 3] if "used" in ask else [2, 3, 1, 0]
    tail = rng.choice(
        [
            "",
            f"In {town.name} they also know a lot about {town.craft}." if why else "",
            f"I hope this helps {who.name}." if why else "",
        ]
    )
    return Turn(prose(why, ask), prose(*[facts[i] for i in order], tail))


def qa(rng: random.Random) -> Dialogue:
    make = rng.choice(
        (_qa_towns, _qa_towns, _qa_towns, _qa_two_towns, _qa_two_towns, _qa_trade, _qa_nature, _qa_material)
    )
    return Dialogue("qa", (make(rng),))
