"""Llama-family decoder for one sequence, open at every layer.

Covers Llama 1/2/3, Vicuna, Mistral, Qwen2/2.5 (biases on q, k, v) and Qwen3 (normalised q and k), grouped-query heads
and tied embeddings. `run` takes any contiguous range of layers, which is what early exit needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.engine.attention import Mask, attend, choose_kernels
from methods.engine.kv_cache import KVCache
from methods.engine.matrix import PACKED_BYTES, Matrix, matrices
from methods.engine.unit import Caches, Rows, Unit


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model, independent of the family's way of writing it down."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    context: int
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"


@dataclass(kw_only=True)
class AttentionWeights:
    """Weights of one attention block. q, k and v read the same input, usually as wide as hidden, and are one matrix."""

    qkv: Matrix  # [(heads + 2 * kv_heads) * head_dim, input]
    output: Matrix  # [hidden, heads * head_dim]
    qkv_bias: Tensor | None = None  # [(heads + 2 * kv_heads) * head_dim]
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None  # [head_dim]


@dataclass(kw_only=True)
class FeedForwardWeights:
    """Weights of one SwiGLU block with its norm; gate and up are one matrix."""

    post_norm: Tensor  # [hidden]
    gate_up: Matrix  # [2 * intermediate, hidden]
    down: Matrix  # [hidden, intermediate]


@dataclass(kw_only=True)
class BlockWeights(AttentionWeights, FeedForwardWeights):
    """Weights of one decoder layer but for the norm of its input, which some draft models do not have."""


@dataclass(kw_only=True)
class LayerWeights(BlockWeights):
    """Weights of one decoder layer."""

    input_norm: Tensor  # [hidden]


@dataclass
class Weights:
    """All weights of a model; `lm_head` is the embedding itself when the two are tied."""

    embedding: Tensor  # [vocab, hidden]
    norm: Tensor  # [hidden]
    lm_head: Matrix  # [vocab, hidden]
    layers: list[LayerWeights] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """Every distinct tensor once."""
        head = self.lm_head.weight
        parts = [part for layer in self.layers for part in vars(layer).values() if part is not None]
        own = [self.embedding, self.norm] + ([] if head is self.embedding else [head])
        return own + [part.weight if isinstance(part, Matrix) else part for part in parts]

    def matrices(self) -> list[Matrix]:
        """Every matrix that states are multiplied with."""
        return matrices(self, *self.layers)


class Rope:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints (Su et al., arXiv 2104.09864)."""

    def __init__(self, config: ModelConfig, length: int, dtype: torch.dtype, device: torch.device) -> None:
        angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config))
        cos, sin = angles.cos(), angles.sin()
        # The first half rotates with -sin, the second with +sin: x * cos + swap(x) * signed_sin, and nothing is joined.
        self.cos = torch.cat((cos, cos), 1).to(device, dtype)  # [length, head_dim]
        self.signed_sin = torch.cat((-sin, sin), 1).to(device, dtype)

    def at(self, positions: Tensor) -> Rotation:
        """Factors for rows at the given positions [n]."""
        return Rotation(self.cos[positions].unsqueeze(1), self.signed_sin[positions].unsqueeze(1))


@dataclass(frozen=True)
class Rotation:
    """Rotary factors of n rows, [n, 1, head_dim] each."""

    cos: Tensor
    signed_sin: Tensor

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotate heads [n, any number of heads, head_dim]."""
        return torch.addcmul(heads * self.cos, heads.roll(heads.shape[-1] // 2, -1), self.signed_sin)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Rotary frequencies [head_dim / 2] in radians per position, scaled as the config says."""
    inverse = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    if scaling["rope_type"] == "linear":
        return inverse / scaling["factor"]
    if scaling["rope_type"] == "factors":
        return inverse / torch.tensor(scaling["factors"], dtype=torch.float32)
    # llama3: long wavelengths are stretched by `factor`, short ones kept, those between are blended.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse * (kept + (1 - kept) / scaling["factor"])


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, arXiv 1910.07467)."""
    size = states.shape[-1]
    if states.device.type != "cpu":
        return F.rms_norm(states, (size,), weight, eps)
    # torch has one kernel for layer norm on a CPU and seven small ones for this: 8 us against 14 for a row of 256. The
    # mean of (x, -x) is 0 and its variance the mean square of x, so layer norm of the two gives the same.
    return torch.layer_norm(torch.cat((states, -states), -1), (2 * size,), None, None, eps)[..., :size] * weight


def self_attention(
    normed: Tensor,
    residual: Tensor,
    weights: AttentionWeights,
    config: ModelConfig,
    rotation: Rotation,
    mask: Mask | None,
    cache: KVCache | None,
    layer: int,
) -> Tensor:
    """Attention over normed [n, input], added to residual [n, hidden]: [n, hidden]. `layer`: the place in the cache."""
    heads, kv_heads, head_dim, eps = config.num_heads, config.num_kv_heads, config.head_dim, config.norm_eps
    qkv = weights.qkv(normed, weights.qkv_bias).view(len(normed), -1, head_dim)
    query_keys, values = qkv.split_with_sizes((heads + kv_heads, kv_heads), 1)
    if weights.q_norm is not None and weights.k_norm is not None:
        query, keys = query_keys.split_with_sizes((heads, kv_heads), 1)
        query = rms_norm(query, weights.q_norm, eps)
        keys = rms_norm(keys, weights.k_norm, eps)
        query_keys = torch.cat((query, keys), 1)
    query, keys = rotation(query_keys).split_with_sizes((heads, kv_heads), 1)
    if cache is None:
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    else:
        keys, values = cache.append(layer, keys, values)
    return weights.output.add(residual, attend(query, keys, values, mask))


def feed_forward(hidden: Tensor, weights: FeedForwardWeights, config: ModelConfig) -> Tensor:
    """SwiGLU block, residual included: [n, hidden] -> [n, hidden]."""
    normed = rms_norm(hidden, weights.post_norm, config.norm_eps)
    gate, up = weights.gate_up(normed).chunk(2, -1)
    return weights.down.add(hidden, F.silu(gate) * up)


class Taps:
    """Collects the states before some layers, [n, hidden] each, while a pass runs through them.

    Layer num_layers stands for what the last one gives, before the final norm.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._states: dict[int, Tensor] = {}

    def see(self, layer: int, states: Tensor) -> None:
        """Keep the states if the layer is wanted."""
        if layer in self.layers:
            self._states[layer] = states

    def collected(self) -> tuple[Tensor, ...]:
        """The states in the order of `layers`. Those below the layer where a pass began are not among them."""
        return tuple(self._states[layer] for layer in self.layers if layer in self._states)


class Llama:
    """The target model: embed, run any range of layers, head.

    Example:
        states = model.run(model.embed(tokens), positions, cache, slice(0, 2))        # exit after layer 2
        logits = model.head(model.run(states, positions, cache, slice(2, None)))      # the rest, from there
    """

    uncaptured_passes = 0  # passes that `preparing` might have made ready, and did not
    unprepared = ""  # what is to be said of them

    def __init__(self, config: ModelConfig, weights: Weights, folder: Path | None = None) -> None:
        self.config = config
        self.folder = folder  # of the checkpoint, whose tokenizer some methods ask for
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self.packed = False
        self._units: dict[Hashable, Unit] = {}
        groups = config.num_heads // config.num_kv_heads
        self.kernels = choose_kernels(self.device, self.dtype, config.head_dim, groups)  # of attention, on a GPU
        self.rope = Rope(config, config.context, self.dtype, self.device)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(t.numel() * t.element_size() for t in self.weights.tensors())

    @property
    def step_bytes(self) -> int:
        """Bytes of the weights that a step reads: all but an embedding table of its own, of which it takes a row."""
        embedding, head = self.weights.embedding, self.weights.lm_head.weight
        return self.weight_bytes - (0 if head is embedding else embedding.numel() * embedding.element_size())

    def pack(self) -> None:
        """Copy the matrices for decoding on a CPU; nothing happens on other devices and to models over 1 GiB."""
        self.packed = self.weight_bytes <= PACKED_BYTES
        for matrix in self.weights.matrices() if self.packed else ():
            matrix.pack()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Around the turns of a warm-up: an engine that has something to prepare does it there."""
        yield

    def alike(self, config: ModelConfig, weights: Weights, folder: Path | None = None) -> Llama:
        """Another model on the same engine."""
        return type(self)(config, weights, folder)

    def new_cache(self, capacity: int, *, rows: int = 1, config: ModelConfig | None = None) -> KVCache:
        """An empty cache with `capacity` slots for every layer.

        rows: most rows of a pass behind the prompt's. config: a draft's, whose layers they are; None: this model's.
        """
        shape = config or self.config
        size = shape.num_layers, 2, shape.num_kv_heads, capacity, shape.head_dim
        return KVCache(torch.zeros(size, dtype=self.dtype, device=self.device), capacity)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [n] int64 -> [n, hidden]."""
        return F.embedding(tokens, self.weights.embedding)

    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: KVCache | None,
        layers: slice,
        mask: Mask | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Residual stream [n, hidden] through a range of layers.

        positions [n] int64 index the rotary table. With a cache the rows are appended to each layer of the range and
        attend to all it holds; mask [n, held slots], True = may attend, None = causal. Without a cache the rows see
        only each other, or with lengths for a mask only those of their own sequence. taps: where to put the states
        before some layers of the range, and those that leave it.
        """
        first, last, _ = layers.indices(self.config.num_layers)
        taps = taps or Taps(())
        taps.see(first, hidden)
        return (
            hidden if first >= last else self._pass(self.layers, first, last, hidden, positions, cache, mask, taps)[0]
        )

    def answer(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: KVCache | None,
        first: int = 0,
        mask: Mask | None = None,
        taps: Taps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`run` from layer `first` to the end and `head` as one: states behind the final norm [n, hidden], logits."""
        taps = taps or Taps(())
        taps.see(first, hidden)
        last = self.config.num_layers
        final, logits = self._pass(self._answer, first, last, hidden, positions, cache, mask, taps)
        return final, logits

    def _pass(
        self,
        work: Callable[..., tuple[Tensor, ...]],
        first: int,
        last: int,
        hidden: Tensor,
        positions: Tensor,
        cache: KVCache | None,
        mask: Mask | None,
        taps: Taps,
    ) -> list[Tensor]:
        """What is made of layers first to last, less what was tapped: the taps have seen it."""
        key = (work.__name__, first, last, taps.layers)
        if key not in self._units:
            run = partial(work, indices=range(first, last), wanted=taps.layers)
            self._units[key] = Unit(run, (id(self), *key), (range(first, last),))
        wanted = [layer for layer in range(first + 1, last + 1) if layer in taps.layers]
        results = list(self.through(self._units[key], (hidden,), positions, (cache,), mask))
        for layer in reversed(wanted):
            taps.see(layer, results.pop())
        return results

    def through(
        self, unit: Unit, inputs: Sequence[Tensor], positions: Tensor, caches: Caches, mask: Mask | None = None
    ) -> tuple[Tensor, ...]:
        """Rows at positions [n] through a unit of this model or of a draft: its results. Mask as in `run`.

        All rows are appended to the first cache with layers of the unit; to a later one all of them or only the last.
        """
        places = zip(caches, unit.layers, strict=True)
        return unit.run(*inputs, *(Rows.of(positions, cache, mask, layers) for cache, layers in places))

    def layers(self, hidden: Tensor, rows: Rows, indices: range, wanted: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """States [n, hidden] behind the last of these layers, and before each wanted one: what a unit does."""
        if not indices:
            return (hidden,)
        config, seen = self.config, []
        mask = rows.added(hidden, config.num_heads // config.num_kv_heads)
        rotation = self.rope.at(rows.positions)
        for layer in indices:
            weights = self.weights.layers[layer]
            normed = rms_norm(hidden, weights.input_norm, config.norm_eps)
            hidden = self_attention(normed, hidden, weights, config, rotation, mask, rows.cache, layer)
            hidden = feed_forward(hidden, weights, config)
            if layer + 1 in wanted:
                seen.append(hidden)
        return hidden, *seen

    def _answer(self, hidden: Tensor, rows: Rows, indices: range, wanted: Sequence[int]) -> tuple[Tensor, ...]:
        """The same, with the final norm and the head for the states behind the last layer."""
        hidden, *seen = self.layers(hidden, rows, indices, wanted)
        final = self.norm(hidden)
        return final, self.lm_head(final), *seen

    def norm(self, hidden: Tensor) -> Tensor:
        """Final RMSNorm, [n, hidden] -> [n, hidden]."""
        return rms_norm(hidden, self.weights.norm, self.config.norm_eps)

    def lm_head(self, normed: Tensor) -> Tensor:
        """Normalised states [n, hidden] -> logits [n, vocab]."""
        return self.weights.lm_head(normed)

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm and LM head: [n, hidden] -> logits [n, vocab]."""
        return self.lm_head(self.norm(hidden))
