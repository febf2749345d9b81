"""Files that are broken, hostile or something else: one line that names the file, and nothing allocated before."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.binder import file_hashes
from methods.engine.checkpoint import load_model, read_config, read_tensors, tensor_shapes
from methods.engine.vocabulary import Vocabulary
from methods.engine.weight_files import weight_files
from methods.errors import UserError
from methods.hf import load_tokenizer
from methods.trees import read_accuracies
from tests.tiny import SHAPE

DEEP = "[" * 5000
CONFIG = {"model_type": "llama", "rms_norm_eps": 1e-6, **SHAPE}
CPU = torch.device("cpu")


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000, message
    return message


def folder_of(path: Path, **texts: str) -> Path:
    """A folder with config.json and texts, whose names are given with an underscore for the dot."""
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, text in texts.items():
        (path / f"{name}.json").write_text(text)
    return path


# Weight files

ODD: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: torch.ones(2),
    "a number": lambda: 3,
    "numbers by name": lambda: {"norm.weight": 3},
    "a list": lambda: {"norm.weight": [torch.ones(2)]},
    "a number for a name": lambda: {3: torch.ones(2)},
    "a set": lambda: {"norm.weight": {1, 2}},
    "a sparse tensor": lambda: {"norm.weight": torch.eye(2).to_sparse()},
    "compressed rows": lambda: {"norm.weight": torch.eye(2).to_sparse_csr()},
    "a quantized tensor": lambda: {"norm.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
    "a nested tensor": lambda: {"norm.weight": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])},
    "a tensor without storage": lambda: {"norm.weight": torch.empty(2, device="meta")},
    "whole numbers": lambda: {"norm.weight": torch.ones(2, dtype=torch.int64)},
    "complex numbers": lambda: {"norm.weight": torch.ones(2, dtype=torch.complex64)},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bin_file_of_something_else(content: Callable[[], Any], zipped: bool, tmp_path: Path) -> None:
    try:
        torch.save(content(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this torch does not write it: {error}")
    message = refusal(read_tensors, tmp_path, {"norm.weight": (2,)}, device=CPU, dtype=torch.float32)
    assert "pytorch_model.bin" in message


def test_tensors_that_share_storage_are_copied_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    odd = {"repeated": base[:1].expand(4), "overlapping": base.as_strided((2, 3), (1, 1)), "every_other": base[::2]}
    torch.save(odd, tmp_path / "pytorch_model.bin")
    shapes = {name: tuple(tensor.shape) for name, tensor in odd.items()}
    read = read_tensors(tmp_path, shapes, device=CPU, dtype=torch.float32)
    assert all(torch.equal(read[name], odd[name]) for name in odd)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_flipped_byte_ends_in_a_model_or_in_one_line(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({f"layers.{i}.weight": torch.ones(2, 3) for i in range(2)}, file, _use_new_zipfile_serialization=zipped)
    whole, dice, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(150):
        torn = bytearray(whole)
        torn[dice.randrange(len(whole))] = dice.choice((0xE9, dice.randrange(256)))
        file.write_bytes(torn)
        try:
            tensor_shapes(tmp_path)
        except UserError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "a/../../other.bin"])
def test_an_index_names_no_shard_outside_its_folder(shard: str, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": shard}}))
    message = refusal(weight_files, folder)
    assert f"names {shard}, outside this folder" in message


@pytest.mark.parametrize("shard", ["", "a" * 300, "a\0b", "a\nb", 7, None, ["x"]])
def test_an_index_of_odd_names(shard: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": shard}}))
    assert "missing in this folder" in refusal(weight_files, tmp_path)


def test_shards_may_be_links_into_a_cache(tmp_path: Path) -> None:
    folder, blob = tmp_path / "snapshot", tmp_path / "blob"
    folder.mkdir()
    torch.save({"norm.weight": torch.ones(2)}, blob)
    (folder / "a.bin").symlink_to(blob)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"norm.weight": "a.bin"}}))
    assert tensor_shapes(folder) == {"norm.weight": (2,)}


def test_names_of_tensors_stay_on_one_line(tmp_path: Path) -> None:
    torch.save({"a\nb\r": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert r"extra 'a\nb\r'" in refusal(read_tensors, tmp_path, {}, device=CPU, dtype=torch.float32)


# JSON


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("config", read_config),
        ("generation_config", read_config),
        ("model.safetensors.index", load_model),
        ("tokenizer", Vocabulary.read),
        ("vocab", Vocabulary.read),
        ("added_tokens", Vocabulary.read),
        ("head_accuracies", lambda folder: read_accuracies(folder / "head_accuracies.json", 1)),
    ],
)
@pytest.mark.parametrize("text", [DEEP, '{"a":' * 5000, '{"a": "\xe9', "9" * 5000, '"\\ud800"'], ids=range(5))
def test_json_that_is_none_or_nested_too_deep(
    name: str, call: Callable[[Path], Any], text: str, tmp_path: Path
) -> None:
    others = {"vocab": '{"a": 0}'} if name == "added_tokens" else {}
    folder = folder_of(tmp_path, **others)
    (folder / f"{name}.json").write_bytes(text.encode("latin-1"))
    assert f"{name}.json: " in refusal(call, folder)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("config.json")
    assert "config.json: not readable as JSON (Too many levels" in refusal(read_config, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for name, call in {"model.safetensors": file_hashes, "tokenizer.json": Vocabulary.read}.items():
        (folder / name).touch(mode=0)
        assert f"{name}: not readable" in (message := refusal(call, folder)) and "Permission denied" in message


# config.json


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"head_dim": 2**32},
        {"num_attention_heads": 2**63},
        {"vocab_size": 10**12},
        {"hidden_size": 2**31},
        {"intermediate_size": 10**300},
        {"max_position_embeddings": 10**15},
        {"max_sequence_length": 10**15},
        {"rms_norm_eps": 10**400},
        {"rope_theta": 10**400},
        {"eos_token_id": [10**30]},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    message = refusal(load_model, tmp_path, weights="random")
    assert next(iter(changes)) in message
    assert "at most" in message or "below 1e30" in message or "of 32 bits" in message


def test_the_largest_published_sizes_are_within_the_bounds(tmp_path: Path) -> None:
    largest = {
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "hidden_size": 16_384,
        "intermediate_size": 53_248,
        "vocab_size": 256_000,
        "max_position_embeddings": 1_010_000,
    }
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **largest}))
    assert read_config(tmp_path).head_dim == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["a\nb"]},
        {"architectures": [["x"] * 10**5]},
        {"rope_scaling": {"rope_type": "a\nb"}},
        {"rope_parameters": {"a\nb": {}}},
        {"hidden_act": "a\n" * 10**5},
        {"hidden_size": "x" * 10**5},
        {"eos_token_id": ["x"] * 10**5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_values_are_shown_on_one_short_line(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    refusal(read_config, tmp_path)


def test_no_near_name_is_guessed_for_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Gemma2ForCausalLM"]}))
    message = refusal(read_config, tmp_path)
    assert "did you mean" not in message and "valid: LlamaForCausalLM, MistralForCausalLM, Qwen2" in message


# Tokenizers


def tokenizer(vocab: Any, *added: Any) -> str:
    return json.dumps({"model": {"vocab": vocab}, "added_tokens": list(added)})


@pytest.mark.parametrize(
    "text",
    [
        tokenizer({"a": "0"}),
        tokenizer({"a": -1}),
        tokenizer({"a": 2**70}),
        tokenizer({"a": 0, "b": 0}),
        tokenizer({"a": True}),
        tokenizer({"a": 0.5}),
        tokenizer({"a": [0]}),
        tokenizer({"a": None}),
        tokenizer([["a", 0.0], ["b"]]),
        tokenizer([["a", 0.0, 1]]),
        tokenizer([[3, 0.0]]),
        tokenizer("abc"),
        tokenizer(7),
        tokenizer({"a": 0}, {"id": "1", "content": "b"}),
        tokenizer({"a": 0}, {"id": 1}),
        tokenizer({"a": 0}, {"id": 1, "content": 5}),
        tokenizer({"a": 0}, {"id": 1, "content": "b"}, {"id": 1, "content": "c"}),
        tokenizer({"a": 0}, "b"),
        json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": None}),
        json.dumps({"model": [1]}),
        "{}",
    ],
)
def test_an_odd_tokenizer(text: str, tmp_path: Path) -> None:
    assert "tokenizer.json: not readable as a tokenizer" in refusal(
        Vocabulary.read, folder_of(tmp_path, tokenizer=text)
    )


@pytest.mark.parametrize(
    "model", [b"\xff" * 300_000, b"\x0a\x05\x0a", b"\x0a\x02\x10\x01", b"\x0b", b"\x0a\x04\x0a\x02\xff\xff"]
)
def test_an_odd_sentencepiece_model(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert "tokenizer.model: not readable as a tokenizer" in refusal(Vocabulary.read, tmp_path)


@pytest.mark.parametrize(("name", "read"), [("config.json", read_config), ("tokenizer_config.json", load_tokenizer)])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, read: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / name)
    assert "not a file" in refusal(read, tmp_path)


def test_a_fifo_in_the_place_of_weights_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [] and tensor_shapes(tmp_path) == {}
