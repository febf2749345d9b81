"""Tiny random models: checkpoints in the published formats (by transformers), and engine models for quick tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine.llama import Llama
from methods.proof import tiny_model as tiny_llama

__all__ = ["adapter_checkpoint", "packed", "reference_model", "tiny_llama", "write_checkpoint"]

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> prefix of transformers' classes, what differs from SHAPE
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "llama_gqa": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama_mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "eos_token_id": [2, 3]}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def reference_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """transformers' own model of a family, random; norms and biases too, so that leaving one out shows."""
    import transformers

    prefix, differs = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SHAPE, **differs, **changes})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = 1.6 * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2
        parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, spread, generator=generator)
    return model


def write_checkpoint(folder: Path, model: Any, layout: str = "safetensors", shards: int = 3) -> Path:
    """Write transformers' model: safetensors, safetensors_shards, bin, bin_shards or bin_legacy (before torch 1.6)."""
    if layout.startswith("safetensors"):
        model.save_pretrained(folder, max_shard_size="100KB" if layout.endswith("shards") else "5GB")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if layout != "bin_shards":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "bin")
        return folder
    names = list(state)
    parts = {f"pytorch_model-{i + 1:05}-of-{shards:05}.bin": names[i::shards] for i in range(shards)}
    for part, held in parts.items():
        torch.save({name: state[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def packed(model: Llama) -> Llama:
    """The model as `bench.run` has it on a CPU."""
    model.pack()
    assert model.packed
    return model


def adapter_checkpoint(
    folder: Path, hidden: int = 64, *, heads: int = 4, kv_heads: int | None = None, seed: int = 0, std: float = 0.15
) -> Path:
    """A random Kangaroo adapter in the authors' format: a one-layer LlamaConfig and pytorch_model.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    kv_heads = kv_heads or heads
    head_dim = hidden // heads

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    attention = "layers.0.self_attn."
    state = {
        "norm.weight": 1 + 0.1 * torch.randn(hidden, generator=generator),
        "layers.0.input_layernorm.weight": 1 + 0.1 * torch.randn(hidden, generator=generator),
        attention + "q_proj.weight": matrix(hidden, hidden),
        attention + "k_proj.weight": matrix(kv_heads * head_dim, hidden),
        attention + "v_proj.weight": matrix(kv_heads * head_dim, hidden),
        attention + "o_proj.weight": matrix(hidden, hidden),
    }
    torch.save(state, folder / "pytorch_model.bin")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder
