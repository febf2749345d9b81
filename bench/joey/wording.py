"""How joey's world words things: sentences with alternatives, one of which is drawn by chance."""

from __future__ import annotations

import random
import re

_WITHIN = re.compile(r"\[([^]]*)]")


class Chance(random.Random):
    """Chance that also draws among words. A text given to it has one sentence a line; `x | y` is one of the two, a
    line that begins with `|` goes on with the alternatives of the line before it, and `[x|y]` is a choice within one.
    """

    def pick(self, line: str) -> str:
        """One alternative. The choices within all of them are drawn first: a seed's text depends on this order."""
        options = _WITHIN.sub(lambda within: self.choice(within[1].split("|")), line).split("|")
        return (self.choice(options) if len(options) > 1 else options[0]).strip()

    def sentences(self, text: str) -> list[str]:
        """One alternative of each line."""
        return [self.pick(line) for line in re.sub(r"\n\s*\|", " |", text.strip()).splitlines()]

    def say(self, text: str) -> str:
        """The sentences of a text as prose."""
        return prose(*self.sentences(text))


def prose(*sentences: str) -> str:
    """Sentences joined by blanks, each with a capital; empty ones are left out."""
    return " ".join(capital(sentence) for sentence in sentences if sentence)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listing(items: list[str]) -> str:
    """'x', 'x and y', 'x, y and z'."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
