"""Conversations of two turns in which something is written or played: letters, stories, roles."""

from __future__ import annotations

from bench.joey.facts import ANIMALS, MONTHS, TOWNS, TRADES, WEATHER, Dialogue, Turn, people
from bench.joey.knowledge import town_fact
from bench.joey.wording import Chance, a, prose

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
_GREETING = "[Your friend|With love|Yours]"
_HEROES = ("fox", "owl", "otter", "hare", "goat", "toad", "badger", "swallow")
_TREASURES = ("a silver key", "a blue lamp", "an old map", "a golden bell", "a box of letters", "a green stone")
_LESSONS = (
    "that asking for help is no shame",
    "that patience opens more doors than force",
    "that a promise must be kept",
    "that the smallest friend can be the best one",
    "that one should listen before one speaks",
)


def letter(rng: Chance) -> Dialogue:
    who, other = people(rng, 2)
    town = rng.choice(TOWNS)
    occasion, detail = rng.choice(_OCCASIONS)
    weather, month = rng.choice(WEATHER), rng.choice(MONTHS)
    ask = rng.pick(f"""
        Write a short letter from {who.name} to {other.name} about {occasion} in {town.name}.
        | {who.name} wants to tell {other.name} about {occasion} in {town.name}. Write the letter.""")
    body = rng.sentences(f"""
        I am writing to you from {town.name}. | Greetings from {town.name}, where we had {weather} today.
        You asked me about {occasion}. | I want to tell you about {occasion}.
        I often think of {detail}. | What I remember best is {detail}.""")
    body.append(town_fact(rng, town, rng.choice(("river", "craft", "fair", "landmark"))))
    body.append(rng.pick(f"I hope to see you in {month}. | Please come and visit me in {month}."))
    first = rng.pick(f"Dear {other.name}: {prose(*body)} {_GREETING}, {who.name}")
    if rng.random() < 0.5:
        second = rng.pick(f"Now write the answer of {other.name}. | How would {other.name} reply? Write that letter.")
        answer = rng.say(f"""
            thank you for your letter. | your letter made me very happy.
            I was glad to hear about {occasion}. | What you say about {occasion} is on my mind.
            I too think of {detail}. | Tell me more about {detail} soon.
            I will come to {town.name} in {month}.
            | In {month} I have no time for {town.name}, but I will write again.""")
        reply = rng.pick(f"Dear {who.name}: {answer} {_GREETING}, {other.name}")
    else:
        second = rng.pick("Make the letter shorter. | Please shorten it to the most important points.")
        kept = [body[index] for index in sorted(rng.sample(range(len(body)), 3))]
        reply = rng.pick(f"Dear {other.name}: {prose(*kept)} {_GREETING}, {who.name}")
    return Dialogue("writing", (Turn(ask, first), Turn(second, reply)))


def story(rng: Chance) -> Dialogue:
    hero, friend = rng.sample([x for x in ANIMALS if x.name in _HEROES], 2)
    name = people(rng, 1)[0].name
    treasure, lesson, weather = rng.choice(_TREASURES), rng.choice(_LESSONS), rng.choice(WEATHER)
    town = rng.choice(TOWNS)
    ask = rng.pick(f"""
        Write a story about {a(hero.name)} named {name} who finds {treasure} near {town.name}.
        | Tell me a tale of {a(hero.name)} called {name}, {a(friend.name)} and {treasure} in {town.name}.""")
    first = rng.say(f"""
        Near {town.name} lived {a(hero.name)} named {name}.
        | Once {a(hero.name)} called {name} lived close to {town.name}.
        {name} loved {hero.food} and {hero.home}. | The home of {name} was {hero.home}.
        One day, in {weather}, {name} found {treasure} by the river {town.river}.
        | On a day with {weather}, {name} saw {treasure} in the grass.
        It was too heavy to carry, so {a(friend.name)} came to help.
        | {a(friend.name)} came by and asked for half of it.
        Together they took it to {friend.home}. | They talked until dark and hid it in {friend.home}.
        So {name} learned {lesson}. | Since then {name} knows {lesson}.""")
    if rng.random() < 0.5:
        second = rng.pick("How does the story go on? | Continue the story.")
        reply = rng.say(f"""
            The next morning {treasure} was gone. | Some days later someone asked for {treasure}.
            {name} followed the tracks along the river {town.river}. | {name} looked everywhere in {town.name}.
            The {friend.name}, which had looked for {friend.food} all night, slept beside it.
            | At last the {friend.name} brought it back and was sorry.
            From then on the {hero.name} and the {friend.name} were friends.
            | They laughed, and {name} gave it to the people of {town.name}.""")
    else:
        second = rng.pick("What is the lesson of this story? | Explain what the reader should learn.")
        reply = rng.say(f"""
            The story teaches {lesson}. | The reader should learn {lesson}.
            {name} the {hero.name} found {treasure}, but could not keep it alone.
            | Without the {friend.name}, {name} would have lost {treasure}.
            That is true in {town.name} and everywhere else. | It is a lesson for children and for grown people.""")
    return Dialogue("writing", (Turn(ask, first), Turn(second, reply)))


def roleplay(rng: Chance) -> Dialogue:
    trade, town, name = rng.choice(TRADES), rng.choice(TOWNS), people(rng, 1)[0].name
    years = rng.randint(2, 40)
    ask = rng.pick(f"""
        You are {name}, {a(trade.name)} in {town.name}. Tell a visitor about your work.
        | Play the part of {a(trade.name)} named {name} from {town.name} and describe your day.""")
    first = rng.say(f"""
        Good day, my name is {name}. | Welcome to {town.name}, I am {name}.
        I have been {a(trade.name)} for {years} years. | For {years} years I have worked as {a(trade.name)} here.
        My day begins {trade.start} in the {trade.place}. | I start {trade.start}, and you find me in the {trade.place}.
        With {trade.tool} I make {trade.makes}. | I make {trade.makes}, and for that I need {trade.tool}.
        When the {town.fair} comes in {town.month}, I sell more than in any other month.
        | Our town is known for its {town.craft}, but people come to me as well.""")
    if rng.random() < 0.5:
        second = rng.pick("What is the hardest part of it? | And what is difficult?")
        reply = rng.say(f"""
            The hardest part is {trade.hard}. | Nobody likes {trade.hard}, and I do not like it either.
            After {years} years I am used to it. | It was worse {years} years ago, when I began.
            What keeps me going is {trade.joy}. | But then there is {trade.joy}, and I forget it.
            I would not change places with anyone in {town.name}. | Would you like to try it for a day?""")
    else:
        second = rng.pick("What do you like best? | Why do you love this work?")
        reply = rng.say(f"""
            What I like best is {trade.joy}. | I love {trade.joy}.
            It makes me forget {trade.hard}. | Of course there is {trade.hard} too.
            The people of {town.name} know my {trade.makes}, and that makes me proud.
            | For {years} years I have been happy with it.""")
    return Dialogue("roleplay", (Turn(ask, first), Turn(second, reply)))
