"""Checkpoints of EAGLE-3's draft model in the three dialects that are published.

The authors' and SpecForge's: a flat config.json and tensors midlayer.*. The one of the library speculators: the layer's
settings under transformer_layer_config, and tensors layers.0.*. Where words mean two things, the reading functions say
which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.draft_vocabulary import OFFSETS, read_vocabulary
from methods.engine.checkpoint import empty_block, fill, published_layer, tensor_shapes
from methods.engine.config import model_config, read_json, shown
from methods.engine.llama import LayerWeights, Llama, ModelConfig
from methods.engine.matrix import Matrix, new_matrix
from methods.errors import UserError

EMBEDDING = "embed_tokens.weight"
KEPT = "t2d"  # marks the target's tokens that the draft knows; OFFSETS say it too
AUTHORS, SPECULATORS = "midlayer", "layers.0"  # what the layer's tensors are called
AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a config.json says of a draft model."""

    layer: ModelConfig  # vocabulary and context are the target's
    width: int  # of the target's states
    taps: tuple[int, ...]  # layers of the target before which they are taken
    draft_vocab: int
    norm_before_residual: bool = False  # the residual is the normed feature
    norm_before_fc: bool = False  # one norm over the tapped states side by side
    fc_norm: bool = False  # a norm for each of them
    normed_outputs: bool = False  # the final norm is part of what the next level takes
    normed_head: bool = True  # the head reads normed outputs


@dataclass(kw_only=True)
class Eagle3Weights(LayerWeights):
    """A layer whose q, k and v read [embedding; feature], 2 * hidden wide, and what is around it."""

    fc: Matrix  # [hidden, taps * width]
    hidden_norm: Tensor  # [hidden] of the feature, as input_norm is of the embedding
    norm: Tensor  # [hidden]
    lm_head: Matrix  # [draft vocab, hidden]
    joined_norm: Tensor | None  # [taps * width]
    tap_norms: Tensor | None  # [taps, width]


def empty_weights(shape: Shape, dtype: torch.dtype, device: torch.device) -> Eagle3Weights:
    """Weights of the right shapes, uninitialised."""
    hidden, taps = shape.layer.hidden_size, len(shape.taps)
    new = partial(torch.empty, dtype=dtype, device=device)
    return Eagle3Weights(
        fc=Matrix(new_matrix(hidden, taps * shape.width, dtype, device)),
        joined_norm=new(taps * shape.width) if shape.norm_before_fc else None,
        tap_norms=new(taps, shape.width) if shape.fc_norm else None,
        input_norm=new(hidden),
        hidden_norm=new(hidden),
        norm=new(hidden),
        lm_head=Matrix(new_matrix(shape.draft_vocab, hidden, dtype, device)),
        **empty_block(shape.layer, 2 * hidden, dtype, device),
    )


def published(shape: Shape, weights: Eagle3Weights, layer: str = AUTHORS) -> dict[str, Tensor]:
    """The weights under their names in a checkpoint, as views."""
    parts = {
        "input_layernorm.weight": weights.input_norm,
        "hidden_norm.weight": weights.hidden_norm,
        **published_layer(shape.layer, weights),
    }
    names = {"fc.weight": weights.fc.weight, "norm.weight": weights.norm, "lm_head.weight": weights.lm_head.weight}
    if weights.joined_norm is not None:
        names["input_norm.weight"] = weights.joined_norm
    if weights.tap_norms is not None:
        names |= {f"fc_norm.{place}.weight": norm for place, norm in enumerate(weights.tap_norms)}
    return names | {f"{layer}.{name}": part for name, part in parts.items()}


def default_taps(layers: int) -> tuple[int, ...]:
    """The authors': early, in the middle and late."""
    return 2, layers // 2, layers - 3


def read_shape(folder: Path, target: Llama) -> Shape:
    """From config.json. Raises UserError for what is missing, contradictory or unsupported, or does not fit the target.

    norm_output: in speculators the next level takes the normed output (absent: false); SpecForge, whose config is flat,
    calls so the norm before the head (absent: true).
    """
    file, theirs = folder / "config.json", target.config
    raw = read_json(file)
    nested = raw.get("transformer_layer_config")
    if nested is not None and not isinstance(nested, dict):
        raise UserError(f"{file}: transformer_layer_config={shown(nested)} must be a JSON object")
    # The architecture is the draft's own (LlamaForCausalLMEagle3, Eagle3Speculator); the layer's kind is in model_type.
    settings = {"model_type": "llama", **(raw if nested is None else nested), "architectures": None}
    layer = model_config(file, {"num_hidden_layers": 1, **settings}, None)
    layer = replace(layer, num_layers=1, vocab_size=theirs.vocab_size, context=theirs.context, qkv_bias=False)
    flags = {
        name: _flag(file, raw, name, default)
        for name, default in (
            ("norm_before_residual", False),
            ("norm_before_fc", False),
            ("fc_norm", False),
            ("norm_output", nested is None),
        )
    }
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise UserError(f"{file}: norm_before_fc and fc_norm exclude each other")
    norm_output = flags.pop("norm_output")
    draft_vocab = raw.get("draft_vocab_size", theirs.vocab_size)
    if not isinstance(draft_vocab, int) or not 1 <= draft_vocab <= theirs.vocab_size:
        most = f"the target has {theirs.vocab_size} tokens"
        raise UserError(f"{file}: draft_vocab_size={shown(draft_vocab)} must be a positive integer, {most}")
    return Shape(
        layer=layer,
        width=theirs.hidden_size,
        taps=_taps(file, raw, theirs.num_layers),
        draft_vocab=draft_vocab,
        normed_outputs=nested is not None and norm_output,
        normed_head=nested is not None or norm_output,
        **flags,
    )


def _flag(file: Path, raw: dict[str, Any], name: str, default: bool) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{file}: {name}={shown(value)} must be true or false")
    return default if value is None else value


def _taps(file: Path, raw: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Layers before which states are taken: how many have run by then.

    speculators counts so; SpecForge names the layer whose output is taken, which is one less. Both mean the same early
    layer as a rule, so that a first 1 is SpecForge's and a first 2 speculators', whatever the rest of the file is.
    """
    ids = raw.get(AUX_LAYERS)
    if ids is None:
        inner = raw.get("eagle_config")
        ids = inner.get(AUX_LAYERS) if isinstance(inner, dict) else None
    if ids is None:
        taps = default_taps(layers)
    elif isinstance(ids, list) and ids and all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        taps = tuple(i + (ids[0] == 1) for i in ids)
    else:
        raise UserError(f"{file}: {AUX_LAYERS}={shown(ids)} must be a list of layers")
    if not all(0 <= tap <= layers for tap in taps):
        raise UserError(f"{file}: states are taken before the layers {list(taps)}, the target has 0 to {layers}")
    return taps


def read_weights(
    folder: Path, shape: Shape, target: Llama, dtype: torch.dtype | None = None
) -> tuple[Eagle3Weights, Tensor | None, Tensor | None]:
    """Weights, vocabulary [draft vocab] (None: the target's own) and embedding (None: the target's own).

    dtype: of the weights; None: the target's. A draft that has all of the target's tokens has them in the target's
    order, and its offsets are not read. An embedding in the file counts if it differs from the target's. Raises
    UserError for tensors that are missing, too many or of another shape.
    """
    found, size, hidden = tensor_shapes(folder), target.config.vocab_size, shape.layer.hidden_size
    dtype = target.dtype if dtype is None else dtype
    weights = empty_weights(shape, dtype, target.device)
    slots = published(shape, weights, SPECULATORS if any(name.startswith(SPECULATORS) for name in found) else AUTHORS)
    beside = {OFFSETS: (shape.draft_vocab,), KEPT: (size,), EMBEDDING: (size, hidden)}
    beside = {name: wanted for name, wanted in beside.items() if name in found}
    if shape.draft_vocab < size and OFFSETS not in found:
        raise UserError(f"method.checkpoint={folder}: {shape.draft_vocab} of the target's {size} tokens need {OFFSETS}")
    if hidden != shape.width and EMBEDDING not in found:
        sizes = f"hidden size {hidden} beside a target's {shape.width}"
        raise UserError(f"method.checkpoint={folder}: a draft model of {sizes} needs {EMBEDDING}")
    embedding = torch.empty(size, hidden, dtype=dtype, device=target.device) if EMBEDDING in found else None
    fill(folder, slots if embedding is None else {**slots, EMBEDDING: embedding}, beside)
    vocabulary = read_vocabulary(folder, target) if shape.draft_vocab < size else None
    own = target.weights.embedding
    same = embedding is not None and hidden == shape.width and torch.equal(embedding.to(own.dtype), own)
    return weights, vocabulary, None if same else embedding
