"""REST against its definition: brute-force search through the documents, and a prefix tree in plain Python."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.train.rest import join, write
from methods.datastore import FILE_NAME, SEPARATOR, Datastore
from methods.decoder import Decoder, Step
from methods.engine.llama import Llama
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError
from methods.rest import Rest
from methods.vanilla import Vanilla
from tests.tiny import tiny_llama

LIMITS = {"max_span": 16, "min_span": 2, "continuation": 10, "occurrences": 5000, "nodes": 64}
PROMPTS = ([5, 9, 11, 3], [7], list(range(3, 40)), [i % 30 + 3 for i in range(90)])


def tokenizer_folder(folder: Path, size: int = 48, first: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {first: 0} | {f"piece {i}": i for i in range(1, size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab}}))
    return folder


def write_datastore(folder: Path, documents: list[list[int]], tokenizer: Path) -> Path:
    tokens = join([np.array(d, dtype=np.int32) for d in documents])
    write(folder / FILE_NAME, tokens, Vocabulary.read(tokenizer))
    return folder


def rest(model, datastore: Path, tokenizer: Path, **limits: Any) -> Rest:
    target = Llama(model.config, model.weights, tokenizer)
    return Rest(target, datastore=str(datastore), **{**LIMITS, **limits})


def random_draft(folder: Path) -> dict[str, Any]:
    """What test_lossless gives the method besides its configuration."""
    text = [[token % 48 for token in range(start, 400, step)] for start, step in ((3, 1), (5, 7), (9, 17))]
    return {"datastore": write_datastore(folder, text, tokenizer_folder(folder))}


class Reference:
    """The definition: every place looked at, nothing sorted beforehand but the places of one match."""

    def __init__(self, documents: list[list[int]], **limits: int) -> None:
        self.text = [token for document in documents if document for token in (*document, SEPARATOR)]
        self.limits = {**LIMITS, **limits}

    def nodes(self, context: list[int], room: int) -> list[tuple[int, ...]]:
        """Drafted nodes as paths from the pending token, the most frequent first."""
        text, limits = self.text, self.limits
        for span in range(min(limits["max_span"], len(context)), limits["min_span"] - 1, -1):
            places = [i for i in range(len(text)) if text[i : i + span] == context[-span:]]
            if places:
                break
        else:
            return []
        places.sort(key=lambda place: text[place:])
        if len(places) > limits["occurrences"]:
            places = [places[k * len(places) // limits["occurrences"]] for k in range(limits["occurrences"])]
        counts: Counter[tuple[int, ...]] = Counter()
        for place in places:
            path: tuple[int, ...] = ()
            for token in text[place + span :][: min(limits["continuation"], room)]:
                if token == SEPARATOR:
                    break
                path = (*path, token)
                counts[path] += 1
        return sorted(counts, key=lambda path: (-counts[path], len(path), path))[: limits["nodes"]]

    def steps(self, prompt: list[int], output: tuple[int, ...], context: int) -> list[Step]:
        """Steps that emit `output`, the target's own greedy tokens after the prompt."""
        steps, done = [], 1
        while done < len(output):
            tokens = [*prompt, *output[:done]]
            nodes = self.nodes(tokens, context - len(tokens))
            accepted = 0
            while done + accepted < len(output) and tuple(output[done : done + accepted + 1]) in nodes:
                accepted += 1
            emitted = min(accepted + 1, len(output) - done)
            steps.append(Step(drafted=len(nodes), emitted=emitted))
            done += emitted
        return steps


def documents_of(model, seed: int = 0) -> list[list[int]]:
    """Text the model would write itself, with noise: hits of every length, some right and some wrong."""
    random = np.random.default_rng(seed)
    plain, vocab = Decoder(model, Vanilla(model)), model.config.vocab_size
    documents: list[list[int]] = [[], [4]]
    for number in range(16):
        prompt = PROMPTS[number % 4] if number < 8 else random.integers(3, vocab, 6).tolist()
        text = np.array([*prompt, *plain.generate(torch.tensor(prompt), 70).tokens])
        noisy = random.random(len(text)) < random.choice([0.05, 0.2])
        documents.append(np.where(noisy, random.integers(3, vocab, len(text)), text).tolist())
    return [*documents, *random.integers(3, 9, (6, 40)).tolist()]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("rest")
    model = tiny_llama(seed=3, vocab_size=48, context=128, eos_token_ids=())  # so that contexts do fill up
    documents, tokenizer = documents_of(model), tokenizer_folder(folder / "tokenizer")
    return model, documents, write_datastore(folder / "store", documents, tokenizer), tokenizer


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"nodes": 5},
        {"nodes": 1},
        {"occurrences": 3},
        {"continuation": 1},
        {"max_span": 2},
        {"min_span": 1, "max_span": 1},
        {"min_span": 4, "max_span": 9, "nodes": 12},
    ],
)
def test_steps_equal_the_reference(stored, limits: dict[str, int]) -> None:
    model, documents, datastore, tokenizer = stored
    plain, decoder = Decoder(model, Vanilla(model)), Decoder(model, rest(model, datastore, tokenizer, **limits))
    reference = Reference(documents, **limits)
    for prompt in PROMPTS:
        output = plain.generate(torch.tensor(prompt), 60).tokens
        result = decoder.generate(torch.tensor(prompt), 60)
        assert len(result.tokens) == len(output) and result.tokens == output
        assert result.stop == ("context" if prompt is PROMPTS[-1] else "length")
        assert list(result.steps) == reference.steps(prompt, output, 128)


def test_the_stored_text_is_right_sometimes_and_wrong_sometimes(stored) -> None:
    model, _, datastore, tokenizer = stored

    def steps(**limits: int) -> list[Step]:
        decoder = Decoder(model, rest(model, datastore, tokenizer, **limits))
        return [step for prompt in PROMPTS for step in decoder.generate(torch.tensor(prompt), 60).steps]

    assert len({step.emitted for step in steps()}) >= 5, "the reference test would prove little"
    assert {step.drafted == 0 for step in steps(min_span=4)} == {True, False}


def test_lookup_equals_the_reference_on_dense_text(tmp_path: Path) -> None:
    """Three symbols: thousands of places, ties everywhere, documents that end within every continuation."""
    random = np.random.default_rng(1)
    documents = [random.integers(0, 3, random.integers(1, 30)).tolist() for _ in range(150)]
    tokenizer = tokenizer_folder(tmp_path)
    datastore = Datastore(write_datastore(tmp_path, documents, tokenizer))
    for limits in ({}, {"occurrences": 20}, {"nodes": 7, "continuation": 4}):
        reference = Reference(documents, **limits)
        rules = {name: reference.limits[name] for name in ("occurrences", "nodes")}
        for _ in range(12):
            context = random.integers(0, 3, random.integers(2, 20)).tolist()
            match = datastore.longest_match(context[-16:], range(2, 17))
            assert match is not None
            found = datastore.candidates(*match, depth=reference.limits["continuation"], **rules)
            paths: list[tuple[int, ...]] = []
            for token, parent in zip(found.tokens.tolist(), found.parents.tolist(), strict=True):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            assert paths == reference.nodes(context, 100)


def test_tokens_stop_at_eos_anywhere_in_a_block(stored) -> None:
    model, _, datastore, tokenizer = stored
    output = Decoder(model, Vanilla(model)).generate(torch.tensor(PROMPTS[0]), 40).tokens
    for eos in sorted(set(output)):
        ending = tiny_llama(seed=3, vocab_size=48, context=128, eos_token_ids=(eos,))
        plain = Decoder(ending, Vanilla(ending)).generate(torch.tensor(PROMPTS[0]), 40)
        result = Decoder(ending, rest(ending, datastore, tokenizer)).generate(torch.tensor(PROMPTS[0]), 40)
        assert (result.tokens, result.stop) == (plain.tokens, plain.stop)
        assert sum(step.emitted for step in result.steps) + 1 == len(result.tokens)


def test_nearly_full_contexts(stored) -> None:
    model, _, datastore, tokenizer = stored
    for context in range(60, 76):
        plain = Decoder(model, Vanilla(model), context=context).generate(torch.tensor(PROMPTS[2]), 100)
        result = Decoder(model, rest(model, datastore, tokenizer), context=context).generate(
            torch.tensor(PROMPTS[2]), 100
        )
        assert (result.tokens, result.stop) == (plain.tokens, plain.stop) and result.stop == "context"


def test_every_sequence_starts_afresh(stored) -> None:
    model, _, datastore, tokenizer = stored
    shared = Decoder(model, rest(model, datastore, tokenizer))
    shared.generate(torch.tensor(PROMPTS[2]), 40)
    fresh = Decoder(model, rest(model, datastore, tokenizer))
    assert shared.generate(torch.tensor(PROMPTS[0]), 40) == fresh.generate(torch.tensor(PROMPTS[0]), 40)


def test_what_is_recorded(stored) -> None:
    model, _, datastore, tokenizer = stored
    method = rest(model, datastore, tokenizer)
    assert (method.extra_parameters, method.max_rows, method.taps) == (0, 65, ())
    assert method.datastore_bytes == (datastore / FILE_NAME).stat().st_size


def test_another_tokenizer_is_refused_and_both_are_named(stored, tmp_path: Path) -> None:
    model, _, datastore, tokenizer = stored
    for other in (tokenizer_folder(tmp_path / "a", first="b"), tokenizer_folder(tmp_path / "b", size=47)):
        own, others = Vocabulary.read(tokenizer), Vocabulary.read(other)
        with pytest.raises(UserError, match="made with another tokenizer") as error:
            rest(model, datastore, other)
        assert str(own) in str(error.value) and str(others) in str(error.value) and own.size == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datastore": "/nowhere/rest"}, "method.datastore=/nowhere/rest: no such file; build one: python -m bench"),
        ({"min_span": 0}, "method.min_span=0: must be at least 1"),
        ({"nodes": 0}, "method.nodes=0: must be at least 1"),
        ({"continuation": 0}, "method.continuation=0: must be at least 1"),
        ({"occurrences": 0}, "method.occurrences=0: must be at least 1"),
        ({"max_span": 1}, "method.max_span=1: must be at least method.min_span=2"),
    ],
)
def test_values_out_of_range_are_refused(stored, changes: dict[str, Any], message: str) -> None:
    model, _, datastore, tokenizer = stored
    with pytest.raises(UserError, match=message):
        rest(model, changes.pop("datastore", datastore), tokenizer, **changes)


def test_tokens_the_model_has_no_row_for_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    datastore = write_datastore(tmp_path, [[3, 4, 47]], tokenizer)
    for rows in (40, 47):
        with pytest.raises(UserError, match=f"holds token 47, the model's embedding has {rows} rows"):
            rest(tiny_llama(vocab_size=rows), datastore, tokenizer)
    rest(tiny_llama(vocab_size=48), datastore, tokenizer)
