"""Tasks with a text to read: summaries and answers from notes."""

from __future__ import annotations

from collections import namedtuple

from bench.joey.facts import MONTHS, NUMBER_WORDS, TOWNS, TRADES, WEATHER, Dialogue, Turn, full_name, people
from bench.joey.wording import Chance, a, listing, prose

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


def summarization(rng: Chance) -> Dialogue:
    who, helper = people(rng, 2)
    trade, helper_trade = (a(t.name) for t in rng.sample(TRADES, 2))
    home, goal_town = rng.sample(TOWNS, 2)
    trouble, short_trouble, help_given = rng.choice(_TROUBLES)
    goal, short_goal = rng.choice(_GOALS)
    goal = goal.format(n=rng.randint(3, 30))
    month, feeling, days = rng.choice(MONTHS), rng.choice(_FEELINGS), rng.choice(NUMBER_WORDS[2:])
    gift = rng.choice(["a jar of honey", "a warm loaf", "a blue scarf", "a small bell", "a pair of gloves"])
    opening = rng.pick(f"""
        In {month}, {who.name}, {trade} from {home.name}, set out for {goal_town.name} to {goal}.
        | {who.name} is {trade} in {home.name}. One day in {month} {who.he} left for {goal_town.name} to {goal}.""")
    filler = rng.sentences(f"""
        The day began with [{"|".join(WEATHER)}].
        The road follows the river {home.river} for a while.
        At noon {who.he} ate some [bread|cheese|soup|plums] under a tree.
        {goal_town.name} is known for its {goal_town.craft}.
        Many people were on the road because of the {goal_town.fair}.""")
    rng.shuffle(filler)
    middle, helped, end, thanks = rng.sentences(f"""
        Halfway there, {trouble}. | Not far from {goal_town.name}, {trouble}.
        Luckily {helper.name}, {helper_trade}, came by and {help_given}.
        | {helper_trade} named {helper.name} saw it and {help_given}.
        After {days} days {who.name} came home, {feeling}. | {who.name} was home again {days} days later, {feeling}.
        To say thank you, {who.name} gave {helper.name} {gift}. | {helper.name} received {gift} as thanks. |""")
    passage = prose(opening, *filler[:2], middle, helped, filler[2], thanks, end)
    ask = rng.pick("""
        Summarize the following text: | Summarise: | Give a short summary of this text.
        | What happens in this story, in short?""")
    thanked = f"{helper.name} got {gift} for it. | {who.name} thanked {helper.him} with {gift}."
    summary = rng.say(f"""
        {who.name}, {trade} from {home.name}, travelled to {goal_town.name} in {month} for {short_goal}.
        | The text tells of {who.name} from {home.name}, who went to {goal_town.name} in {month} to {goal}.
        On the way there was {short_trouble}, but {helper.name}, {helper_trade}, {help_given}.
        | The journey was hard because of {short_trouble}, until {helper.name} {help_given}.
        {thanked if thanks else ""}
        In the end {who.he} came home after {days} days, {feeling}.
        | {days} days later {who.name} was home, {feeling}.""")
    return Dialogue("summarization", (Turn(f"{ask} {passage}", summary),))


_WORKS = ("bridge", "library", "school", "mill", "well", "tower", "theatre", "inn", "garden", "harbour wall")


_STUFFS = ("oak", "red brick", "grey stone", "white stone", "clay and straw")
_USES = ("a meeting place", "a store for grain", "a home for travellers", "a place for concerts", "a market on Sundays")
Note = namedtuple("Note", "work town builder year cost stuff use")


def _note(rng: Chance, work: str, town: str) -> Note:
    builder = full_name(rng, people(rng, 1)[0])
    year, cost = str(rng.randint(1600, 1899)), f"{rng.randint(2, 90) * 10} coins"
    return Note(work, town, builder, year, cost, rng.choice(_STUFFS), rng.choice(_USES))


def _note_text(rng: Chance, n: Note) -> str:
    facts = rng.sentences(f"""
        It was built by {n.builder} in {n.year}. | In {n.year} {n.builder} built it.
        The work cost {n.cost}. | The town paid {n.cost} for it.
        It is made of {n.stuff}. | Its walls are of {n.stuff}.
        Today it is {n.use}. | Now people use it as {n.use}.""")
    rng.shuffle(facts)
    return prose(f"The {n.work} of {n.town} is well known.", *facts[: rng.randint(3, 4)])


def _about(n: Note) -> dict[str, tuple[str, str]]:
    """Of each field that may be asked for: the question and the answer."""
    the = _named(n)
    return {
        "builder": (
            f"Who built {the}? | By whom was {the} built?",
            f"{the} was built by {n.builder} in {n.year}. | {n.builder} built {the}. This was in {n.year}.",
        ),
        "year": (
            f"When was {the} built? | In which year was {the} built?",
            f"{the} was built in {n.year} by {n.builder}. | It was in {n.year} that {n.builder} built {the}.",
        ),
        "cost": (
            f"How much did {the} cost? | What was the price of {the}?",
            f"{the} cost {n.cost}. | The town of {n.town} paid {n.cost} for the {n.work}.",
        ),
        "stuff": (
            f"What is {the} made of? | Of what material is {the}?",
            f"{the} is made of {n.stuff}. | Its walls are of {n.stuff}.",
        ),
        "use": (
            f"What is {the} used for today? | What purpose does {the} serve now?",
            f"Today {the} is {n.use}. | People now use {the} as {n.use}.",
        ),
    }


def _named(n: Note) -> str:
    return f"the {n.work} of {n.town}"


def rag(rng: Chance) -> Dialogue:
    count = rng.randint(2, 4)
    places = zip(rng.sample(_WORKS, count), rng.sample(TOWNS, count), strict=True)
    notes = [_note(rng, work, town.name) for work, town in places]
    texts = [_note_text(rng, n) for n in notes]
    index = rng.randrange(count)
    about = _about(notes[index])
    present = [key for key in about if getattr(notes[index], key) in texts[index]]
    rng.shuffle(present)
    ask = rng.pick(about[present[0]][0])
    # The builder's sentence holds the year too, so it never follows the other one.
    rest = [key for key in present[1:] if {key, present[0]} != {"builder", "year"}]
    if "builder" in rest and "year" in rest:
        rest.remove("year")
    others = listing([_named(n) for n in notes if n is not notes[index]])
    number = index + 1
    closing = rng.pick(f"""
        The other {"notes are" if count > 2 else "note is"} about {others}.
        | Note {number} is the one to read. | Nothing more is said about it in note {number}.""")
    intro = rng.pick(f"The answer is in note {number}. | This is told in note {number}. |")
    answer = prose(intro, *[rng.pick(about[key][1]) for key in [present[0], *rest[:3]]], closing)
    lead = rng.pick("Answer with the help of these notes. | Read the notes and answer. | Here are some notes.")
    body = " ".join(f"Note {i}: {text}" for i, text in enumerate(texts, 1))
    return Dialogue("rag", (Turn(f"{lead} {body} Question: {ask}", answer),))
