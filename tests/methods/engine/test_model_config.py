"""config.json and generation_config.json of every family: what they mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from methods.engine.checkpoint import load_model, read_config
from tests.tiny import FAMILIES, edit_config, reference_model, refusal, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", reference_model("llama_gqa"))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_generations_of_keys_mean_the_same(family: str, tmp_path: Path) -> None:
    model = reference_model(family)
    folder = write_checkpoint(tmp_path, model)
    new = read_config(folder)
    rope = dict(model.config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}
    old = {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": "float32"}
    edit_config(folder, remove=("rope_parameters", "dtype"), **old)
    assert read_config(folder) == new
    assert (new.rope_theta, new.dtype, new.tied) == (theta, "float32", "tied" in family)
    assert (new.qkv_bias, new.qk_norm) == (family.startswith("qwen2"), family.startswith("qwen3"))


def test_first_llama_configs_have_few_keys(folder: Path) -> None:
    edit_config(folder, remove=("num_key_value_heads", "head_dim", "rope_parameters", "attention_bias", "mlp_bias"))
    config = read_config(folder)
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.rope_scaling) == (4, 16, 10_000.0, None)


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [(2, None, (2,)), (2, 3, (3, 2)), ([2, 5], [7, 2], (7, 2, 5)), (None, [4], (4,)), (None, None, ())],
)
def test_end_tokens_come_from_both_files(folder: Path, own: Any, generation: Any, expected: tuple[int, ...]) -> None:
    edit_config(folder, eos_token_id=own)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_config(folder).eos_token_ids == expected


@pytest.mark.parametrize(
    ("family", "changes", "context"),
    [
        ("mistral", {"sliding_window": None}, 256),
        ("mistral", {"sliding_window": 100}, 100),
        ("mistral", {"sliding_window": 4096}, 256),
        ("qwen2", {"sliding_window": 100, "use_sliding_window": False}, 256),
        ("qwen2", {"sliding_window": 100, "use_sliding_window": True}, 100),
        ("llama", {"max_sequence_length": 1024}, 1024),
    ],
)
def test_context(family: str, changes: dict[str, Any], context: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, reference_model(family))
    edit_config(folder, **changes)
    assert read_config(folder).context == context


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"architectures": ["GPTNeoXForCausalLM"]}, ["architecture=GPTNeoXForCausalLM", "LlamaForCausalLM", "Qwen3"]),
        ({"architectures": None, "model_type": "gemma2"}, ["gemma2", "MistralForCausalLM"]),
        ({"architectures": None, "model_type": ["x"]}, ["architecture=['x'] is not supported"]),
        ({"rope_scaling": "linear"}, ['rope_scaling="linear" must be a JSON object']),
        ({"rope_parameters": [1]}, ["rope_parameters=[1] must be a JSON object"]),
        ({"max_sequence_length": "abc"}, ["max_sequence_length='abc' must be a positive integer"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps=nan must be a positive number"]),
        ({"eos_token_id": True}, ["must be an integer or a list of integers"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ["rope_type=yarn", "default, linear, llama3"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, ["rope_type=dynamic"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor is missing"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["full_attention"]),
        ({"attention_bias": True}, ["attention_bias=true", "valid: false"]),
        ({"hidden_act": "gelu"}, ['hidden_act="gelu"', "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "null"]),
        ({"hidden_size": "64"}, ["hidden_size='64'", "positive integer"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4"]),
        ({"vocab_size": None}, ["vocab_size is missing"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps=-1"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id"]),
    ],
)
def test_unsupported_configs_are_refused(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    edit_config(folder, **changes)
    message = refusal(read_config, folder)
    assert all(part in message for part in parts), message
    assert str(folder) in message


@pytest.mark.parametrize(("text", "part"), [(None, "no config.json"), ("{", "not readable as JSON"), ("[]", "list")])
def test_broken_config_file(folder: Path, text: str | None, part: str) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert part in refusal(load_model, folder)
