"""config.json of a Hugging Face checkpoint -> ModelConfig.

Read as plain JSON: importing transformers would cost seconds, and both generations of its keys (rope_theta,
rope_scaling, torch_dtype; rope_parameters, dtype) are few enough to read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from methods.engine.llama import ModelConfig
from methods.errors import UserError, reading

ARCHITECTURES = {  # by model_type, for configs that name no architecture
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": (),  # a list under the same name, one for each frequency
}
MOST = {  # at least four times the largest model published; anything above is a broken file, and would be allocated
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "vocab_size": 1 << 22,
}
MOST_CONTEXT = 1 << 22


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in `folder`, from its config.json and, for end-of-sequence ids, generation_config.json.

    Raises UserError for a missing or broken file, and as `model_config` does.
    """
    file, generation = folder / "config.json", folder / "generation_config.json"
    raw = read_json(file)
    return model_config(file, raw, read_json(generation).get("eos_token_id") if generation.exists() else None)


def model_config(file: Path, raw: dict[str, Any], more_ends: Any) -> ModelConfig:
    """The shape of a model whose settings stand in `file` under the names of config.json.

    more_ends: further end-of-sequence ids. A sliding attention window changes nothing as long as the context fits into
    it, so the context is limited to it.
    Raises UserError for an unsupported architecture, and settings the engine does not have.
    """
    architecture = _architecture(file, raw)
    _refuse_unsupported(file, raw)
    heads = _positive(file, raw, "num_attention_heads")
    kv_heads = _positive(file, raw, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise UserError(f"{file}: num_key_value_heads={kv_heads} must divide num_attention_heads={heads}")
    hidden = _positive(file, raw, "hidden_size")
    head_dim = _positive(file, raw, "head_dim", default=hidden // heads)
    if head_dim % 2:
        raise UserError(f"{file}: head_dim={head_dim} must be even for rotary positions")
    rope = _rope(file, raw)
    if len(rope.get("factors", range(head_dim // 2))) != head_dim // 2:
        raise UserError(f"{file}: {len(rope['factors'])} rotary factors, head_dim={head_dim} wants {head_dim // 2}")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(file, raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(file, raw, "intermediate_size"),
        num_layers=_positive(file, raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=_number(file, raw, "rms_norm_eps"),
        context=_context(file, raw, architecture),
        rope_theta=_number(file, rope, "rope_theta"),
        rope_scaling=None if rope["rope_type"] == "default" else rope,
        tied=bool(raw.get("tie_word_embeddings") or False),
        qkv_bias=architecture == "Qwen2ForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        eos_token_ids=_eos_token_ids(file, more_ends, raw.get("eos_token_id")),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
    )


def published_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a model of this shape, as `read_config` reads it."""
    return {
        "architectures": [config.architecture],
        "model_type": next(kind for kind, name in ARCHITECTURES.items() if name == config.architecture),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "tie_word_embeddings": config.tied,
        "eos_token_id": list(config.eos_token_ids),
        "torch_dtype": config.dtype,
    }


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from disk. Raises UserError when it is missing, unreadable or something else."""
    with reading(file, "JSON"):
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{file.parent}: no {file.name} in this folder") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: a JSON object is wanted, this is a {type(raw).__name__}")
    return raw


def _architecture(file: Path, raw: dict[str, Any]) -> str:
    named, kind = raw.get("architectures") or [], str(raw.get("model_type"))
    name = str(named[0]) if isinstance(named, list) and named else ARCHITECTURES.get(kind, kind)
    if name not in ARCHITECTURES.values():
        # No guess at a near name: it is a file's, not typed by hand, and Gemma2ForCausalLM is no misspelt Qwen2.
        valid = ", ".join(ARCHITECTURES.values())
        raise UserError(f"{file}: architecture={shown(name)} is not supported; valid: {valid}")
    return name


def shown(value: object) -> str:
    """A name from a file, on one line."""
    text = str(value)
    return text if text.isprintable() and len(text) < 200 else f"{text[:200]!r}"


def some(names: Iterable[str], most: int = 6) -> str:
    """The first of many names from a file, on one line."""
    listed = [shown(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _refuse_unsupported(file: Path, raw: dict[str, Any]) -> None:
    """Settings that would change the mathematics and that the engine does not have."""
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu", "swish", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "partial_rotary_factor": (1, None),
        "quantization_config": (None,),
    }
    for key, valid in wanted.items():
        if raw.get(key) not in valid:
            given = shown(json.dumps(raw[key]))
            raise UserError(f"{file}: {key}={given} is not supported; valid: {json.dumps(valid[0])}")


def _rope(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in one form: rope_theta, rope_type and the numbers that type needs."""
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key) or {}
        if not isinstance(value, dict):
            raise UserError(f"{file}: {key}={shown(json.dumps(value))} must be a JSON object with rope_type, or null")
        given |= value
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in ROPE_KEYS:
        raise UserError(f"{file}: rope_type={shown(kind)} is not supported; valid: {', '.join(ROPE_KEYS)}")
    if any(isinstance(value, dict) for value in given.values()):
        layers = shown(", ".join(given))
        raise UserError(f"{file}: rope_parameters differ between layers ({layers}); one set is supported")
    given.setdefault("rope_theta", raw.get("rope_theta", 10_000.0))
    if "original_max_position_embeddings" in raw:
        given.setdefault("original_max_position_embeddings", raw["original_max_position_embeddings"])
    numbers = {key: _number(file, given, key) for key in ("rope_theta", *ROPE_KEYS[kind])}
    if kind == "factors":
        return {"rope_type": kind, **numbers, "factors": _factors(file, given)}
    return {"rope_type": kind, **numbers}


def _factors(file: Path, given: dict[str, Any]) -> list[float]:
    factors = given.get("factors")
    if not isinstance(factors, list):
        raise UserError(f"{file}: factors={shown(factors)} must be a list of numbers, one for each rotary frequency")
    return [_number(file, {"factors": factor}, "factors") for factor in factors]


def _context(file: Path, raw: dict[str, Any], architecture: str) -> int:
    # Long-context Vicunas leave max_position_embeddings at the value before linear scaling and say the rest here.
    context = _positive(file, raw, "max_position_embeddings")
    context = max(context, _positive(file, raw, "max_sequence_length", default=context))
    slides = architecture == "MistralForCausalLM" or raw.get("use_sliding_window")
    window = raw.get("sliding_window") if slides else None
    return min(context, _positive(file, raw, "sliding_window")) if window is not None else context


def _eos_token_ids(file: Path, *values: Any) -> tuple[int, ...]:
    """End-of-sequence ids of both config files: chat models often name the end of a turn in only one of them."""
    found: list[int] = []
    for value in values:
        found += value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and abs(token) < 1 << 31 for token in found):
        wanted = "an integer or a list of integers, of 32 bits"
        raise UserError(f"{file.parent}: eos_token_id={shown(found)} must be {wanted}")
    return tuple(dict.fromkeys(found))


def _positive(file: Path, raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if raw.get(key) is None else raw[key]
    if value is None:
        raise UserError(f"{file}: {key} is missing")
    most = MOST.get(key, MOST_CONTEXT)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UserError(f"{file}: {key}={shown(repr(value))} must be a positive integer of at most {most}")
    return value


def _number(file: Path, raw: dict[str, Any], key: str) -> float:
    value = raw.get(key)
    if value is None:
        raise UserError(f"{file}: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise UserError(f"{file}: {key}={shown(repr(value))} must be a positive number below 1e30")
    return float(value)
