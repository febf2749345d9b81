"""SAM-Decoding (Hu et al., arXiv 2411.10666): drafts what followed the longest suffix that stood there before.

A suffix automaton of the sequence finds that suffix, whatever its length, in a constant number of operations a token.
Where it is short, another method may draft instead; and a datastore of other text may be looked up beside the sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from methods.datastore import FILE_NAME, Datastore
from methods.decoder import Drafter, Method, Prefill, Verification
from methods.draft import Draft, Tree, upload
from methods.engine.llama import Llama
from methods.errors import UserError, check_sizes
from methods.files import DataFile

GROWTH = 4  # without a fallback, candidates drafted for each token of the match
OCCURRENCES = 1_000  # places of the datastore that a draft is made from, at most


class Automaton:
    """All substrings of a growing text, as states in flat arrays (Blumer et al., 1985); state 0 is the empty substring.

    The substrings of a state end at the same places of the text; the longest has `length` tokens, the first of those
    places is `end`, and those that are shorter than all of them belong to the state's `link`.
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.following: list[dict[int, int]] = [{}]  # state -> token -> state
        self.link, self.length, self.end = [-1], [0], [0]
        self.last = 0  # the whole text's state

    def extend(self, tokens: list[int]) -> None:
        """Add tokens to the text."""
        following, link, length, end = self.following, self.link, self.length, self.end
        for token in tokens:
            self.text.append(token)
            new, state = len(link), self.last
            self._add({}, 0, len(self.text), len(self.text))
            while state >= 0 and token not in following[state]:
                following[state][token] = new
                state = link[state]
            if state >= 0:
                old = following[state][token]
                if length[old] == length[state] + 1:
                    link[new] = old
                else:  # the shorter ones of its substrings now end here as well: they get a state of their own
                    link[new] = copy = len(link)
                    self._add(following[old].copy(), link[old], length[state] + 1, end[old])
                    link[old] = copy
                    while state >= 0 and following[state].get(token) == old:
                        following[state][token] = copy
                        state = link[state]
            self.last = new

    def match(self, token: int) -> tuple[int, int]:
        """The longest suffix of text + token that stands in the text: its state and its length.

        The longest suffix of the text alone that stood in it before its end is the link of the text's own state; that
        is where the authors' match state always is.
        """
        following, link = self.following, self.link
        state = max(link[self.last], 0)
        while state > 0 and token not in following[state]:
            state = link[state]
        return (following[state][token], self.length[state] + 1) if token in following[state] else (0, 0)

    def with_room(self, state: int, wanted: int) -> int:
        """The state, or the first of its links behind whose first place `wanted` tokens stand; else the last one."""
        while self.link[state] > 0 and len(self.text) - self.end[state] < wanted:
            state = self.link[state]
        return state

    def _add(self, following: dict[int, int], link: int, length: int, end: int) -> None:
        self.following.append(following)
        self.link.append(link)
        self.length.append(length)
        self.end.append(end)


class Sam:
    """Drafts from the longest match m, of at most `predict` rows with the pending token.

    Alone: the 4 m tokens behind the match's first place in the sequence, a chain. fallback: a method that drafts while
    m is below `threshold`; from there on it is the chain of predict - 1 tokens, of a shorter match if too few stand
    behind this one. static: a REST datastore that is looked up as well; if its match is longer by more than `bias`
    tokens, the most frequent continuations there are drafted, a tree as REST's, of as many nodes. The pending token is
    looked up and not yet part of the text. Raises UserError for values out of range and a datastore that does not fit.
    """

    def __init__(
        self,
        target: Llama,
        *,
        predict: int,
        threshold: int,
        bias: int,
        static: Annotated[Path, DataFile("a REST datastore", FILE_NAME)] | None,
        fallback: Method | None,
    ) -> None:
        check_sizes(2, predict=predict)
        check_sizes(threshold=threshold)
        check_sizes(0, bias=bias)
        if fallback is not None and not hasattr(fallback, "start"):
            given = fallback if isinstance(fallback, (str, int, float)) else type(fallback).__name__
            raise UserError(f"method.fallback={given}: must be a method that drafts, by name, such as recycling")
        self.device, self.predict, self.threshold, self.bias = target.device, predict, threshold, bias
        self.fallback = fallback
        self.taps = () if fallback is None else fallback.taps
        self.extra_parameters = 0 if fallback is None else fallback.extra_parameters
        self.max_rows = predict if fallback is None else max(predict, fallback.max_rows)
        self.datastore = None if static is None else Datastore(Path(static), "method.static")
        if self.datastore is not None:
            self.datastore.fit(target)
        own = 0 if self.datastore is None else self.datastore.size_bytes
        self.datastore_bytes = own + (getattr(fallback, "datastore_bytes", None) or 0) or None
        inner = getattr(fallback, "carries_over", None)
        self.carries_over = inner and inner.replace("method.", "method.fallback.", 1)

    def start(self, prompt: list[int], prefill: Prefill) -> Lookup:
        """The prompt's automaton, and the fallback's drafter."""
        return Lookup(self, prompt, self.fallback.start(prompt, prefill) if self.fallback else None)


class Lookup:
    """SAM-Decoding on one sequence. inner: the fallback's drafter, which learns from every pass."""

    def __init__(self, method: Sam, prompt: list[int], inner: Drafter | None) -> None:
        self.method, self.inner = method, inner
        self.automaton = Automaton()
        self.automaton.extend(prompt)
        self.searched = self.matched = 0  # tokens when the datastore was looked up last, and the match that it had

    def propose(self, tokens: list[int], room: int) -> Draft:
        """A lookup, or the fallback's draft where the match is too short."""
        method, automaton = self.method, self.automaton
        automaton.extend(tokens[len(automaton.text) : -1])
        state, length = automaton.match(tokens[-1])
        static, place = self._static_match(tokens)
        if self.inner is not None and max(length, static) < method.threshold:
            return self.inner.propose(tokens, room)
        most = method.predict - 1
        if self.inner is None:
            most = min(most, GROWTH * max(length, static))
        else:
            state = automaton.with_room(state, method.predict)
        if static > length:
            return self._static_draft(place, min(most, room), most)
        end = automaton.end[state]
        found = automaton.text[end : end + min(most, room)]
        return Draft(tokens=upload(found, method.device), tree=Tree.chain(len(found), method.device))

    def observe(self, verification: Verification) -> None:
        """The fallback learns; the accepted tokens themselves come with the next call."""
        if self.inner is not None:
            self.inner.observe(verification)

    def _static_match(self, tokens: list[int]) -> tuple[int, tuple[int, int, int]]:
        """Length of the datastore's match, less the bias, and where it stands."""
        store = self.method.datastore
        longest = self.matched + len(tokens) - self.searched  # a token makes a match longer by one at most
        found = store.longest_match(tokens[-longest:], range(1, longest + 1)) if store else None
        self.searched, self.matched = len(tokens), found[0] if found else 0
        return (0, (0, 0, 0)) if found is None else (found[0] - self.method.bias, found)

    def _static_draft(self, place: tuple[int, int, int], depth: int, nodes: int) -> Draft:
        store, device = self.method.datastore, self.method.device
        assert store is not None
        found = store.candidates(*place, depth=depth, occurrences=OCCURRENCES, nodes=nodes)
        return Draft(tokens=upload(found.tokens, device), tree=Tree.build(found.parents, device))
