"""The engine of fixed shapes against the eager one: the same tokens and steps, whatever drafts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.binder import bind
from bench.config import installed
from bench.places import BENCH
from bench.settings import Run
from methods.decoder import Decoder, Generation
from methods.engine.checkpoint import load_model
from methods.engine.fixed import ROWS, FixedLlama, SlotCache, row_bucket, slot_buckets
from methods.engine.graphs import Graphs
from methods.engine.llama import Llama
from methods.errors import NonFiniteLogits
from methods.hydra import Hydra
from methods.proof import check_lossless, check_side_by_side
from methods.vanilla import Vanilla
from tests.joey import for_joey
from tests.methods.test_hydra import plain_heads
from tests.methods.test_lossless import METHODS, maker
from tests.methods.test_rest import tokenizer_folder
from tests.tiny import packed, tiny_llama

JOEY = BENCH / "assets" / "joey"
PROMPT = (3, 20, 3, 20, 3, 20, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    tiny = tiny_llama(vocab_size=48, eos_token_ids=(), context=384)
    return packed(Llama(tiny.config, tiny.weights, tokenizer_folder(tmp_path_factory.mktemp("model"))))


def generated(
    model: Llama, make: Any, prompt: Any, new: int, temperature: float = 0.0, context: int | None = None
) -> Generation:
    """A sequence on an engine that was prepared by another one, of which it has no shape; it captures nothing."""
    decoder = Decoder(model, make(model), temperature=temperature, context=context)
    with model.preparing():
        decoder.generate(torch.tensor(prompt[:3]), 9)
    captured = len(model.fixed.graphs) if isinstance(model, FixedLlama) else 0
    found = decoder.generate(torch.tensor(prompt), new)
    if isinstance(model, FixedLlama):
        assert not model.unprepared and len(model.fixed.graphs) == captured > 1
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_decodes_as_on_the_eager_engine(
    name: str, temperature: float, model: Llama, tmp_path: Path
) -> None:
    make, fixed = maker(name, tmp_path), FixedLlama.of(model)
    wanted = generated(model, make, PROMPT, 40, temperature)
    assert generated(fixed, make, PROMPT, 40, temperature) == wanted


REPLAYS: dict[str, Callable[[Any, int], int]] = {  # of a step, besides the target's, by the method and what it drafted
    "vanilla": lambda method, drafted: 0,
    "kangaroo": lambda method, drafted: drafted + 1,  # a drafted token each, and the first layers for the last one
    "layerskip": lambda method, drafted: drafted + 1,
    "sps": lambda method, drafted: drafted,
    "eagle": lambda method, drafted: len(method.levels),
    "eagle2": lambda method, drafted: method.depth + 1,
    "eagle3": lambda method, drafted: method.depth + 1,
    "hydra": lambda method, drafted: 1,
}


@pytest.fixture(scope="module")
def joey() -> Llama:
    return packed(load_model(JOEY, dtype="float32"))


@pytest.mark.parametrize("name", [name for name in for_joey() if not name.startswith("hf_")])
def test_joeys_drafts_are_the_eager_engines(name: str, joey: Llama, datastores: Path) -> None:
    run = Run.of(installed().compose("config", [f"method={name}", "model=joey"]))
    fetched = bind(run.method, "method").fetch(model=run.model, cache=datastores)
    prompt = Tokenizer.from_file(str(JOEY / "tokenizer.json")).encode("Dear Walter: Greetings from Corrin, where").ids
    # One bucket of slots: from one to the next go the drafts of a test below.
    wanted, found = (
        generated(engine, lambda target: fetched.make(target=target), prompt, 48, context=256)
        for engine in (joey, FixedLlama.of(joey))
    )
    assert found == wanted
    if name in {*REPLAYS, "kangaroo_tree"} - {"vanilla"}:  # what looks up finds little behind one prompt
        assert max(step.emitted for step in wanted.steps) > 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", REPLAYS)
def test_a_draft_step_is_one_replay(
    name: str, temperature: float, model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, replays = FixedLlama.of(model), list[Any]()
    decoder, do = Decoder(fixed, maker(name, tmp_path)(fixed), temperature=temperature), fixed.fixed.graphs.do
    with fixed.preparing():
        decoder.generate(torch.tensor(PROMPT), 9)
    monkeypatch.setattr(fixed.fixed.graphs, "do", lambda key, work: (replays.append(key), do(key, work))[1])
    sequence = decoder.begin(torch.tensor(PROMPT), 20)
    sequence.step()
    for _ in range(4):
        replays.clear()
        sequence.step()
        assert len(replays) == 1 + REPLAYS[name](decoder.method, sequence.steps[-1].drafted)
    assert not fixed.unprepared


@pytest.mark.parametrize("name", METHODS)
def test_sequences_side_by_side_have_storage_of_their_own(name: str, model: Llama, tmp_path: Path) -> None:
    fixed = FixedLlama.of(model)
    with fixed.preparing():
        check_side_by_side(maker(name, tmp_path), fixed, [PROMPT, (5, 6, 7)])


@pytest.mark.parametrize("name", ["kangaroo", "recycling"])
def test_what_is_proven_of_the_eager_engine_holds(name: str, model: Llama, tmp_path: Path) -> None:
    check_lossless(maker(name, tmp_path), FixedLlama.of(model), [PROMPT])


@pytest.mark.parametrize("name", [*REPLAYS, "kangaroo_tree", "lookahead"])
def test_a_sequence_goes_from_one_bucket_of_slots_to_the_next_and_fills_the_last(
    name: str, model: Llama, tmp_path: Path
) -> None:
    make, fixed = maker(name, tmp_path), FixedLlama.of(model)
    for length, new, stop in ((250, 12, "length"), (253, 12, "length"), (372, 400, "context")):
        prompt = [3 + token % 17 for token in range(length)]
        wanted = generated(model, make, prompt, new)
        assert wanted.stop == stop and generated(fixed, make, prompt, new) == wanted


def test_buckets() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 8, 9, 65, 128)] == [1, 2, 4, 8, 16, 128, 128]
    assert slot_buckets(64) == [64] and slot_buckets(256) == [256] and slot_buckets(320) == [256, 320]
    assert slot_buckets(2112) == [256, 512, 1024, 2048, 2112]


def test_a_pass_with_any_mask_is_the_eager_ones(model: Llama) -> None:
    """Rows that see a part of the past and of each other; then rows behind those, in several numbers."""
    generator, engines = torch.Generator().manual_seed(0), (model, FixedLlama.of(model))
    caches = [engine.new_cache(200) for engine in engines]
    with torch.inference_mode():
        for past, rows in ((0, 20), (20, 1), (21, 5), (26, 16), (42, 3), (45, 129)):
            hidden = torch.randn(rows, 64, generator=generator)
            positions = torch.randint(past, past + rows, (rows,), generator=generator)
            mask = torch.rand(rows, past + rows, generator=generator) < 0.6
            mask[:, 0] = True
            for layers in (slice(0, 1), slice(1, None)):
                wanted, found = (
                    engine.run(hidden, positions, cache, layers, mask)
                    for engine, cache in zip(engines, caches, strict=True)
                )
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
                hidden = wanted
    assert caches[0].lengths == caches[1].lengths == [174] * 4
    with pytest.raises(IndexError, match="the cache holds 200 slots, 201 are needed"), torch.inference_mode():
        engines[1].run(torch.zeros(27, 64), torch.arange(27), caches[1], slice(0, 1))


def test_numbers_of_one_sequence_do_not_reach_the_next(model: Llama) -> None:
    """A slot that is masked, and not a number, would make a row's sum no number."""
    broken = FixedLlama.of(tiny_llama(vocab_size=48, eos_token_ids=()))
    broken.weights.embedding[7] = torch.nan
    decoder = Decoder(broken, Vanilla(broken))
    wanted = decoder.generate(torch.tensor(PROMPT), 20)
    with pytest.raises(NonFiniteLogits):
        decoder.generate(torch.tensor([5, 7, 9] * 5), 20)
    assert decoder.generate(torch.tensor(PROMPT), 20) == wanted


def test_storage_is_the_next_caches_when_nobody_has_it(model: Llama) -> None:
    fixed = FixedLlama.of(model)
    first, second = fixed.new_cache(100), fixed.new_cache(100)
    assert first.storage is not second.storage and isinstance(first, SlotCache)
    storage = first.storage.fill_(3)
    del first
    gc.collect()
    assert fixed.new_cache(90).storage is not second.storage
    assert fixed.new_cache(100).storage is storage and not storage.any()


def test_what_a_capture_reads_must_stay_where_it_is() -> None:
    """On a device without graphs the work that was handed over first is done again, as a graph would do it."""
    graphs, held = Graphs(torch.device("cpu")), torch.ones(2)

    def work(tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor * 2,)

    assert graphs.do("pass", lambda: work(held))[0].tolist() == [2, 2] and graphs.missed == 0
    with graphs.recording():
        (results,) = graphs.do("pass", lambda: work(held))
    held.fill_(5)
    assert graphs.do("pass", lambda: work(torch.zeros(2)))[0] is results and results.tolist() == [10, 10]
    assert graphs.do("another", lambda: work(held)) and (len(graphs), graphs.missed) == (1, 1)


@pytest.mark.parametrize("name", ["vanilla", "kangaroo", "eagle2"])
def test_a_device_that_refuses_to_capture_is_done_without(
    name: str, model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr("methods.engine.graphs.Repeated", refuse)
    make, fixed = maker(name, tmp_path), FixedLlama.of(model)
    with fixed.preparing():
        Decoder(fixed, make(fixed)).generate(torch.tensor([5, 6, 7]), 3)
    assert not fixed.unprepared, "passes of the warm-up are in no figure"
    wanted = Decoder(model, make(model)).generate(torch.tensor([5, 6, 7]), 20)
    assert Decoder(fixed, make(fixed)).generate(torch.tensor([5, 6, 7]), 20) == wanted
    assert fixed.unprepared.endswith("were not captured: operation not permitted when stream is capturing")


def test_a_warm_up_makes_every_shape_ready(model: Llama) -> None:
    fixed = FixedLlama.of(model)
    cache = fixed.new_cache(300, rows=5)
    with torch.inference_mode():
        fixed.run(torch.zeros(3, 64), torch.arange(3), cache, slice(0, 2))
        with fixed.preparing():
            fixed.run(torch.zeros(1, 64), torch.arange(1), cache, slice(0, 2))
        before = cache.storage.clone()
        for rows in (1, 5, 8):
            cache.truncate(200)
            fixed.run(torch.zeros(rows, 64), torch.arange(rows), cache, slice(0, 2))
        assert not fixed.unprepared and len(fixed.fixed.graphs) == 4 * 2
        cache.truncate(3)
        fixed.run(torch.zeros(9, 64), torch.arange(9), cache, slice(0, 2))
    assert fixed.unprepared.startswith("1 target or draft passes were not captured, with a shape") and ROWS[4] == 16
    assert torch.equal(before[:, :, :, :3], cache.storage[:, :, :, :3])


def test_a_pass_of_more_rows_than_any_shape_is_counted(model: Llama) -> None:
    fixed = FixedLlama.of(model)
    cache = fixed.new_cache(300, rows=200)
    with torch.inference_mode():
        with fixed.preparing():
            for rows in (3, 129):
                fixed.run(torch.zeros(rows, 64), torch.arange(rows), cache, slice(0, 2))
        cache.reset()
        fixed.run(torch.zeros(130, 64), torch.arange(130), cache, slice(0, 2))
        assert fixed.uncaptured_passes == 0, "a prompt is the eager engine's"
        fixed.run(torch.zeros(129, 64), torch.arange(129), cache, slice(0, 2))
    assert fixed.uncaptured_passes == 1 and "more than 128 rows" in fixed.unprepared


def test_heads_without_a_layer_of_their_own_are_one_replay_too(
    model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain_heads(tmp_path, model.config)
    wanted = generated(model, lambda target: Hydra(target, checkpoint=folder, tree="chain"), PROMPT, 40)
    fixed, keys = FixedLlama.of(model), list[Any]()
    do = fixed.fixed.graphs.do
    monkeypatch.setattr(fixed.fixed.graphs, "do", lambda key, work: (keys.append(key), do(key, work))[1])
    assert generated(fixed, lambda target: Hydra(target, checkpoint=folder, tree="chain"), PROMPT, 40) == wanted
    keys = keys[-2 * len(wanted.steps) :]
    assert len({key[0] for key in keys}) == 2 and keys[0][0] == keys[2][0] != keys[1][0] == keys[3][0]


def test_a_cache_fills_to_its_last_slot() -> None:
    fixed = FixedLlama.of(tiny_llama())
    cache = fixed.new_cache(64)
    with torch.inference_mode():
        for past, rows in ((0, 63), (63, 1)):
            fixed.run(torch.zeros(rows, 64), torch.arange(past, past + rows), cache, slice(0, None))
    assert {*cache.lengths} == {64}
