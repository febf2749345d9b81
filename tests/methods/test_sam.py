"""SAM-Decoding against its definition: every suffix looked for at every place of the text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.binder import bind
from bench.config import installed
from methods.datastore import Datastore
from methods.decoder import Decoder
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.kangaroo import Kangaroo
from methods.recycling import Recycling
from methods.sam import Sam
from methods.vanilla import Vanilla
from tests import joey
from tests.methods.test_pld import generated, steps_of
from tests.methods.test_recycling import Reference, Watched, paths_of
from tests.methods.test_rest import tokenizer_folder, write_datastore
from tests.tiny import adapter_checkpoint, tiny_llama

SETTINGS: dict[str, Any] = {"predict": 40, "threshold": 5, "bias": 5, "static": None, "fallback": None}
PROMPTS = ([5, 6, 7], [9], [3, 4, 5, 6] * 8, [i % 11 + 3 for i in range(60)])


def searched(tokens: list[int], *, predict: int, threshold: int | None) -> list[int] | None:
    """The draft after `tokens`, by looking at every place. None: the fallback's turn; threshold None: no fallback."""
    text = tokens[:-1]  # the pending token is looked up, and no part of the text

    def ends(length: int) -> list[int]:
        return [end for end in range(length, len(text) + 1) if text[end - length : end] == tokens[-length:]]

    length = next((size for size in range(len(text), 0, -1) if ends(size)), 0)
    if threshold is None:
        rows = min(predict, 1 + 4 * length)
        return text[ends(length)[0] :][: rows - 1] if length else []
    if length < threshold:
        return None
    while len(text) - ends(length)[0] < predict:
        shorter = [size for size in range(length - 1, 0, -1) if len(ends(size)) > len(ends(length))]
        if not shorter:
            break
        length = shorter[0]
    return text[ends(length)[0] :][: predict - 1]


@pytest.mark.parametrize(("predict", "threshold"), [(40, None), (6, None), (40, 1), (8, 3)])
def test_it_drafts_what_a_search_finds(predict: int, threshold: int | None) -> None:
    model, numbers = tiny_llama(), random.Random(0)
    fallback = None if threshold is None else Vanilla(model)
    method = Sam(model, **{**SETTINGS, "predict": predict, "threshold": threshold or 1, "fallback": fallback})
    for most in (1, 2, 4, 9):
        tokens = [numbers.randrange(most) for _ in range(numbers.randrange(1, 30))]
        drafter = method.start(tokens[:], None)  # type: ignore[arg-type]
        for _ in range(12):
            tokens += [numbers.randrange(most) for _ in range(numbers.randrange(1, 12))]
            wanted = searched(tokens, predict=predict, threshold=threshold)
            assert drafter.propose(tokens, 100).tokens.tolist() == (wanted or []), tokens


def check_steps(model: Llama, prompt: list[int], context: int, threshold: int | None) -> None:
    """Every step of a sequence against the search, and its tokens against vanilla's."""
    output = generated(model, Vanilla(model), prompt, context).tokens
    found = generated(model, lookups(model, threshold), prompt, context)
    assert found.tokens == output

    def draft(tokens: list[int]) -> list[int]:
        return searched(tokens, predict=12, threshold=threshold) or []

    assert list(found.steps) == steps_of(draft, prompt, output, context)


def lookups(model: Llama, threshold: int | None) -> Sam:
    fallback = None if threshold is None else Vanilla(model)
    return Sam(model, **{**SETTINGS, "predict": 12, "threshold": threshold or 1, "fallback": fallback})


@pytest.mark.parametrize("eos", [(), (3, 17, 30)])
@pytest.mark.parametrize("threshold", [None, 3])
def test_every_step_is_the_definitions(threshold: int | None, eos: tuple[int, ...]) -> None:
    model = tiny_llama(seed=3, vocab_size=40, std=0.5, eos_token_ids=eos, context=128)
    for prompt in PROMPTS:
        check_steps(model, prompt, 128, threshold)


@pytest.mark.parametrize("threshold", [None, 1])
def test_every_step_is_the_definitions_on_joey(threshold: int | None) -> None:
    for model, context in joey.endings(lambda model: lookups(model, threshold)):
        check_steps(model, joey.prompt(), context, threshold)


def looping() -> Llama:
    """A model that says some things again, so that lookups and other drafts take turns."""
    return tiny_llama(seed=3, vocab_size=40, std=0.5, num_layers=2, eos_token_ids=(), context=100)


def test_recycling_learns_from_lookups_too() -> None:
    model, prompt = looping(), [i % 11 + 3 for i in range(30)]
    inner = Recycling(model, memory="sequence", prompt=False)
    method = Watched(Sam(model, **{**SETTINGS, "predict": 12, "threshold": 2, "fallback": inner}))
    Decoder(model, method).generate(torch.tensor(prompt), 60)
    reference, kinds = Reference(model, prompt, whole=False), []
    for tokens, draft in method.seen:
        chain = searched(tokens, predict=12, threshold=2)
        kinds.append(chain is None)
        wanted = reference.draft(tokens, 100 - len(tokens))
        if chain is not None:
            wanted = {(0,) * size: chain[:size] for size in range(min(len(chain), 100 - len(tokens)) + 1)}
        assert sorted(paths_of(draft)) == sorted(path for path in wanted.values() if path)
        reference.learn(tokens, wanted)
    assert {True, False} == set(kinds)


@pytest.mark.parametrize("name", ["kangaroo", "lookups"])
def test_a_fallback_drafts_as_if_it_had_begun_there(name: str, tmp_path: Path) -> None:
    """Whatever was verified between: its caches and states are those of the sequence so far."""
    model, prompt = looping(), [i % 11 + 3 for i in range(30)]
    adapter = adapter_checkpoint(tmp_path, hidden=model.config.hidden_size)
    inner: Any = Sam(model, **{**SETTINGS, "predict": 5})
    if name == "kangaroo":
        inner = Kangaroo(model, exit_layer=1, gamma=4, eta=0.05, variant="kangaroo", checkpoint=adapter)
    watched = Watched(inner)
    decoder = Decoder(model, Sam(model, **{**SETTINGS, "predict": 12, "threshold": 2, "fallback": watched}))
    steps = decoder.generate(torch.tensor(prompt), 60).steps
    assert 5 < len(watched.seen) < len(steps)
    for tokens, draft in watched.seen:
        anew = Watched(inner)
        Decoder(model, anew).begin(torch.tensor(tokens[:-1]), 60).step()
        assert anew.seen[0][1].tokens.tolist() == draft.tokens.tolist()


def test_the_longer_match_of_sequence_and_datastore_is_drafted(tmp_path: Path) -> None:
    tiny = tiny_llama(vocab_size=48)
    model = Llama(tiny.config, tiny.weights, tokenizer_folder(tmp_path))
    static = write_datastore(tmp_path, [[10, 11, 12, 13, 14, 15, 16, 17, 18], [12, 13, 30, 31]], tmp_path)
    settings = {**SETTINGS, "static": static, "bias": 2, "predict": 6}

    def drafted(tokens: list[int], **others: Any) -> list[int]:
        drafter = Sam(model, **{**settings, **others}).start(tokens[:-1], None)  # type: ignore[arg-type]
        return drafter.propose(tokens, 50).tokens.tolist()

    assert drafted([3, 10, 11, 12, 13]) == [14, 15, 16, 17, 18]
    assert drafted([3, 10, 11, 12, 13], predict=3) == [14, 15]
    assert drafted([13, 40, 41, 42, 3, 10, 11, 12, 13]) == [14, 15, 16, 17, 18]
    assert drafted([12, 13, 40, 41, 42, 3, 11, 12, 13]) == [40, 41, 42, 3, 11]  # 2 here, and 3 - 2 there
    assert drafted([3, 12, 13], bias=0)[:2] == [14, 30]  # a tree: both continuations
    assert drafted([13, 14, 15, 40, 3, 11, 12, 13, 14, 15], bias=1, predict=3) == [16, 17]  # 3 here, and 5 - 1 there
    drafter, text = Sam(model, **settings).start([3], None), [3, 10, 11, 12, 13, 14, 40, 12, 13, 30, 10, 11, 12]  # type: ignore[arg-type]
    for size in (2, 3, 6, 6, 7, 8, 10, 13):
        assert drafter.propose(text[:size], 50).tokens.tolist() == drafted(text[:size]), "from step to step as anew"
    assert drafted([3, 10, 11, 12, 13], bias=4) == []
    assert drafted([3, 10, 11, 12, 13], bias=1, threshold=4, fallback=Vanilla(model)) == []
    assert drafted([3, 10, 11, 12, 13], bias=1, threshold=3, fallback=Vanilla(model)) == [14, 15, 16, 17, 18]
    assert drafted([3, 16, 17, 18], bias=0) == [], "the match ends its document"
    assert Sam(model, **settings).datastore_bytes == Datastore(static).size_bytes
    with pytest.raises(UserError, match=f"method.static={tmp_path}: the target has no folder"):
        Sam(tiny, **settings)


def test_its_fallback_is_a_section_of_its_own(tmp_path: Path) -> None:
    def bound(*overrides: str) -> Any:
        return bind(installed().compose("config", ["method=sam", "model=joey", *overrides]).values["method"], "method")

    model = tiny_llama(vocab_size=48)
    assert bound().make(target=model).fallback is None
    made = bound("method.fallback=recycling", "method.fallback.memory=run").make(target=model)
    assert isinstance(made.fallback, Recycling) and made.carries_over == "method.fallback.memory=run"
    assert made.max_rows == 81
    fetched = bound("method.fallback=medusa").fetch()  # with the heads that conf/draft has for joey
    assert [key for key, _ in fetched.files()] == ["method.fallback.checkpoint"]
    for override, message in {
        "method.fallback=recyclin": "method.fallback=recyclin: unknown; did you mean recycling?",
        "method.fallback.promt=true": "method.fallback.promt: unknown override",
        "method.fallback.prompt=7": "method.fallback.prompt=7: must be true or false",
    }.items():
        chosen = [] if override.startswith("method.fallback=") else ["method.fallback=recycling"]
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            bound(*chosen, override)
    with pytest.raises(UserError, match=r"^method\.fallback\.length=0: must be at least 1$"):
        bound("method.fallback=pld", "method.fallback.length=0").make(target=model)
    with pytest.raises(UserError, match=r"^method\.fallback=pld: must be a method that drafts, by name"):
        Sam(model, **{**SETTINGS, "fallback": "pld"})
    with pytest.raises(UserError, match=r"^method\.fallback=object: must be a method that drafts, by name"):
        Sam(model, **{**SETTINGS, "fallback": object()})


@pytest.mark.parametrize(("key", "least"), [("predict", 2), ("threshold", 1), ("bias", 0)])
def test_a_size_out_of_range_is_refused(key: str, least: int) -> None:
    with pytest.raises(UserError, match=f"method.{key}={least - 1}: must be at least {least}"):
        Sam(tiny_llama(), **{**SETTINGS, key: least - 1})
