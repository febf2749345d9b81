"""Conversations of two turns in which something is written or played: letters, stories, roles."""

from __future__ import annotations

import random

from bench.joey.facts import ANIMALS, MONTHS, TOWNS, TRADES, WEATHER, Dialogue, Turn, a, people, prose
from bench.joey.knowledge import town_fact

_OCCASIONS = (
    ("the birthday of a child", "the cake and the songs"),
    ("a new job", "the first week"),
    ("a wedding", "the dance and the flowers"),
    ("the end of the harvest", "the full barns"),
    ("a long journey", "the road and the rain"),
    ("a new house", "the view from the window"),
    ("the loss of a dog", "the quiet evenings"),
    ("a lost wager", "the ten coins"),
)
_HEROES = ("fox", "owl", "otter", "hare", "goat", "toad", "badger", "swallow")
_TREASURES = ("a silver key", "a blue lamp", "an old map", "a golden bell", "a box of letters", "a green stone")
_LESSONS = (
    "that asking for help is no shame",
    "that patience opens more doors than force",
    "that a promise must be kept",
    "that the smallest friend can be the best one",
    "that one should listen before one speaks",
)


def letter(rng: random.Random) -> Dialogue:
    who, other = people(rng, 2)
    town = rng.choice(TOWNS)
    occasion, detail = rng.choice(_OCCASIONS)
    weather, month = rng.choice(WEATHER), rng.choice(MONTHS)
    ask = rng.choice(
        [
            f"Write a short letter from {who.name} to {other.name} about {occasion} in {town.name}.",
            f"{who.name} wants to tell {other.name} about {occasion} in {town.name}. Write the letter.",
        ]
    )
    body = [
        rng.choice(
            [f"I am writing to you from {town.name}.", f"Greetings from {town.name}, where we had {weather} today."]
        ),
        rng.choice([f"You asked me about {occasion}.", f"I want to tell you about {occasion}."]),
        rng.choice([f"I often think of {detail}.", f"What I remember best is {detail}."]),
        town_fact(rng, town, rng.choice(("river", "craft", "fair", "landmark"))),
        rng.choice([f"I hope to see you in {month}.", f"Please come and visit me in {month}."]),
    ]
    first = f"Dear {other.name}: {prose(*body)} {rng.choice(['Your friend', 'With love', 'Yours'])}, {who.name}"
    if rng.random() < 0.5:
        second = rng.choice(
            [f"Now write the answer of {other.name}.", f"How would {other.name} reply? Write that letter."]
        )
        reply = f"Dear {who.name}: " + prose(
            rng.choice(["thank you for your letter.", "your letter made me very happy."]),
            rng.choice([f"I was glad to hear about {occasion}.", f"What you say about {occasion} is on my mind."]),
            rng.choice([f"I too think of {detail}.", f"Tell me more about {detail} soon."]),
            rng.choice(
                [
                    f"I will come to {town.name} in {month}.",
                    f"In {month} I have no time for {town.name}, but I will write again.",
                ]
            ),
        )
        reply += f" {rng.choice(['Your friend', 'With love', 'Yours'])}, {other.name}"
    else:
        second = rng.choice(["Make the letter shorter.", "Please shorten it to the most important points."])
        keep = sorted(rng.sample(range(len(body)), 3))
        reply = f"Dear {other.name}: {prose(*[body[i] for i in keep])} "
        reply += f"{rng.choice(['Your friend', 'With love', 'Yours'])}, {who.name}"
    return Dialogue("writing", (Turn(ask, first), Turn(second, reply)))


def story(rng: random.Random) -> Dialogue:
    hero, friend = rng.sample([x for x in ANIMALS if x.name in _HEROES], 2)
    name = people(rng, 1)[0]
    treasure, lesson, weather = rng.choice(_TREASURES), rng.choice(_LESSONS), rng.choice(WEATHER)
    town = rng.choice(TOWNS)
    ask = rng.choice(
        [
            f"Write a story about {a(hero.name)} named {name.name} who finds {treasure} near {town.name}.",
            f"Tell me a tale of {a(hero.name)} called {name.name}, {a(friend.name)} and {treasure} in {town.name}.",
        ]
    )
    first = prose(
        rng.choice(
            [
                f"Near {town.name} lived {a(hero.name)} named {name.name}.",
                f"Once {a(hero.name)} called {name.name} lived close to {town.name}.",
            ]
        ),
        rng.choice([f"{name.name} loved {hero.food} and {hero.home}.", f"The home of {name.name} was {hero.home}."]),
        rng.choice(
            [
                f"One day, in {weather}, {name.name} found {treasure} by the river {town.river}.",
                f"On a day with {weather}, {name.name} saw {treasure} in the grass.",
            ]
        ),
        rng.choice(
            [
                f"It was too heavy to carry, so {a(friend.name)} came to help.",
                f"{a(friend.name)} came by and asked for half of it.",
            ]
        ),
        rng.choice(
            [f"Together they took it to {friend.home}.", f"They talked until dark and hid it in {friend.home}."]
        ),
        rng.choice([f"So {name.name} learned {lesson}.", f"Since then {name.name} knows {lesson}."]),
    )
    if rng.random() < 0.5:
        second = rng.choice(["How does the story go on?", "Continue the story."])
        reply = prose(
            rng.choice([f"The next morning {treasure} was gone.", f"Some days later someone asked for {treasure}."]),
            rng.choice(
                [
                    f"{name.name} followed the tracks along the river {town.river}.",
                    f"{name.name} looked everywhere in {town.name}.",
                ]
            ),
            rng.choice(
                [
                    f"The {friend.name}, which had looked for {friend.food} all night, slept beside it.",
                    f"At last the {friend.name} brought it back and was sorry.",
                ]
            ),
            rng.choice(
                [
                    f"From then on the {hero.name} and the {friend.name} were friends.",
                    f"They laughed, and {name.name} gave it to the people of {town.name}.",
                ]
            ),
        )
    else:
        second = rng.choice(["What is the lesson of this story?", "Explain what the reader should learn."])
        reply = prose(
            rng.choice([f"The story teaches {lesson}.", f"The reader should learn {lesson}."]),
            rng.choice(
                [
                    f"{name.name} the {hero.name} found {treasure}, but could not keep it alone.",
                    f"Without the {friend.name}, {name.name} would have lost {treasure}.",
                ]
            ),
            rng.choice(
                [
                    f"That is true in {town.name} and everywhere else.",
                    "It is a lesson for children and for grown people.",
                ]
            ),
        )
    return Dialogue("writing", (Turn(ask, first), Turn(second, reply)))


def roleplay(rng: random.Random) -> Dialogue:
    trade, town, who = rng.choice(TRADES), rng.choice(TOWNS), people(rng, 1)[0]
    years = rng.randint(2, 40)
    ask = rng.choice(
        [
            f"You are {who.name}, {a(trade.name)} in {town.name}. Tell a visitor about your work.",
            f"Play the part of {a(trade.name)} named {who.name} from {town.name} and describe your day.",
        ]
    )
    first = prose(
        rng.choice([f"Good day, my name is {who.name}.", f"Welcome to {town.name}, I am {who.name}."]),
        rng.choice(
            [
                f"I have been {a(trade.name)} for {years} years.",
                f"For {years} years I have worked as {a(trade.name)} here.",
            ]
        ),
        rng.choice(
            [
                f"My day begins {trade.start} in the {trade.place}.",
                f"I start {trade.start}, and you find me in the {trade.place}.",
            ]
        ),
        rng.choice(
            [f"With {trade.tool} I make {trade.makes}.", f"I make {trade.makes}, and for that I need {trade.tool}."]
        ),
        rng.choice(
            [
                f"When the {town.fair} comes in {town.month}, I sell more than in any other month.",
                f"Our town is known for its {town.craft}, but people come to me as well.",
            ]
        ),
    )
    if rng.random() < 0.5:
        second = rng.choice(["What is the hardest part of it?", "And what is difficult?"])
        reply = prose(
            rng.choice(
                [f"The hardest part is {trade.hard}.", f"Nobody likes {trade.hard}, and I do not like it either."]
            ),
            rng.choice([f"After {years} years I am used to it.", f"It was worse {years} years ago, when I began."]),
            rng.choice([f"What keeps me going is {trade.joy}.", f"But then there is {trade.joy}, and I forget it."]),
            rng.choice(
                [f"I would not change places with anyone in {town.name}.", "Would you like to try it for a day?"]
            ),
        )
    else:
        second = rng.choice(["What do you like best?", "Why do you love this work?"])
        reply = prose(
            rng.choice([f"What I like best is {trade.joy}.", f"I love {trade.joy}."]),
            rng.choice([f"It makes me forget {trade.hard}.", f"Of course there is {trade.hard} too."]),
            rng.choice(
                [
                    f"The people of {town.name} know my {trade.makes}, and that makes me proud.",
                    f"For {years} years I have been happy with it.",
                ]
            ),
        )
    return Dialogue("roleplay", (Turn(ask, first), Turn(second, reply)))
