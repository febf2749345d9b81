"""Lookahead against its definition: a pool and a window in plain Python, on transformers' own model without a cache."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from methods.decoder import Decoder, Step
from methods.engine.checkpoint import load_model
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.lookahead import Lookahead, Pool, parallel_chains, window_layout
from methods.vanilla import Vanilla
from tests.tiny import packed, reference_model, tiny_llama, write_checkpoint

SIZES = {"num_hidden_layers": 3, "vocab_size": 48, "eos_token_id": None, "max_position_embeddings": 96}
SETTINGS: dict[str, Any] = {"window": 7, "level": 5, "guesses": 7, "max_accept": None, "seed": 0}
PROMPTS = ([5, 9, 11, 3], [7], list(range(3, 30)), [i % 48 for i in range(82)])  # the last fills the context


class Reference:
    """The definition (arXiv 2402.02057, section 3), recomputing everything from the tokens at every point."""

    def __init__(self, model: Any, **settings: Any) -> None:
        self.model, self.settings = model, {**SETTINGS, **settings}

    def next_tokens(self, *sequences: list[int]) -> list[int]:
        """The target's greedy token after each sequence; what fills up the shorter ones stands behind their ends."""
        longest = max(map(len, sequences))
        logits = self.model(torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences])).logits
        return [int(logits[i, len(tokens) - 1].argmax()) for i, tokens in enumerate(sequences)]

    def agreed(self, tokens: list[int], guess: list[int]) -> list[int]:
        """The longest beginning of the guess that the target would say itself."""
        said = self.next_tokens(*[[*tokens, *guess[:i]] for i in range(len(guess))])
        right = [a == b for a, b in zip(said, guess, strict=True)]
        return guess[: [*right, False].index(False)]

    def generate(self, prompt: list[int], new: int, context: int) -> tuple[list[int], list[Step]]:
        width, level, most, seed = (self.settings[key] for key in ("window", "level", "guesses", "seed"))
        longest = self.settings["max_accept"] or level - 1
        pool: dict[int, list[tuple[int, ...]]] = {}
        first_row = random.Random(seed).choices(prompt, k=width + level - 3)
        window: list[list[int]] = [[0, *first_row]]
        tokens = [*prompt, *self.next_tokens(prompt)]
        end, steps = min(len(prompt) + new, context), []
        while len(tokens) < end:
            pending, room = tokens[-1], context - len(tokens)
            window[0][0] = pending
            # Verification branch.
            guesses = [list(ngram[1 : 1 + min(longest, room)]) for ngram in pool.get(pending, [])]
            best: list[int] = max((self.agreed(tokens, guess) for guess in guesses), key=len, default=[])
            # Lookahead branch: every column continues the first row by its own guesses.
            columns = range(len(window[0]))
            if len(window) - 1 + len(columns) - 1 <= room:
                said = self.next_tokens(
                    *[[*tokens, *window[0][1 : i + 1], *[row[i] for row in window[1:]]] for i in columns]
                )
                if len(window) < level - 1:
                    window = [row[1:] for row in [*window, said]]
                else:
                    for i in columns:
                        ngram = (*[row[i] for row in window], said[i])
                        known = pool.setdefault(ngram[0], [])
                        pool[ngram[0]] = [*[other for other in known if other != ngram], ngram][-most:]
                    window = [*[list(row) for row in window[1:]], said]
            emitted = [*best, *self.next_tokens([*tokens, *best])][: end - len(tokens)]
            steps.append(Step(drafted=sum(map(len, guesses)), emitted=len(emitted)))
            tokens += emitted
        return tokens[len(prompt) :], steps


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """A model that looks back little, so that guesses made in another context are right at times."""
    model = reference_model("llama_gqa", seed=1, **SIZES)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(0.3)
    return model, packed(load_model(write_checkpoint(tmp_path_factory.mktemp("lookahead"), model)))


def lookahead(engine: Llama, **changes: Any) -> Lookahead:
    return Lookahead(engine, **{**SETTINGS, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_accept": 3},
        {"guesses": 1},
        {"level": 2},
        {"level": 3, "window": 4, "guesses": 2},
        {"window": 1},
        {"window": 1, "level": 2, "guesses": 3},
        {"window": 2, "level": 7, "seed": 3},
    ],
    ids=str,
)
def test_steps_equal_the_reference(pair, changes: dict[str, Any]) -> None:
    model, engine = pair
    decoder, reference = Decoder(engine, lookahead(engine, **changes)), Reference(model, **changes)
    for prompt in PROMPTS if not changes else PROMPTS[2:]:
        result = decoder.generate(torch.tensor(prompt), 30)
        tokens, steps = reference.generate(prompt, 30, 96)
        assert len(result.tokens) == len(tokens) and list(result.tokens) == tokens
        assert list(result.steps) == steps


def test_guesses_are_right_sometimes_and_wrong_sometimes(pair) -> None:
    _, engine = pair

    def emitted(**changes: Any) -> list[int]:
        decoder = Decoder(engine, lookahead(engine, **changes))
        return [step.emitted for prompt in PROMPTS for step in decoder.generate(torch.tensor(prompt), 60).steps]

    plain = set(emitted())
    assert len(plain) >= 4 and max(plain) == 5, "the reference test would prove little"
    assert max(emitted(max_accept=3)) == 4, "the authors' code stops at 4 tokens a step"


@pytest.mark.parametrize(("rows", "columns", "candidates"), [(1, 4, 0), (3, 4, 6), (4, 7, 28), (2, 1, 3)])
def test_every_window_token_sees_one_sequence(rows: int, columns: int, candidates: int) -> None:
    """What a token sees are positions 0, 1, ... up to its own, one each: row 0 first, then its column."""
    offsets, mask = window_layout(rows, columns, candidates, torch.device("cpu"))
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    assert mask.shape == (len(cells) - 1, candidates + len(cells))
    assert not mask[:, 1 : 1 + candidates].any()
    window = torch.cat((mask[:, :1], mask[:, 1 + candidates :]), 1)
    for index, (row, column) in enumerate(cells[1:]):
        seen = [cells[i] for i in window[index].nonzero().flatten().tolist()]
        assert set(seen) == {(0, i) for i in range(column + 1)} | {(j, column) for j in range(row + 1)}
        assert sorted(i + j for i, j in seen) == list(range(row + column + 1))
        assert offsets[index] == row + column


def test_the_pool_keeps_the_most_recent_of_every_first_token() -> None:
    pool = Pool(2)
    for ngram in [(1, 2), (1, 3), (5, 6), (1, 2), (1, 4)]:
        pool.add(ngram)
    assert pool.starting_with(1) == [(1, 2), (1, 4)]
    assert pool.starting_with(5) == [(5, 6)]
    assert pool.starting_with(9) == []


def test_a_step_is_one_target_pass_with_both_branches(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = pair
    method = lookahead(engine)
    decoder = Decoder(engine, method)
    passes: list[int] = []
    through = engine.through
    monkeypatch.setattr(engine, "through", lambda u, rows, *a: (passes.append(len(rows[0])), through(u, rows, *a))[1])
    result = decoder.generate(torch.tensor(PROMPTS[2]), 40)
    rows = passes[1:]  # behind prefill
    assert len(rows) == len(result.steps)
    assert rows[:4] == [10, 2 * 9, 3 * 8, 4 * 7], "rows are filled one per step, each for a column"
    assert rows[4:] == [28 + step.drafted for step in result.steps[4:]]
    assert max(rows) <= method.max_rows


def test_masks_are_laid_out_once_per_shape(pair) -> None:
    _, engine = pair
    decoder = Decoder(engine, lookahead(engine))
    decoder.generate(torch.tensor(PROMPTS[2]), 60)
    before = window_layout.cache_info().misses, parallel_chains.cache_info().misses
    decoder.generate(torch.tensor(PROMPTS[2]), 60)
    assert (window_layout.cache_info().misses, parallel_chains.cache_info().misses) == before


def test_tokens_stop_at_eos_anywhere_in_a_block(pair) -> None:
    _, engine = pair
    prompt = torch.tensor(PROMPTS[2])
    for eos in sorted(set(Decoder(engine, Vanilla(engine)).generate(prompt, 50).tokens)):
        ending = Llama(replace(engine.config, eos_token_ids=(eos,)), engine.weights)
        plain = Decoder(ending, Vanilla(ending)).generate(prompt, 50)
        result = Decoder(ending, lookahead(ending)).generate(prompt, 50)
        assert (result.tokens, result.stop) == (plain.tokens, plain.stop)
        assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens)


def test_every_length_of_output_is_cut_alike(pair) -> None:
    _, engine = pair
    prompt = torch.tensor(PROMPTS[2])
    decoder, plain = Decoder(engine, lookahead(engine)), Decoder(engine, Vanilla(engine)).generate(prompt, 40)
    for new in range(1, 41):
        result = decoder.generate(prompt, new)
        assert result.tokens == plain.tokens[:new]
        assert sum(step.emitted for step in result.steps) + 1 == new


def test_nearly_full_contexts(pair) -> None:
    _, engine = pair
    prompt = torch.tensor(PROMPTS[2])
    for context in range(28, 60):
        plain = Decoder(engine, Vanilla(engine), context=context).generate(prompt, 100)
        result = Decoder(engine, lookahead(engine), context=context).generate(prompt, 100)
        assert (result.tokens, result.stop) == (plain.tokens, plain.stop)


def test_random_models() -> None:
    for seed in range(2):
        engine = tiny_llama(seed, vocab_size=40, std=0.1, eos_token_ids=())
        prompt = torch.arange(4, 12 + seed)
        result = Decoder(engine, lookahead(engine, seed=seed)).generate(prompt, 60)
        assert result.tokens == Decoder(engine, Vanilla(engine)).generate(prompt, 60).tokens


def test_every_sequence_starts_afresh(pair) -> None:
    _, engine = pair
    shared = Decoder(engine, lookahead(engine))
    for prompt in PROMPTS:
        fresh = Decoder(engine, lookahead(engine))
        assert shared.generate(torch.tensor(prompt), 40) == fresh.generate(torch.tensor(prompt), 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, r"method\.window=0: must be at least 1"),
        ({"level": 1}, r"method\.level=1: must be at least 2"),
        ({"guesses": 0}, r"method\.guesses=0: must be at least 1"),
        ({"max_accept": 0}, r"method\.max_accept=0: must be between 1 and method\.level - 1 = 4"),
        ({"max_accept": 5}, r"method\.max_accept=5: must be between 1 and method\.level - 1 = 4"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lookahead(tiny_llama(), **changes)
