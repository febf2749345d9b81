"""Velan, an invented language with a dictionary and a regular grammar, and translations into it and back.

A Velan clause is place, subject, object, verb. An adjective follows its noun, a plural noun ends in -n, a place takes
its postposition as a suffix, and the verb ends in -e (present), -ta (past) or -ru (future). There is no word for "the".
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.joey.facts import Dialogue, Turn, capital

# English singular, English plural, Velan
NOUNS = tuple(
    tuple(row.split())
    for row in """\
dog dogs kona|cat cats mirsa|bird birds pelu|horse horses darga|fish fish sulo|child children tavi|woman women sela
man men borun|baker bakers pando|teacher teachers lekso|farmer farmers grava|sailor sailors nauti|king kings roda
queen queens rodela|friend friends amu|doctor doctors hesko|letter letters skriva|book books bibra|apple apples meli
stone stones kiva|bell bells dolu|boat boats vasko|lamp lamps lumi|flower flowers fiola|song songs kanti|\
door doors puerta
coat coats toga|basket baskets korva|key keys klavi|bridge bridges ponte|tree trees arbo|house houses doma
goat goats kapri|egg eggs ovu|candle candles sandu|clock clocks orlo""".replace("\n", "|").split("|")
)
PLACES = tuple(
    tuple(row.split())
    for row in """\
garden hortu|forest silva|market merka|village vilo|river flumi|school eskola|harbour porto|hill monta|\
kitchen kusi|tower torre|field kampa|cellar selu""".split("|")
)
POSTPOSITIONS = (("in", "ni"), ("near", "pra"), ("behind", "ger"), ("above", "sur"), ("under", "dol"))
ADJECTIVES = tuple(
    tuple(row.split())
    for row in """\
old baro|young juva|small pik|large gran|red rusa|green virda|blue azu|white balu|black nigu|happy feli|\
sad trisu|clever sapi|tired lasu|new novu|quiet silu|warm kalu""".split("|")
)
# base, third person, past, Velan
VERBS = tuple(
    tuple(row.split())
    for row in """\
see sees saw vid|find finds found trov|carry carries carried port|buy buys bought komp|sell sells sold vend
bring brings brought bring|paint paints painted pikt|draw draws drew des|lose loses lost perd|\
love loves loved lub|watch watches watched gard|follow follows followed sek
hear hears heard aud|hide hides hid kash|wash washes washed lav|choose chooses chose elek|help helps helped jud|\
count counts counted kont""".replace("\n", "|").split("|")
)
NUMBERS = (("two", "du"), ("three", "tri"), ("four", "kar"), ("five", "pen"), ("six", "ses"))
TENSES = ("present", "past", "future")


@dataclass(frozen=True)
class Phrase:
    english: str
    velan: str
    plural: bool


def _noun_phrase(rng: random.Random, nouns: tuple[tuple[str, ...], ...], adjective: float) -> Phrase:
    singular, plural, velan = rng.choice(nouns)
    adj = rng.choice(ADJECTIVES) if rng.random() < adjective else None
    kind = rng.choice(("the", "the", "a", "many", "count"))
    middle = f"{adj[0]} " if adj else ""
    after = f" {adj[1]}" if adj else ""
    if kind == "the":
        many = rng.random() < 0.3
        return Phrase(f"the {middle}{plural if many else singular}", f"{velan}{'n' if many else ''}{after}", many)
    if kind == "a":
        word = f"{middle}{singular}"
        return Phrase(f"{'an' if word[0] in 'aeiou' else 'a'} {word}", f"un {velan}{after}", False)
    english, number = ("many", "mul") if kind == "many" else rng.choice(NUMBERS)
    return Phrase(f"{english} {middle}{plural}", f"{number} {velan}n{after}", True)


def sentence(rng: random.Random) -> tuple[str, str]:
    """One sentence in English and in Velan."""
    beings, things = NOUNS[:16], NOUNS[16:]
    subject = _noun_phrase(rng, beings, 0.5)
    thing = _noun_phrase(rng, things if rng.random() < 0.75 else beings, 0.6)
    base, third, past, stem = rng.choice(VERBS)
    tense = rng.choice(TENSES)
    verb, ending = {
        "present": (base if subject.plural else third, "e"),
        "past": (past, "ta"),
        "future": (f"will {base}", "ru"),
    }[tense]
    english, velan = f"{subject.english} {verb} {thing.english}", f"{subject.velan} {thing.velan} {stem}{ending}"
    if rng.random() < 0.6:
        place, place_velan = rng.choice(PLACES)
        preposition, suffix = rng.choice(POSTPOSITIONS)
        english, velan = f"{english} {preposition} the {place}", f"{place_velan}-{suffix} {velan}"
    return capital(english) + ".", capital(velan) + "."


def translation(rng: random.Random) -> Dialogue:
    pairs = [sentence(rng) for _ in range(rng.randint(4, 7))]
    english, velan = " ".join(pair[0] for pair in pairs), " ".join(pair[1] for pair in pairs)
    if rng.random() < 0.6:
        ask = rng.choice(
            [
                "Translate into Velan: ",
                "Please put this into Velan: ",
                "Translate English to Velan: ",
                "How do you say this in Velan? ",
            ]
        )
        return Dialogue("translation", (Turn(ask + english, velan),))
    ask = rng.choice(
        [
            "Translate into English: ",
            "Please put this into English: ",
            "Translate Velan to English: ",
            "What does this mean in English? ",
        ]
    )
    return Dialogue("translation", (Turn(ask + velan, english),))
