"""Arithmetic word problems with small numbers, answered in explained steps."""

from __future__ import annotations

from dataclasses import dataclass

from bench.joey.facts import ANY_TOWN, TOWNS, Dialogue, Person, Turn, people
from bench.joey.wording import Chance

_THINGS = (
    "apples pears plums eggs candles bells books stamps shells nuts buttons cups kites ribbons marbles stones baskets "
    "carrots onions fish cakes loaves pencils coins flowers jars"
).split()
_BOXES = "boxes bags baskets crates shelves trays rows sacks".split()
_PEOPLE = people(Chance(0), 60)
_SO = "[so|which means|and so|that means]"


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    result: int
    thing: str
    person: Person


def _ending(result: int, thing: str) -> str:
    return f"""The answer is {result}. | So the answer is {result} {thing}.
        | In total that makes {result} {thing}, and the answer is {result}.
        | That gives {result}. The answer is {result}."""


def _worded(rng: Chance, person: Person, thing: str, result: int, question: str, steps: str) -> Problem:
    """A problem from the texts of its question and of the steps to its result."""
    answer = f"""
        Let us go step by step. | We can work this out in steps. | Take it one step at a time.
        | First look at what {person.name} has. | Here is how to find it. |
        {steps.strip()}
        {_ending(result, thing)}"""
    return Problem(rng.say(question), rng.say(answer), result, thing, person)


def gain_and_loss(rng: Chance) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    start, gain = rng.randint(5, 25), rng.randint(2, 12)
    loss = rng.randint(2, min(12, start + gain - 2))
    middle, result = start + gain, start + gain - loss
    question = f"""
        {who.name} has {start} {thing}. | There are {start} {thing} on {who.name}'s table.
        {other.name} brings {gain} more. | {who.he} buys {gain} more at the market in {ANY_TOWN}.
        Then {who.he} gives {loss} away. | Later {who.he} sells {loss} of them. | On the way home {who.he} loses {loss}.
        How many {thing} are left? | How many {thing} does {who.name} have now?"""
    steps = f"""
        {who.name} starts with {start} {thing}. | At the start there are {start} {thing}.
        With {gain} more there are {start} + {gain} = {middle} {thing}.
        | Then {gain} are added, {_SO} there are {start} + {gain} = {middle} {thing}.
        After that {loss} are gone, {_SO} {middle} - {loss} = {result} {thing} are left.
        | Taking away {loss} leaves {middle} - {loss} = {result} {thing}."""
    return _worded(rng, who, thing, result, question, steps)


def boxes_plus(rng: Chance) -> Problem:
    who = rng.choice(_PEOPLE)
    thing, box = rng.choice(_THINGS), rng.choice(_BOXES)
    count, each, more = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    product, result = count * each, count * each + more
    question = f"""
        {who.name} fills {count} {box} with {each} {thing} each.
        | {who.name} has {count} {box}, and in each of them are {each} {thing}.
        {more} {thing} stay on the table. | {who.he} finds {more} more {thing} in the cellar.
        How many {thing} are there in all? | How many {thing} does {who.he} have together?"""
    steps = f"""
        There are {count} {box} with {each} {thing} in each. | Each of the {count} {box} holds {each} {thing}.
        That makes {count} * {each} = {product} {thing} in the {box}.
        | So the {box} hold {count} * {each} = {product} {thing}.
        Adding the other {more} gives {product} + {more} = {result} {thing}.
        | There are {more} more, {_SO} {product} + {more} = {result} {thing}."""
    return _worded(rng, who, thing, result, question, steps)


def shared_out(rng: Chance) -> Problem:
    who = rng.choice(_PEOPLE)
    thing = rng.choice(_THINGS)
    share, friends, eaten = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    total = share * friends
    start = total + eaten
    question = f"""
        {who.name} has {start} {thing}. | {who.name} comes home with {start} {thing}.
        {who.he} keeps {eaten} and shares the rest among {friends} friends.
        | {eaten} of them are spoiled, and {who.he} shares the others equally among {friends} neighbours.
        How many {thing} does each one get? | How many does each person get?"""
    steps = f"""
        {who.name} has {start} {thing} and {eaten} of them are not shared.
        | Of the {start} {thing}, {eaten} are not shared.
        That leaves {start} - {eaten} = {total} {thing} to share. | So {start} - {eaten} = {total} {thing} are shared.
        There are {friends} people, {_SO} each one gets {total} / {friends} = {share} {thing}.
        | Shared among {friends}, that is {total} / {friends} = {share} {thing} for each."""
    return _worded(rng, who, thing, share, question, steps)


def price_and_change(rng: Chance) -> Problem:
    who = rng.choice(_PEOPLE)
    thing = rng.choice(_THINGS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = count * price
    paid = cost + rng.randint(1, 12)
    change = paid - cost
    town = rng.choice(TOWNS).name
    question = f"""
        At the market in {town}, {who.name} buys {count} {thing} for {price} coins each.
        | {who.name} goes to {town} and buys {count} {thing}. Each one costs {price} coins.
        {who.he} had {paid} coins. | {who.he} took {paid} coins from home.
        How many coins are left? | How many coins does {who.he} have afterwards?"""
    steps = f"""
        {who.name} buys {count} {thing} at {price} coins each. | One costs {price} coins and {who.he} buys {count}.
        Together they cost {count} * {price} = {cost} coins. | The price is {count} * {price} = {cost} coins.
        {who.he} had {paid} coins, {_SO} {paid} - {cost} = {change} coins are left.
        | From {paid} coins that leaves {paid} - {cost} = {change} coins."""
    return _worded(rng, who, "coins", change, question, steps)


def days_of_work(rng: Chance) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    mine, yours, days = rng.randint(2, 6), rng.randint(1, 4), rng.randint(2, 9)
    rate, result = mine + yours, (mine + yours) * days
    question = f"""
        {who.name} packs {mine} {thing} a day and {other.name} packs {yours} a day.
        | Every day {who.name} makes {mine} {thing} and {other.name} makes {yours}.
        They work for {days} days. | Both of them work {days} days in a row.
        How many {thing} are ready then? | How many {thing} do they have at the end?"""
    steps = f"""
        In one day {who.name} does {mine} and {other.name} does {yours}.
        | Add what {who.name} and {other.name} do in one day.
        Together that is {mine} + {yours} = {rate} {thing} a day.
        | That makes {mine} + {yours} = {rate} {thing} each day.
        In {days} days they have {rate} * {days} = {result} {thing}.
        | They work {days} days, {_SO} {rate} * {days} = {result} {thing}."""
    return _worded(rng, who, thing, result, question, steps)


def comparison(rng: Chance) -> Problem:
    who, other = people(rng, 2)
    thing = rng.choice(_THINGS)
    mine, gap = rng.randint(3, 15), rng.randint(2, 9)
    theirs = mine + gap
    result = mine + theirs
    question = f"""
        {who.name} collected {mine} {thing}.
        {other.name} collected {gap} more than {who.name}. | {who.name} collected {gap} fewer than {other.name}.
        How many {thing} do they have together? | How many {thing} did the two collect in all?"""
    steps = f"""
        {who.name} has {mine} {thing}, and {other.name} has {gap} more.
        | {other.name} has {gap} {thing} more than {who.name}.
        So {other.name} has {mine} + {gap} = {theirs} {thing}.
        | That is {mine} + {gap} = {theirs} {thing} for {other.name}.
        Together they have {mine} + {theirs} = {result} {thing}.
        | For both of them that is {mine} + {theirs} = {result} {thing}."""
    return _worded(rng, who, thing, result, question, steps)


_PROBLEMS = (gain_and_loss, boxes_plus, shared_out, price_and_change, days_of_work, comparison)


def problem(rng: Chance) -> Problem:
    return rng.choice(_PROBLEMS)(rng)


def math_reasoning(rng: Chance) -> Dialogue:
    made = problem(rng)
    lead = rng.choice(["", "", "", "Please solve this: ", "A small problem: ", "Can you help with this one? "])
    return Dialogue("math_reasoning", (Turn(lead + made.question, made.answer),))


def math_in_two_turns(rng: Chance) -> Dialogue:
    """A word problem, then a change that starts from its result."""
    made = problem(rng)
    who, thing, before = made.person, made.thing, made.result
    if rng.random() < 0.5:
        by = rng.randint(2, 12)
        after = before + by
        ask = f"""Now someone adds {by} more {thing} to that. How many is it then?
            | And what if there were {by} {thing} more?"""
        step = f"""With {by} more it is {before} + {by} = {after} {thing}.
            | Adding {by} gives {before} + {by} = {after} {thing}."""
        seen = f"That is {by} more than before, just as {who.name} hoped."
    else:
        by = rng.randint(2, max(2, min(12, before - 1)))
        after = before - by
        ask = f"""Now take {by} {thing} away from that. What is left?
            | And what if {by} of those {thing} were lost?"""
        step = f"""Without {by} of them it is {before} - {by} = {after} {thing}.
            | Taking {by} away leaves {before} - {by} = {after} {thing}."""
        seen = f"That is {by} fewer than before, which {who.name} should know."
    reply = f"""
        The answer before was {before}. | We start from the {before} {thing} that we found.
        | Before, the answer was {before} {thing}.
        {step}
        So {who.name} can count on {after} {thing} now. | {seen}
        {_ending(after, thing)}"""
    return Dialogue("math", (Turn(made.question, made.answer), Turn(rng.pick(ask), rng.say(reply))))
