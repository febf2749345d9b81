"""Loading: every published layout, the memory it takes, and what a user is told about a folder that does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.binder import file_hashes
from methods.engine.checkpoint import load_model, read_config, read_tensors
from methods.engine.llama import Llama
from methods.engine.weight_files import matches, wanted_weights, weight_files
from tests.gguf_file import write_gguf
from tests.tiny import (
    FAMILIES,
    SHAPE,
    adapter_checkpoint,
    edit_config,
    reference_model,
    refusal,
    tiny_llama,
    write_checkpoint,
)

LAYOUTS = ("safetensors", "safetensors_shards", "bin", "bin_shards", "bin_legacy")
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def reference() -> Any:
    return reference_model("llama_gqa")


@pytest.fixture
def folder(reference: Any, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", reference)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def first_logits(model: Llama) -> torch.Tensor:
    tokens = torch.arange(20)
    return model.head(model.run(model.embed(tokens), tokens, None, slice(None)))


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(reference: Any, layout: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference, layout)
    assert (len(weight_files(folder)) > 1) == layout.endswith("shards")
    model = load_model(folder, device="cpu")
    state = reference.state_dict()
    layer, prefix = model.weights.layers[2], "model.layers.2."
    qkv = [state[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(layer.qkv.weight, torch.cat(qkv))
    assert torch.equal(
        layer.gate_up.weight, torch.cat([state[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")])
    )
    assert torch.equal(model.weights.lm_head.weight, state["lm_head.weight"])
    assert (first_logits(model) - reference(torch.arange(20)[None]).logits[0]).abs().max() <= 1e-4


def test_safetensors_are_read_before_bin(reference: Any, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not a weight file")
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    load_model(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_is_converted_on_the_way_in(reference: Any, folder: Path, dtype: str) -> None:
    model = load_model(folder, dtype=dtype, device="cpu")
    assert {tensor.dtype for tensor in model.weights.tensors()} == {getattr(torch, dtype)}
    expected = reference.state_dict()["model.layers.0.mlp.down_proj.weight"].to(getattr(torch, dtype))
    assert torch.equal(model.weights.layers[0].down.weight, expected)


def test_auto_dtype_on_the_cpu_is_float32(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference_model("llama").to(torch.bfloat16))
    assert read_config(folder).dtype == "bfloat16"
    assert load_model(folder, device="cpu").dtype == torch.float32


def test_tied_embeddings_are_one_tensor_and_a_stored_copy_is_ignored(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference_model("llama_tied"))
    edit_weights(folder, lambda state: state.update({"lm_head.weight": torch.zeros(128, 64)}))
    model = load_model(folder)
    assert model.weights.lm_head.weight is model.weights.embedding
    assert model.weights.embedding.abs().sum() > 0


def test_loading_peaks_below_one_fifth_over_the_model(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to read the peak of resident memory")
    small = write_checkpoint(tmp_path / "small", reference_model("llama"))
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(8)
        for name, shape in {
            **{f"self_attn.{part}_proj": (512, 512) for part in "qkvo"},
            **{f"mlp.{part}_proj": (1536, 512) for part in ("gate", "up")},
            "mlp.down_proj": (512, 1536),
            "input_layernorm": (512,),
            "post_attention_layernorm": (512,),
        }.items()
    }
    shapes |= {"model.embed_tokens.weight": (2000, 512), "lm_head.weight": (2000, 512), "model.norm.weight": (512,)}
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    folders = [str(shutil.copytree(small, tmp_path / layout)) for layout in ("safetensors", "bin")]
    for folder in folders:
        edit_config(
            Path(folder), hidden_size=512, intermediate_size=1536, num_hidden_layers=8, vocab_size=2000, head_dim=128
        )
    save_file(state, f"{folders[0]}/model.safetensors")
    Path(folders[1], "model.safetensors").unlink()
    torch.save(state, f"{folders[1]}/pytorch_model.bin")
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 2048}
    folders.append(str(write_gguf(tmp_path / "large.gguf", reference_model("llama", **shape), "Q8_0")))
    warm = [str(small), str(write_checkpoint(tmp_path / "small_bin", reference_model("llama"), "bin"))]
    warm.append(str(write_gguf(tmp_path / "small.gguf", reference_model("llama"), "Q8_0")))
    script = f"""
import os, re
from pathlib import Path
from methods.engine.checkpoint import load_model

def status(key):
    return int(re.search(rf"{{key}}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

for folder in {folders!r}:
    if child := os.fork():  # each in a process of its own, where no memory of another model is used again
        assert os.waitpid(child, 0)[1] == 0
        continue
    for warm in {warm!r}:
        load_model(Path(warm), device="cpu")
    before = status("VmRSS")
    model = load_model(Path(folder), device="cpu")
    print((status("VmHWM") - before) / model.weight_bytes, flush=True)
    os._exit(0)
"""
    ratios = [float(line) for line in run_python(script).stdout.split()]
    assert len(ratios) == 3
    assert all(0.9 < ratio <= 1.2 for ratio in ratios), ratios


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


# Random weights


def test_random_weights_need_a_config_only(folder: Path) -> None:
    for file in weight_files(folder):
        file.unlink()
    model = load_model(folder, weights="random", seed=3)
    again, other = (load_model(folder, weights="random", seed=seed) for seed in (3, 4))
    assert torch.equal(model.weights.layers[1].qkv.weight, again.weights.layers[1].qkv.weight)
    assert not torch.equal(model.weights.layers[1].qkv.weight, other.weights.layers[1].qkv.weight)
    assert model.weights.layers[1].gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.weights.layers[1].post_norm, torch.ones(64))
    assert first_logits(model).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_random_weights_of_every_family(family: str, dtype: str, tmp_path: Path) -> None:
    prefix, differs = FAMILIES[family]
    config = {"model_type": prefix.lower(), "rms_norm_eps": 1e-6, **SHAPE, **differs}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path, weights="random", dtype=dtype, device="cpu")
    assert model.config.architecture == f"{prefix}ForCausalLM"
    assert first_logits(model).isfinite().all()


def test_tiny_llama_talks_and_depends_on_its_seed() -> None:
    model, tokens = tiny_llama(5), [7]
    while len(tokens) < 60:
        rows = torch.tensor(tokens)
        tokens.append(
            int(model.head(model.run(model.embed(rows), torch.arange(len(rows)), None, slice(None)))[-1].argmax())
        )
    assert len(set(tokens)) > 15
    assert not torch.equal(first_logits(model), first_logits(tiny_llama(6)))


# config.json


# Weights that do not fit


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), ["missing model.layers.1.mlp.up_proj.weight"]),
        (lambda state: state.update({"visual.weight": torch.ones(2)}), ["extra visual.weight"]),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(63)}),
            ["mis-shaped model.norm.weight [63] instead of [64]"],
        ),
        (lambda state: [state.pop(name) for name in list(state) if "layers" in name], ["and 30 more"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, edit: Callable[..., Any], parts: list[str]) -> None:
    edit_weights(folder, edit)
    message = refusal(load_model, folder)
    assert all(part in message for part in parts), message


def test_harmless_extra_tensors_are_ignored(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda state: state.update({name: torch.ones(8)}))
    load_model(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = refusal(load_model, folder)
    assert "no weights" in message and "model.safetensors or pytorch_model.bin" in message


def test_lost_shard_is_named(reference: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference, "bin_shards")
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in refusal(load_model, folder)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_torn_weight_file_is_named(reference: Any, layout: str, size: int, tmp_path: Path) -> None:
    file = weight_files(write_checkpoint(tmp_path, reference, layout))[0]
    file.write_bytes(file.read_bytes()[:size])
    message = refusal(load_model, tmp_path)
    assert file.name in message and "not readable" in message


def test_bin_file_that_would_run_code_is_refused(reference: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference, "bin")
    torch.save({"model.norm.weight": print}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(load_model, folder)


def test_bin_file_of_something_else_is_refused(reference: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference, "bin")
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    assert "tensors by name" in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"dtype": "float8"}, ["model.dtype=float8", "bfloat16"]),
        ({"device": "gpu"}, ["model.device=gpu", "cuda"]),
        ({"weights": "randm"}, ["model.weights=randm", "did you mean random?"]),
    ],
)
def test_unknown_settings(folder: Path, settings: dict[str, str], parts: list[str]) -> None:
    message = refusal(load_model, folder, **settings)
    assert all(part in message for part in parts), message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent(folder: Path) -> None:
    assert "model.device=cuda" in refusal(load_model, folder, device="cuda")


# Adapters and records


def test_read_tensors_takes_exactly_what_is_named(tmp_path: Path) -> None:
    folder = adapter_checkpoint(tmp_path, 64)
    state = torch.load(folder / "pytorch_model.bin")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    cpu = torch.device("cpu")
    read = read_tensors(folder, shapes, device=cpu, dtype=torch.float32)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)

    wider = {name: tuple(2 * size for size in shape) for name, shape in shapes.items()}
    assert "norm.weight [64] instead of [128]" in refusal(read_tensors, folder, wider, device=cpu, dtype=torch.float32)
    fewer = {name: shape for name, shape in shapes.items() if name != "norm.weight"}
    assert "extra norm.weight" in refusal(read_tensors, folder, fewer, device=cpu, dtype=torch.float32)


def test_file_hashes(reference: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference, "bin_shards")
    training = ("training.json", "training_state.pt", "states/x/y.npy", "log.csv", "loss.png")
    books = (
        ".gitattributes",
        ".gitignore",
        "x/__pycache__/y.pyc",
        ".git/index",
        ".cache/huggingface/download/config.json.metadata",
        "x/.DS_Store",
    )
    for beside in (*training, *books):
        (folder / beside).parent.mkdir(parents=True, exist_ok=True)
        (folder / beside).write_text("{}")
    hashes = file_hashes(folder)
    assert file_hashes(folder, draft=True).keys() - hashes.keys() == {"generation_config.json"}
    (folder / "training.json").unlink()  # what else is called so is somebody's own
    assert {"training_state.pt", "states/x/y.npy"} < file_hashes(folder, draft=True).keys()
    shards = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
    assert sorted(hashes) == ["config.json", *shards, "pytorch_model.bin.index.json"]
    assert hashes["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


def test_a_single_safetensors_file_may_have_any_name(tmp_path: Path) -> None:
    for name in ("mine.safetensors", "another.safetensors"):
        save_file({"weight": torch.ones(2)}, tmp_path / name)
    assert weight_files(tmp_path) == []  # nobody knows which
    (tmp_path / "another.safetensors").unlink()
    assert [file.name for file in weight_files(tmp_path)] == ["mine.safetensors"]
    torch.save({"weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert [file.name for file in weight_files(tmp_path)] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "consolidated.safetensors"], ["model.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"],
            ["model-00001-of-00002.safetensors"],
        ),
        (["medusa_lm_head.pt", "training_state.pt"], ["medusa_lm_head.pt"]),
        (["mine.safetensors", "notes.txt"], ["mine.safetensors"]),
    ],
)
def test_what_is_wanted_of_a_repository_is_what_a_folder_is_read_by(names: list[str], wanted: list[str]) -> None:
    assert [name for name in names if matches(name, wanted_weights(names))] == wanted
