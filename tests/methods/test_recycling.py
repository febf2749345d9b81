"""Token Recycling against its definition: a dictionary of successors, a forward pass without a cache for every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.run import main
from methods.decoder import Decoder, Method, Verification
from methods.draft import Draft, Tree
from methods.engine.llama import Llama
from methods.recycling import Recycled, Recycling, Successors
from methods.sampling import Sampler, accept
from methods.trees import RECYCLING_2_2_2, Node
from methods.vanilla import Vanilla
from tests import joey
from tests.tiny import tiny_llama

PROMPTS = ([5, 6, 7], [9, 9, 9, 9, 9, 9], [i % 11 + 3 for i in range(30)])


class Reference:
    """Says what is drafted and what is accepted, step by step. It runs every row from the first token on."""

    def __init__(
        self, model: Llama, prompt: list[int], whole: bool, said: dict[tuple[int, ...], list[int]] | None = None
    ) -> None:
        self.model, self.best = model, dict[int, list[int]]()
        self.said = {} if said is None else said  # what the model said after some tokens, for the next reference
        for end in range(1 if whole else len(prompt), len(prompt) + 1):
            self.best[prompt[end - 1]] = self.successors(prompt[:end])

    @torch.inference_mode()
    def successors(self, tokens: list[int]) -> list[int]:
        if tuple(tokens) not in self.said:
            hidden = self.model.embed(torch.tensor(tokens))
            hidden = self.model.run(hidden, torch.arange(len(tokens)), None, slice(0, None))
            best = self.model.head(hidden).topk(8).indices.tolist()
            self.said |= {tuple(tokens[: end + 1]): said for end, said in enumerate(best)}
        return self.said[tuple(tokens)]

    def draft(self, tokens: list[int], room: int) -> dict[Node, list[int]]:
        """Node -> the tokens on its path, of the nodes whose token is known, in the tree's order."""
        found: dict[Node, list[int]] = {(): []}
        for node in RECYCLING_2_2_2:
            above = found.get(node[:-1])
            known = self.best.get([*tokens, *above][-1]) if above is not None else None
            if above is not None and known is not None and len(node) <= room:
                found[node] = [*above, known[node[-1]]]
        return found

    def learn(self, tokens: list[int], draft: dict[Node, list[int]]) -> list[int]:
        """Take in what the target says after every row of a draft. Returns what the pass emits."""
        said = {node: self.successors([*tokens, *path]) for node, path in reversed(draft.items())}  # leaves first
        for node, path in draft.items():
            self.best[[*tokens, *path][-1]] = said[node]
        node: Node = ()
        while following := [n for n in draft if n and n[:-1] == node and draft[n][-1] == said[node][0]]:
            node = following[0]
        return [*draft[node], said[node][0]]


def paths_of(draft: Draft) -> list[list[int]]:
    """The tokens on the path to each node of a draft, but for those that are left out."""
    rows, depths = [-1, *draft.tokens.tolist()], draft.tree.depths.tolist()
    paths = zip(draft.tree.paths.tolist(), depths, strict=True)
    return [[rows[row] for row in path[1 : depth + 1]] for path, depth in paths if depth]


class Watched:
    """A method whose drafts are written down, with the tokens that they follow."""

    def __init__(self, method: Method) -> None:
        self.method, self.seen = method, list[tuple[list[int], Draft]]()
        self.taps, self.max_rows, self.extra_parameters = method.taps, method.max_rows, 0

    def start(self, prompt: list[int], prefill: Any) -> Watched:
        self.drafter = self.method.start(prompt, prefill)
        return self

    def propose(self, tokens: list[int], room: int) -> Draft:
        self.seen.append((tokens[:], self.drafter.propose(tokens, room)))
        return self.seen[-1][1]

    def observe(self, verification: Verification) -> None:
        self.drafter.observe(verification)


def check_steps(
    model: Llama, prompt: list[int], context: int, new: int, learn: bool, said: dict[tuple[int, ...], list[int]]
) -> list[int]:
    """Every step of a sequence against the definition, its tokens against vanilla's. Returns how much each drafted."""
    method = Watched(Recycling(model, memory="sequence", prompt=learn))
    found = Decoder(model, method, context=context).generate(torch.tensor(prompt), new)
    reference, tokens, drafted = Reference(model, prompt, learn, said), [*prompt, found.tokens[0]], []
    for step, (_, verified) in zip(found.steps, method.seen, strict=True):
        given = paths_of(verified)
        draft = reference.draft(tokens, context - len(tokens))
        emitted = reference.learn(tokens, draft)
        assert sorted(map(tuple, given)) == sorted(tuple(path) for path in draft.values() if path)
        assert step.drafted == len([node for node in RECYCLING_2_2_2 if len(node) <= context - len(tokens)])
        assert step.emitted <= len(emitted)
        tokens += emitted[: step.emitted]
        drafted.append(len(given))
    assert tuple(tokens[len(prompt) :]) == found.tokens
    assert found.tokens == Decoder(model, Vanilla(model), context=context).generate(torch.tensor(prompt), new).tokens
    return drafted


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize(("learn", "eos"), [(False, ()), (True, (3, 17, 30))])
def test_every_step_is_the_definitions(prompt: list[int], learn: bool, eos: tuple[int, ...]) -> None:
    model = tiny_llama(seed=3, vocab_size=40, std=0.5, num_layers=2, eos_token_ids=eos, context=50)
    assert max(check_steps(model, prompt, 50, 30, learn, {})) > 8 or eos


def test_every_step_is_the_definitions_on_joey() -> None:
    said: dict[tuple[int, ...], list[int]] = {}
    for model, context in joey.endings(lambda model: Recycling(model, memory="sequence", prompt=True), 20):
        assert max(check_steps(model, joey.prompt(), context, 20, True, said)) > 8


def learned(tokens: list[int], best: list[int], counts: list[bool] | None = None) -> dict[int, int]:
    """Which tokens have successors after one lesson of one-hot logits, and the best of them."""
    successors = Successors(20, torch.device("cpu"))
    logits = torch.nn.functional.one_hot(torch.tensor(best), 20).float()
    successors.learn(torch.tensor(tokens), logits, None if counts is None else torch.tensor(counts))
    known = successors.matrix[:, 0].tolist()
    assert known.pop() == 20, "what is not known must stay unknown"
    return {token: first for token, first in enumerate(known) if first != 20}


def test_of_equal_tokens_the_last_row_counts() -> None:
    assert learned([4, 7, 4, 7, 4], [1, 2, 3, 5, 6]) == {4: 6, 7: 5}


def test_rows_that_do_not_count_teach_nothing() -> None:
    assert learned([4, 7, 4, 4], [1, 2, 3, 5], [True, True, False, False]) == {4: 1, 7: 2}


def test_an_empty_matrix_drafts_nothing_that_could_be_accepted() -> None:
    model = tiny_llama(vocab_size=40)
    method = Recycling(model, memory="sequence", prompt=False)
    draft = Recycled(method, Successors(40, model.device)).propose([3], 50)
    assert draft.tree.size == 80 and not draft.tree.depths.any()
    assert set(draft.tokens.tolist()) == {3}


def test_rows_left_out_of_a_tree_are_never_accepted() -> None:
    tree = Tree.build([-1, 0, -1], torch.device("cpu")).only(torch.tensor([True, False, False, True]))
    logits = torch.full((4, 6), -1e4)
    logits[torch.arange(4), torch.tensor([1, 2, 3, 4])] = 1e4
    draft = Draft(torch.tensor([1, 2, 5]), tree)  # rows 1 and 2 are right, and left out
    for temperature in (0.0, 1.0):
        outcome = accept(logits, Sampler(temperature, 0, 6, tree.parents.device).choose(logits, 4, draft), draft)
        assert (outcome.path, outcome.tokens) == ((0,), (1,))


def test_memory_of_a_run_outlives_a_sequence_and_that_of_a_sequence_does_not() -> None:
    model = tiny_llama(vocab_size=40, std=0.5)
    passes: dict[Any, list[int]] = {}
    for memory in ("sequence", "run"):
        decoder = Decoder(model, Recycling(model, memory=memory, prompt=False))  # type: ignore[arg-type]
        found = [decoder.generate(torch.tensor([5, 6, 7]), 40) for _ in range(2)]
        assert found[0].tokens == found[1].tokens
        passes[memory] = [len(generation.steps) for generation in found]
    assert passes["sequence"][0] == passes["sequence"][1] == passes["run"][0] > passes["run"][1]


def test_memory_of_a_run_refuses_what_would_change_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["method=recycling", "method.memory=run", "model=joey", f"results_dir={tmp_path}"]
    assert main([*command, "repeats=2", "shard=0/2"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("method.memory=run: ") and "repeats=2 must be 1, shard=0/2 must be 0/1" in line


def test_memory_of_a_run_is_not_continued_halfway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["method=recycling", "method.memory=run", "model=joey", "repeats=1", "task=qa", "limit=2"]
    command += ["max_new_tokens=4", "warmup_turns=0", f"results_dir={tmp_path}"]
    assert main(command) == 0 and main(command) == 0  # a finished one is only shown again
    (file,) = tmp_path.glob("runs/joey/recycling/*/answers.jsonl")
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    capsys.readouterr()
    assert main(command) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("method.memory=run: "))
    assert "resume=false starts anew" in line
