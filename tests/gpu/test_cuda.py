"""On a CUDA device: the same tokens as on the CPU, phases by events, and no hidden synchronisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from bench.gauge import Gauge
from bench.measure import timed_generation
from methods.decoder import Decoder
from methods.eagle import Eagle
from methods.eagle2 import Eagle2
from methods.eagle3 import Eagle3
from methods.engine.attention import kernels
from methods.engine.fixed import FixedLlama
from methods.engine.llama import Llama
from methods.hydra import Hydra
from methods.kangaroo import Kangaroo
from methods.kangaroo_tree import KangarooTree
from methods.lookahead import Lookahead
from methods.medusa import Medusa
from methods.vanilla import Vanilla
from tests.methods.eagle3_reference import draft_config3, random_eagle3, with_vocabulary
from tests.methods.eagle_reference import draft_config, random_eagle, write_draft
from tests.methods.test_hydra import config_of, tensors_of
from tests.methods.test_hydra import write as write_hydra
from tests.methods.test_medusa import random_heads, write_heads
from tests.methods.test_rest import rest, tokenizer_folder, write_datastore
from tests.second_device import moved
from tests.tiny import adapter_checkpoint, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def exact_float32() -> None:
    """TF32 would round products to 10 bits and make near ties of clear choices."""
    torch.backends.cuda.matmul.allow_tf32 = False


def on_cuda(model: Llama) -> Llama:
    return moved(model, torch.device("cuda"))


def kangaroo(model: Llama, folder: Path, *, width: int | None = None) -> Kangaroo:
    """width: of the tree; None: the chain."""
    adapter_checkpoint(folder, hidden=model.config.hidden_size)
    settings = {"exit_layer": 1, "gamma": 4, "eta": 0.02, "checkpoint": folder, "variant": "kangaroo"}
    return Kangaroo(model, **settings) if width is None else KangarooTree(model, **settings, width=width, nodes=12)


@pytest.mark.parametrize("engine", [Llama, FixedLlama])
def test_tokens_are_the_cpus(engine: type[Llama], tmp_path: Path) -> None:
    cpu, prompt = tiny_llama(), torch.tensor([5, 6, 7])
    there = on_cuda(cpu)
    gpu = engine(there.config, there.weights)
    expected = Decoder(cpu, Vanilla(cpu)).generate(prompt, 40).tokens
    heads = random_heads(2, gpu.config.hidden_size, gpu.config.vocab_size)
    folder = write_heads(tmp_path / "heads", heads, claimed=2)
    tree = [[0], [1], [0, 0], [0, 1], [1, 0]]
    known, tokenizer = [*prompt.tolist(), *expected], tokenizer_folder(tmp_path / "tokenizer", size=128)
    datastore = write_datastore(tmp_path / "store", [known, [*known[:20], 4, *known[21:]]], tokenizer)  # a branch
    eagle = write_draft(tmp_path / "eagle", random_eagle(gpu.config), draft_config(gpu.config))
    ids = list(range(0, gpu.config.vocab_size, 3))
    tensors = with_vocabulary(random_eagle3(gpu.config, len(ids)), ids, gpu.config.vocab_size)
    eagle3 = write_draft(tmp_path / "eagle3", tensors, draft_config3(gpu.config, len(ids)))
    hydra = write_hydra(tmp_path / "hydra", tensors_of(gpu.config), config_of())
    methods = (
        Vanilla(gpu),
        Eagle(gpu, checkpoint=eagle, tree="mc_sim_7b_63"),
        Eagle2(gpu, checkpoint=eagle, tree="dynamic", top_k=10, depth=5, nodes=60),
        Eagle3(gpu, checkpoint=eagle3, tree="dynamic", top_k=10, depth=5, nodes=60),
        Hydra(gpu, checkpoint=hydra, tree="mc_sim_7b_63"),
        kangaroo(gpu, tmp_path / "adapter"),
        kangaroo(gpu, tmp_path / "adapter", width=3),
        Medusa(gpu, checkpoint=str(folder), heads=2, tree=tree, nodes=5, calibration=None),
        Lookahead(gpu, window=3, level=3, guesses=3, max_accept=None, seed=0),
        rest(gpu, datastore, tokenizer),
    )
    for method in methods:
        decoder = Decoder(gpu, method)
        with gpu.preparing():
            decoder.generate(prompt.cuda(), 8)
        found = decoder.generate(prompt.cuda(), 40)
        assert found.tokens == expected and not gpu.unprepared
        assert isinstance(method, Vanilla) or any(step.drafted for step in found.steps)


def test_phases_come_from_events_and_lie_within_the_wall_time(tmp_path: Path) -> None:
    gpu = on_cuda(tiny_llama())
    decoder = Decoder(gpu, kangaroo(gpu, tmp_path))
    for _ in range(2):
        timed = timed_generation(decoder, [5, 6, 7], 40, gpu.device, gauge=Gauge.of(gpu.device))
    assert timed.prefill_s > 0 and timed.draft_s > 0 and timed.verify_s > 0
    assert timed.prefill_s + timed.draft_s + timed.verify_s <= timed.wall_s * 1.01
    assert timed.peak_memory_bytes and timed.peak_memory_bytes > gpu.weight_bytes


def test_the_driver_says_what_a_turn_took() -> None:
    pytest.importorskip("pynvml")
    gpu = on_cuda(tiny_llama())
    gauge = Gauge.of(gpu.device)
    assert gauge.card is not None and gauge.card.facts()["power_limit_milliwatts"]
    timed = timed_generation(Decoder(gpu, Vanilla(gpu)), [5, 6, 7], 40, gpu.device, gauge=gauge)
    assert timed.sm_mhz and timed.temperature_c and timed.throttled
    assert timed.energy_millijoules is None or timed.energy_millijoules >= 0


def test_a_step_waits_for_the_device_once_a_verify_and_once_a_drafted_token(tmp_path: Path) -> None:
    gpu = on_cuda(tiny_llama())
    decoder = Decoder(gpu, kangaroo(gpu, tmp_path))
    prompt = torch.tensor([5, 6, 7], device="cuda")
    decoder.generate(prompt, 40)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            generation = decoder.generate(prompt, 40)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    drafted = sum(step.drafted for step in generation.steps)
    assert len(waits) <= 2 + len(generation.steps) + drafted


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 128), (torch.float32, 64), (torch.float16, 20)])
def test_torch_agrees_on_which_kernel_serves_a_mask(dtype: torch.dtype, size: int, rows: int) -> None:
    query = torch.randn(1, 4, rows, size, dtype=dtype, device="cuda")
    keys = torch.randn(1, 4, 512, size, dtype=dtype, device="cuda")
    mask = torch.zeros(rows, 512, dtype=dtype, device="cuda")
    params = SDPAParams(query, keys, keys, mask, 0.0, False, False)
    (masked, _) = kernels(dtype, size, 1, torch.cuda.get_device_capability())
    assert can_use_efficient_attention(params) == (masked.name == "memory-efficient")
    assert not can_use_flash_attention(params)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 128), (torch.float32, 64), (torch.float16, 20)])
def test_torch_agrees_on_which_kernel_serves_a_prompt(dtype: torch.dtype, size: int, groups: int) -> None:
    query = torch.randn(1, 4, 64, size, dtype=dtype, device="cuda")
    keys = torch.randn(1, 4 // groups, 64, size, dtype=dtype, device="cuda")
    params = SDPAParams(query, keys, keys, None, 0.0, True, groups > 1)
    (_, unmasked) = kernels(dtype, size, groups, torch.cuda.get_device_capability())
    second = "memory-efficient" if can_use_efficient_attention(params) else "plain"
    served = "flash" if can_use_flash_attention(params) else second
    assert ("plain" if "plain" in unmasked.name else unmasked.name) == served
