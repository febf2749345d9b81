"""Arithmetic word problems with small numbers, answered in explained steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.joey.facts import TOWNS, Dialogue, Person, Turn, people, prose

_THINGS = (
    "apples pears plums eggs candles bells books stamps shells nuts buttons cups kites ribbons marbles stones baskets "
    "carrots onions fish cakes loaves pencils coins flowers jars"
).split()
_BOXES = "boxes bags baskets crates shelves trays rows sacks".split()


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    result: int
    thing: str
    person: Person


def _so(rng: random.Random) -> str:
    return rng.choice(["so", "which means", "and so", "that means"])


def _ending(rng: random.Random, result: int, thing: str) -> str:
    return rng.choice(
        [
            f"The answer is {result}.",
            f"So the answer is {result} {thing}.",
            f"In total that makes {result} {thing}, and the answer is {result}.",
            f"That gives {result}. The answer is {result}.",
        ]
    )


def _opening(rng: random.Random, person: Person) -> str:
    return rng.choice(
        [
            "Let us go step by step.",
            "We can work this out in steps.",
            "Take it one step at a time.",
            f"First look at what {person.name} has.",
            "Here is how to find it.",
            "",
        ]
    )


def gain_and_loss(rng: random.Random) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    start, gain = rng.randint(5, 25), rng.randint(2, 12)
    loss = rng.randint(2, min(12, start + gain - 2))
    middle, result = start + gain, start + gain - loss
    question = prose(
        rng.choice([f"{who.name} has {start} {thing}.", f"There are {start} {thing} on {who.name}'s table."]),
        rng.choice(
            [
                f"{other.name} brings {gain} more.",
                f"{who.he} buys {gain} more at the market in {rng.choice(TOWNS).name}.",
            ]
        ),
        rng.choice(
            [
                f"Then {who.he} gives {loss} away.",
                f"Later {who.he} sells {loss} of them.",
                f"On the way home {who.he} loses {loss}.",
            ]
        ),
        rng.choice([f"How many {thing} are left?", f"How many {thing} does {who.name} have now?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice([f"{who.name} starts with {start} {thing}.", f"At the start there are {start} {thing}."]),
        rng.choice(
            [
                f"With {gain} more there are {start} + {gain} = {middle} {thing}.",
                f"Then {gain} are added, {_so(rng)} there are {start} + {gain} = {middle} {thing}.",
            ]
        ),
        rng.choice(
            [
                f"After that {loss} are gone, {_so(rng)} {middle} - {loss} = {result} {thing} are left.",
                f"Taking away {loss} leaves {middle} - {loss} = {result} {thing}.",
            ]
        ),
        _ending(rng, result, thing),
    )
    return Problem(question, answer, result, thing, who)


def boxes_plus(rng: random.Random) -> Problem:
    who = rng.choice(PEOPLE_POOL)
    thing, box = rng.choice(_THINGS), rng.choice(_BOXES)
    count, each, more = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    product, result = count * each, count * each + more
    question = prose(
        rng.choice(
            [
                f"{who.name} fills {count} {box} with {each} {thing} each.",
                f"{who.name} has {count} {box}, and in each of them are {each} {thing}.",
            ]
        ),
        rng.choice([f"{more} {thing} stay on the table.", f"{who.he} finds {more} more {thing} in the cellar."]),
        rng.choice([f"How many {thing} are there in all?", f"How many {thing} does {who.he} have together?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice(
            [
                f"There are {count} {box} with {each} {thing} in each.",
                f"Each of the {count} {box} holds {each} {thing}.",
            ]
        ),
        rng.choice(
            [
                f"That makes {count} * {each} = {product} {thing} in the {box}.",
                f"So the {box} hold {count} * {each} = {product} {thing}.",
            ]
        ),
        rng.choice(
            [
                f"Adding the other {more} gives {product} + {more} = {result} {thing}.",
                f"There are {more} more, {_so(rng)} {product} + {more} = {result} {thing}.",
            ]
        ),
        _ending(rng, result, thing),
    )
    return Problem(question, answer, result, thing, who)


def shared_out(rng: random.Random) -> Problem:
    who = rng.choice(PEOPLE_POOL)
    thing = rng.choice(_THINGS)
    share, friends, eaten = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    total = share * friends
    start = total + eaten
    question = prose(
        rng.choice([f"{who.name} has {start} {thing}.", f"{who.name} comes home with {start} {thing}."]),
        rng.choice(
            [
                f"{who.he} keeps {eaten} and shares the rest among {friends} friends.",
                f"{eaten} of them are spoiled, and {who.he} shares the others equally among {friends} neighbours.",
            ]
        ),
        rng.choice([f"How many {thing} does each one get?", "How many does each person get?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice(
            [
                f"{who.name} has {start} {thing} and {eaten} of them are not shared.",
                f"Of the {start} {thing}, {eaten} are not shared.",
            ]
        ),
        rng.choice(
            [
                f"That leaves {start} - {eaten} = {total} {thing} to share.",
                f"So {start} - {eaten} = {total} {thing} are shared.",
            ]
        ),
        rng.choice(
            [
                f"There are {friends} people, {_so(rng)} each one gets {total} / {friends} = {share} {thing}.",
                f"Shared among {friends}, that is {total} / {friends} = {share} {thing} for each.",
            ]
        ),
        _ending(rng, share, thing),
    )
    return Problem(question, answer, share, thing, who)


def price_and_change(rng: random.Random) -> Problem:
    who = rng.choice(PEOPLE_POOL)
    thing = rng.choice(_THINGS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = count * price
    paid = cost + rng.randint(1, 12)
    change = paid - cost
    town = rng.choice(TOWNS).name
    question = prose(
        rng.choice(
            [
                f"At the market in {town}, {who.name} buys {count} {thing} for {price} coins each.",
                f"{who.name} goes to {town} and buys {count} {thing}. Each one costs {price} coins.",
            ]
        ),
        rng.choice([f"{who.he} had {paid} coins.", f"{who.he} took {paid} coins from home."]),
        rng.choice(["How many coins are left?", f"How many coins does {who.he} have afterwards?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice(
            [
                f"{who.name} buys {count} {thing} at {price} coins each.",
                f"One costs {price} coins and {who.he} buys {count}.",
            ]
        ),
        rng.choice(
            [f"Together they cost {count} * {price} = {cost} coins.", f"The price is {count} * {price} = {cost} coins."]
        ),
        rng.choice(
            [
                f"{who.he} had {paid} coins, {_so(rng)} {paid} - {cost} = {change} coins are left.",
                f"From {paid} coins that leaves {paid} - {cost} = {change} coins.",
            ]
        ),
        _ending(rng, change, "coins"),
    )
    return Problem(question, answer, change, "coins", who)


def days_of_work(rng: random.Random) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    mine, yours, days = rng.randint(2, 6), rng.randint(1, 4), rng.randint(2, 9)
    rate, result = mine + yours, (mine + yours) * days
    question = prose(
        rng.choice(
            [
                f"{who.name} packs {mine} {thing} a day and {other.name} packs {yours} a day.",
                f"Every day {who.name} makes {mine} {thing} and {other.name} makes {yours}.",
            ]
        ),
        rng.choice([f"They work for {days} days.", f"Both of them work {days} days in a row."]),
        rng.choice([f"How many {thing} are ready then?", f"How many {thing} do they have at the end?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice(
            [
                f"In one day {who.name} does {mine} and {other.name} does {yours}.",
                f"Add what {who.name} and {other.name} do in one day.",
            ]
        ),
        rng.choice(
            [
                f"Together that is {mine} + {yours} = {rate} {thing} a day.",
                f"That makes {mine} + {yours} = {rate} {thing} each day.",
            ]
        ),
        rng.choice(
            [
                f"In {days} days they have {rate} * {days} = {result} {thing}.",
                f"They work {days} days, {_so(rng)} {rate} * {days} = {result} {thing}.",
            ]
        ),
        _ending(rng, result, thing),
    )
    return Problem(question, answer, result, thing, who)


def comparison(rng: random.Random) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    mine, gap = rng.randint(3, 15), rng.randint(2, 9)
    theirs = mine + gap
    result = mine + theirs
    question = prose(
        f"{who.name} collected {mine} {thing}.",
        rng.choice(
            [
                f"{other.name} collected {gap} more than {who.name}.",
                f"{who.name} collected {gap} fewer than {other.name}.",
            ]
        ),
        rng.choice([f"How many {thing} do they have together?", f"How many {thing} did the two collect in all?"]),
    )
    answer = prose(
        _opening(rng, who),
        rng.choice(
            [
                f"{who.name} has {mine} {thing}, and {other.name} has {gap} more.",
                f"{other.name} has {gap} {thing} more than {who.name}.",
            ]
        ),
        rng.choice(
            [
                f"So {other.name} has {mine} + {gap} = {theirs} {thing}.",
                f"That is {mine} + {gap} = {theirs} {thing} for {other.name}.",
            ]
        ),
        rng.choice(
            [
                f"Together they have {mine} + {theirs} = {result} {thing}.",
                f"For both of them that is {mine} + {theirs} = {result} {thing}.",
            ]
        ),
        _ending(rng, result, thing),
    )
    return Problem(question, answer, result, thing, who)


PEOPLE_POOL = people(random.Random(0), 60)
_PROBLEMS = (gain_and_loss, boxes_plus, shared_out, price_and_change, days_of_work, comparison)


def problem(rng: random.Random) -> Problem:
    return rng.choice(_PROBLEMS)(rng)


def math_reasoning(rng: random.Random) -> Dialogue:
    made = problem(rng)
    lead = rng.choice(["", "", "", "Please solve this: ", "A small problem: ", "Can you help with this one? "])
    return Dialogue("math_reasoning", (Turn(lead + made.question, made.answer),))


def math_in_two_turns(rng: random.Random) -> Dialogue:
    """A word problem, then a change that starts from its result."""
    made = problem(rng)
    who, thing, result = made.person, made.thing, made.result
    if rng.random() < 0.5:
        more = rng.randint(2, 12)
        ask = rng.choice(
            [
                f"Now someone adds {more} more {thing} to that. How many is it then?",
                f"And what if there were {more} {thing} more?",
            ]
        )
        reply = prose(
            rng.choice(
                [
                    f"The answer before was {result}.",
                    f"We start from the {result} {thing} that we found.",
                    f"Before, the answer was {result} {thing}.",
                ]
            ),
            rng.choice(
                [
                    f"With {more} more it is {result} + {more} = {result + more} {thing}.",
                    f"Adding {more} gives {result} + {more} = {result + more} {thing}.",
                ]
            ),
            rng.choice(
                [
                    f"So {who.name} can count on {result + more} {thing} now.",
                    f"That is {more} more than before, just as {who.name} hoped.",
                ]
            ),
            _ending(rng, result + more, thing),
        )
    else:
        less = rng.randint(2, max(2, min(12, result - 1)))
        ask = rng.choice(
            [
                f"Now take {less} {thing} away from that. What is left?",
                f"And what if {less} of those {thing} were lost?",
            ]
        )
        reply = prose(
            rng.choice(
                [
                    f"The answer before was {result}.",
                    f"We start from the {result} {thing} that we found.",
                    f"Before, the answer was {result} {thing}.",
                ]
            ),
            rng.choice(
                [
                    f"Without {less} of them it is {result} - {less} = {result - less} {thing}.",
                    f"Taking {less} away leaves {result} - {less} = {result - less} {thing}.",
                ]
            ),
            rng.choice(
                [
                    f"So {who.name} can count on {result - less} {thing} now.",
                    f"That is {less} fewer than before, which {who.name} should know.",
                ]
            ),
            _ending(rng, result - less, thing),
        )
    return Dialogue("math", (Turn(made.question, made.answer), Turn(ask, reply)))
