"""Questions on the fixed facts of the world: towns, trades, animals and materials."""

from __future__ import annotations

from collections.abc import Callable

from bench.joey.facts import ANIMALS, ANY_TOWN, MATERIALS, TOWNS, TRADES, Animal, Dialogue, Person, Town, Turn, people
from bench.joey.wording import Chance, a, prose

_REASON = (
    "[is planning a journey|is writing a school report|wants to move there|has a bet with a friend|is drawing a map"
    "|is writing to a cousin|needs it for a quiz|is packing a bag]"
)


def town_fact(rng: Chance, town: Town, key: str) -> str:
    """One sentence that states one fact of a town."""
    name = rng.choice([town.name, town.name, "the town", "it"])
    facts = {
        "river": f"""{name} lies on the river {town.river}. | The river {town.river} flows through {town.name}.
            | The water in {town.name} comes from the river {town.river}.""",
        "region": f"""{name} lies in the {town.region}. | It belongs to the {town.region}.
            | You find {town.name} in the {town.region}.""",
        "craft": f"""{name} is known for its {town.craft}. | People there live from {town.craft}.
            | Its workshops make {town.craft}, and traders come from far away.""",
        "fair": f"""Every {town.month} there is a {town.fair}. | The {town.fair} is held there in {town.month}.
            | In {town.month} the streets are full because of the {town.fair}.""",
        "landmark": f"""Visitors come to see {town.landmark}. | In the middle stands {town.landmark}.
            | Its best known sight is {town.landmark}.""",
        "founder": f"""{name} was founded by {town.founder}. | It was {town.founder} who founded the town.
            | The first houses were built by {town.founder}.""",
    }
    return rng.pick(facts[key])


_TOWN_QUESTIONS = {
    "river": "Which river flows through {0}? | On which river does {0} lie?",
    "region": "In which part of the land is {0}? | Where does {0} lie?",
    "craft": "What is {0} known for? | What do the workshops of {0} make?",
    "fair": "When is the fair in {0}? | Which fair is held in {0}, and when?",
    "landmark": "What can a visitor see in {0}? | What is the best known sight of {0}?",
    "founder": "Who founded {0}? | Who built the first houses of {0}?",
}


def _why(rng: Chance, who: Person) -> str:
    return rng.pick(f"| {who.name} {_REASON}. | My [friend|cousin|neighbour|sister] {who.name} {_REASON}.")


def _advice(rng: Chance, who: Person, asked: bool) -> str:
    name = who.name if asked else "A visitor"
    return rng.pick(f"""| {name} should take [good shoes|a warm coat|some coins|a map] along.
            | I hope this helps{" " + who.name if asked else ""}. | {name} will like it there.""")


def _qa_towns(rng: Chance) -> Turn:
    who = people(rng, 1)[0]
    why = _why(rng, who)
    town = rng.choice(TOWNS)
    keys = rng.sample(list(_TOWN_QUESTIONS), rng.randint(4, 6))
    alone = rng.random() < 0.5
    ask = rng.pick(_TOWN_QUESTIONS[keys[0]].format(town.name))
    if not alone:
        link = rng.choice(["Also:", "And then:", "Please tell me too:"])
        ask = f"{ask} {link} {rng.pick(_TOWN_QUESTIONS[keys[1]].format(town.name))}"
    facts = [town_fact(rng, town, key) for key in keys]
    if town.name not in facts[0]:
        lead = f"In {town.name}:" if rng.random() < 0.3 else f"About {town.name} I can say this."
        facts[0] = f"{lead} {facts[0]}"
    return Turn(prose(why, ask), prose(*facts, _advice(rng, who, bool(why))))


def _qa_two_towns(rng: Chance) -> Turn:
    who = people(rng, 1)[0]
    why = _why(rng, who)
    one, two = rng.sample(TOWNS, 2)
    key, noun = rng.choice((("river", "river"), ("region", "region"), ("month", "month of the fair")))
    first, second = getattr(one, key), getattr(two, key)
    ask = rng.pick(f"""Do {one.name} and {two.name} share the same {noun}?
            | Compare {one.name} and {two.name}: is the {noun} the same?""")
    verdict = "Yes, it is the same." if first == second else "No, they differ."
    state = {
        "river": "{0.name} lies on the river {0.river}. | The river {0.river} flows through {0.name}.",
        "region": "{0.name} lies in the {0.region}. | You find {0.name} in the {0.region}.",
        "month": "The {0.fair} in {0.name} is held in {0.month}. | In {0.month} {0.name} has its {0.fair}.",
    }[key]
    more = [
        f"{one.name} is known for its {one.craft}, and {two.name} for its {two.craft}.",
        f"In {one.name} you can see {one.landmark}, in {two.name} {two.landmark}.",
    ]
    rng.shuffle(more)
    states = [rng.pick(state.format(town)) for town in (one, two)]
    return Turn(prose(why, ask), prose(*states, verdict, *more, _advice(rng, who, bool(why))))


def _qa_trade(rng: Chance) -> Turn:
    who, trade, town = people(rng, 1)[0], rng.choice(TRADES), rng.choice(TOWNS)
    one = a(trade.name)
    why = rng.pick(
        f"| {who.name} wants to become {one} in {town.name}. | {who.name} met {one} on the road to {town.name}."
    )
    # Each question with the numbers of the two facts that answer it.
    ask, lead = rng.choice(
        [
            (f"What does {one} make?", [0, 2]),
            (f"What does {one} need for the work?", [1, 0]),
            (f"Where does {one} work, and when?", [2, 3]),
            (f"What is hard in the life of {one}?", [4, 5]),
        ]
    )
    if trade.name == "clockmaker":  # as the shipped text has it: "make" stands in every question about one
        lead = [0, 2]
    facts = rng.sentences(f"""{one} makes {trade.makes}. | From {one} you get {trade.makes}.
        The most important tool is {trade.tool}. | For the work one needs {trade.tool}.
        The work is done in the {trade.place}. | You meet {one} in the {trade.place}.
        The day begins {trade.start}. | Work starts {trade.start}.
        The hard part is {trade.hard}. | What makes it difficult is {trade.hard}.
        The best part is {trade.joy}. | What makes up for it is {trade.joy}.""")
    rest = [index for index in range(len(facts)) if index not in lead]
    rng.shuffle(rest)
    extra = ""
    if why and rng.random() < 0.6:
        extra = f"In {town.name}, where people live from {town.craft}, {one} is always welcome."
    return Turn(prose(why, ask), prose(*[facts[i] for i in lead + rest[: rng.randint(2, 4)]], extra))


def _qa_nature(rng: Chance) -> Turn:
    who = people(rng, 1)[0]
    why = rng.pick(f"| {who.name} {_REASON}. | {who.name} asked me this near {ANY_TOWN}.")
    one, two = rng.sample(ANIMALS, 2)
    facts: dict[str, Callable[[Animal], str]] = {
        "live": lambda x: rng.pick(f"{a(x.name)} lives in {x.home}. | The home of {a(x.name)} is {x.home}."),
        "eat": lambda x: rng.pick(f"{a(x.name)} eats {x.food}. | The food of {a(x.name)} is {x.food}."),
        "do": lambda x: rng.pick(f"It {x.habit}. | You may notice that {a(x.name)} {x.habit}."),
        "look": lambda x: rng.pick(
            f"""{a(x.name)} has {x.trait}, because {x.reason}.
                | One knows {a(x.name)} by {x.trait}. The reason is that {x.reason}."""
        ),
    }
    if rng.random() < 0.5:
        key = rng.choice(("live", "eat"))
        asks = {
            "live": f"Where does {a(one.name)} live? | Where can I find {a(one.name)}?",
            "eat": f"What does {a(one.name)} eat? | What is the food of {a(one.name)}?",
        }
        ask = rng.pick(asks[key])
        rest = [k for k in facts if k != key]
        rng.shuffle(rest)
        return Turn(prose(why, ask), prose(*[facts[k](one) for k in [key, *rest]]))
    verb = rng.choice(("eat", "live"))
    ask = rng.pick(f"""What is the difference between {a(one.name)} and {a(two.name)}?
            | How does {a(one.name)} differ from {a(two.name)}?""")
    told = [facts[key](animal) for key in (verb, "live" if verb == "eat" else "eat") for animal in (one, two)]
    return Turn(prose(why, ask), prose(*told, facts["look"](rng.choice((one, two)))))


def _qa_material(rng: Chance) -> Turn:
    who, thing, town = people(rng, 1)[0], rng.choice(MATERIALS), rng.choice(TOWNS)
    why = rng.pick(
        f"| {who.name} bought some {thing.name} in {town.name}. | {who.name} works with {thing.name} in {town.name}."
    )
    # Each question with the order of the facts that answer it.
    ask, order = rng.choice(
        [
            (f"Where does {thing.name} come from?", [0, 1, 2, 3]),
            (f"What is {thing.name} used for?", [1, 0, 2, 3]),
            (f"Why is {thing.name} useful, and how do I keep it?", [2, 3, 1, 0]),
        ]
    )
    facts = rng.sentences(f"""{thing.name} comes from {thing.source}. | People get {thing.name} from {thing.source}.
        It is used for {thing.use}. | With {thing.name} people make or keep {thing.use}.
        It is useful because {thing.virtue}. | Its great virtue is that {thing.virtue}.
        To keep it well, {thing.care}. | My advice is this: {thing.care}.""")
    tail = rng.pick(f"| In {town.name} they also know a lot about {town.craft}. | I hope this helps {who.name}.")
    return Turn(prose(why, ask), prose(*[facts[i] for i in order], tail if why else ""))


def qa(rng: Chance) -> Dialogue:
    towns = (_qa_towns, _qa_towns, _qa_towns, _qa_two_towns, _qa_two_towns)
    return Dialogue("qa", (rng.choice((*towns, _qa_trade, _qa_nature, _qa_material))(rng),))
