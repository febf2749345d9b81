"""Velan, an invented language with a dictionary and a regular grammar, and translations into it and back.

A Velan clause is place, subject, object, verb. An adjective follows its noun, a plural noun ends in -n, a place takes
its postposition as a suffix, and the verb ends in -e (present), -ta (past) or -ru (future). There is no word for "the".
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.joey.facts import Dialogue, Turn
from bench.joey.wording import Chance, a, capital


def _rows(table: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row.split()) for row in table.replace("\n", "|").split("|"))


# English singular, English plural, Velan
NOUNS = _rows("""\
dog dogs kona|cat cats mirsa|bird birds pelu|horse horses darga|fish fish sulo|child children tavi|woman women sela
man men borun|baker bakers pando|teacher teachers lekso|farmer farmers grava|sailor sailors nauti|king kings roda
queen queens rodela|friend friends amu|doctor doctors hesko|letter letters skriva|book books bibra|apple apples meli
stone stones kiva|bell bells dolu|boat boats vasko|lamp lamps lumi|flower flowers fiola|song songs kanti
door doors puerta
coat coats toga|basket baskets korva|key keys klavi|bridge bridges ponte|tree trees arbo|house houses doma
goat goats kapri|egg eggs ovu|candle candles sandu|clock clocks orlo""")
PLACES = _rows("""\
garden hortu|forest silva|market merka|village vilo|river flumi|school eskola|harbour porto|hill monta
kitchen kusi|tower torre|field kampa|cellar selu""")
POSTPOSITIONS = (("in", "ni"), ("near", "pra"), ("behind", "ger"), ("above", "sur"), ("under", "dol"))
ADJECTIVES = _rows("""\
old baro|young juva|small pik|large gran|red rusa|green virda|blue azu|white balu|black nigu|happy feli
sad trisu|clever sapi|tired lasu|new novu|quiet silu|warm kalu""")
# base, third person, past, Velan
VERBS = _rows("""\
see sees saw vid|find finds found trov|carry carries carried port|buy buys bought komp|sell sells sold vend
bring brings brought bring|paint paints painted pikt|draw draws drew des|lose loses lost perd
love loves loved lub|watch watches watched gard|follow follows followed sek
hear hears heard aud|hide hides hid kash|wash washes washed lav|choose chooses chose elek|help helps helped jud
count counts counted kont""")
NUMBERS = (("two", "du"), ("three", "tri"), ("four", "kar"), ("five", "pen"), ("six", "ses"))
TENSES = ("present", "past", "future")


@dataclass(frozen=True)
class Phrase:
    english: str
    velan: str
    plural: bool


def _noun_phrase(rng: Chance, nouns: tuple[tuple[str, ...], ...], adjective: float) -> Phrase:
    singular, plural, velan = rng.choice(nouns)
    adj = rng.choice(ADJECTIVES) if rng.random() < adjective else None
    kind = rng.choice(("the", "the", "a", "many", "count"))
    middle = f"{adj[0]} " if adj else ""
    after = f" {adj[1]}" if adj else ""
    if kind == "the":
        many = rng.random() < 0.3
        return Phrase(f"the {middle}{plural if many else singular}", f"{velan}{'n' if many else ''}{after}", many)
    if kind == "a":
        return Phrase(a(f"{middle}{singular}"), f"un {velan}{after}", False)
    english, number = ("many", "mul") if kind == "many" else rng.choice(NUMBERS)
    return Phrase(f"{english} {middle}{plural}", f"{number} {velan}n{after}", True)


def sentence(rng: Chance) -> tuple[str, str]:
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


def translation(rng: Chance) -> Dialogue:
    pairs = [sentence(rng) for _ in range(rng.randint(4, 7))]
    english, velan = " ".join(pair[0] for pair in pairs), " ".join(pair[1] for pair in pairs)
    sides, question = [("English", english), ("Velan", velan)], "How do you say this"
    if rng.random() >= 0.6:
        sides, question = sides[::-1], "What does this mean"
    (given, prompt), (wanted, answer) = sides
    ask = rng.pick(f"""
        Translate into {wanted}: | Please put this into {wanted}: | Translate {given} to {wanted}:
        | {question} in {wanted}?""")
    return Dialogue("translation", (Turn(f"{ask} {prompt}", answer),))
