"""REST: retrieval-based speculative decoding (He et al., arXiv 2311.08252).

The draft is what followed, in a datastore of text, the longest recent piece of the context. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from methods.datastore import FILE_NAME, Datastore
from methods.decoder import Prefill, Verification
from methods.draft import Draft, Tree, upload
from methods.engine.llama import Llama
from methods.errors import UserError, check_sizes
from methods.files import DataFile


class Rest:
    """Drafts the tree of what followed the longest match of the context in the datastore.

    datastore: file or folder written by bench.train, for the tokenizer in the target's folder. Spans from max_span down
    to min_span tokens are looked up; of a match, at most `occurrences` places with `continuation` tokens each make the
    tree, of which the `nodes` most frequent nodes are drafted. The authors' code then also drops whole paths, the
    longest first, until the tokens of all paths together are no more than `nodes`: it verifies fewer rows.

    Raises UserError for values out of range and for a datastore that does not fit.
    """

    taps: tuple[int, ...] = ()
    extra_parameters = 0

    def __init__(
        self,
        target: Llama,
        *,
        datastore: Annotated[Path, DataFile("a REST datastore", FILE_NAME)],
        max_span: int,
        min_span: int,
        continuation: int,
        occurrences: int,
        nodes: int,
    ) -> None:
        check_sizes(min_span=min_span, continuation=continuation, occurrences=occurrences, nodes=nodes)
        check_sizes(max_span=max_span)
        if max_span < min_span:
            raise UserError(f"method.max_span={max_span}: must be at least method.min_span={min_span}")
        self.datastore = Datastore(Path(datastore))
        self.datastore_bytes = self.datastore.size_bytes
        self.datastore.fit(target)
        self.device, self.max_rows = target.device, nodes + 1
        self.spans, self.continuation = range(min_span, max_span + 1), continuation
        self.limits = {"occurrences": occurrences, "nodes": nodes}

    def start(self, prompt: list[int], prefill: Prefill) -> Rest:
        """Nothing to prepare: the context comes with every step, so one drafter serves all sequences."""
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The tree of continuations, or nothing when no suffix of the context occurs."""
        depth = min(self.continuation, room)
        match = self.datastore.longest_match(tokens[-self.spans.stop + 1 :], self.spans)
        if match is None or depth < 1:
            return Draft.empty(self.device)
        found = self.datastore.candidates(*match, depth=depth, **self.limits)
        chain = bool((found.parents == np.arange(-1, len(found.parents) - 1)).all())
        tree = Tree.chain(len(found.parents), self.device) if chain else Tree.build(found.parents, self.device)
        return Draft(tokens=upload(found.tokens, self.device), tree=tree)

    def observe(self, verification: Verification) -> None:
        """Nothing to learn."""
