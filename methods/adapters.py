"""The networks that turn Kangaroo's early exit into a draft model: the published adapter and the others of Table 2.

Liu et al., arXiv 2404.18911, section 3.1 and Table 2. A checkpoint is a folder with a one-layer LlamaConfig and tensors
under that layer's usual names; an adapter that is not the published one says so in its config's `variant`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.draft_vocabulary import OFFSETS, offsets, read_vocabulary
from methods.engine.checkpoint import fill, read_config
from methods.engine.config import read_json
from methods.engine.llama import (
    AttentionWeights,
    FeedForwardWeights,
    Llama,
    ModelConfig,
    Rope,
    feed_forward,
    rms_norm,
    self_attention,
)
from methods.engine.matrix import Matrix, new_matrix
from methods.engine.unit import Rows
from methods.errors import UserError

Variant = Literal["kangaroo", "kangaroo_head", "one_layer_transformer", "mlp_only"]
PUBLISHED: Variant = "kangaroo"


@dataclass(frozen=True)
class Parts:
    """What an adapter has between its input norm and its final norm, and whether it has an LM head too."""

    attention: bool = False
    feed_forward: bool = False  # SwiGLU with its norm, as in a layer of the target
    linears: bool = False  # two square linears around a SiLU, with a residual
    own_head: bool = False  # an LM head besides the target's


VARIANTS: dict[Variant, Parts] = {  # extra parameters at hidden size 4096, SwiGLU 11008 wide and vocabulary 32000
    PUBLISHED: Parts(attention=True),  # 67 M
    "kangaroo_head": Parts(attention=True, own_head=True),  # 198 M
    "one_layer_transformer": Parts(attention=True, feed_forward=True),  # 202 M
    "mlp_only": Parts(linears=True, own_head=True),  # 165 M
}


class Adapter(nn.Module):
    """Exit-layer states -> states for the LM head; with attention, over a KV cache of its own.

    config: shape of the attention and SwiGLU blocks, usually the target's own; vocabulary [draft vocab] int64: the
    target's tokens that an own head knows, None for all. Matrices that read the same input are one; `published` speaks
    the names of checkpoints.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        variant: Variant,
        dtype: torch.dtype,
        device: torch.device,
        vocabulary: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.variant, self.parts = config, variant, VARIANTS[variant]
        hidden, attention = config.hidden_size, config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.qkv_split = (attention, keys, keys)
        self.groups = config.num_heads // config.num_kv_heads

        def norm() -> nn.Parameter:
            return nn.Parameter(torch.empty(hidden, dtype=dtype, device=device))

        def matrix(outputs: int, inputs: int) -> nn.Parameter:
            return nn.Parameter(new_matrix(outputs, inputs, dtype, device))

        self.matrices: list[Matrix] = []

        def linear(weight: nn.Parameter) -> Matrix:
            self.matrices.append(Matrix(weight))
            return self.matrices[-1]

        self.input_norm, self.norm = norm(), norm()
        if self.parts.attention:
            self.qkv, self.output = matrix(sum(self.qkv_split), hidden), matrix(hidden, attention)
            self.block = AttentionWeights(qkv=linear(self.qkv), output=linear(self.output))
        if self.parts.feed_forward:
            self.post_norm = norm()
            self.gate_up = matrix(2 * config.intermediate_size, hidden)
            self.down = matrix(hidden, config.intermediate_size)
            self.swiglu = FeedForwardWeights(
                post_norm=self.post_norm, gate_up=linear(self.gate_up), down=linear(self.down)
            )
        if self.parts.linears:
            self.first, self.second = matrix(hidden, hidden), matrix(hidden, hidden)
            self.linears = linear(self.first), linear(self.second)
        self.vocabulary = vocabulary
        size = config.vocab_size if vocabulary is None else len(vocabulary)
        self.lm_head = matrix(size, hidden) if self.parts.own_head else None
        self.head = None if self.lm_head is None else linear(self.lm_head)

    def published(self) -> dict[str, Tensor]:
        """The parameters under their names in a checkpoint, as views; the vocabulary's offsets among them."""
        layer: dict[str, Tensor] = {"input_layernorm": self.input_norm}
        if self.parts.attention:
            q, k, v = self.qkv.split(self.qkv_split)
            layer |= {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
            layer |= {"self_attn.o_proj": self.output}
        if self.parts.feed_forward:
            gate, up = self.gate_up.chunk(2)
            layer |= {"post_attention_layernorm": self.post_norm, "mlp.gate_proj": gate, "mlp.up_proj": up}
            layer |= {"mlp.down_proj": self.down}
        if self.parts.linears:
            layer |= {"linears.0": self.first, "linears.1": self.second}
        names: dict[str, Tensor] = {
            "norm.weight": self.norm,
            **{f"layers.0.{name}.weight": view for name, view in layer.items()},
        }
        if self.lm_head is not None:
            names["lm_head.weight"] = self.lm_head
        return names if self.vocabulary is None else {**names, OFFSETS: offsets(self.vocabulary)}

    def pack(self) -> None:
        """Copy the matrices for decoding, as `Llama.pack` does."""
        for matrix in self.matrices:
            matrix.pack()

    def forward(self, states: Tensor, rope: Rope, rows: Rows) -> Tensor:
        """Exit-layer states [n, hidden] -> states for the LM head [n, hidden]."""
        config = self.config
        normed = rms_norm(states, self.input_norm, config.norm_eps)
        if self.parts.attention:
            rotation, mask = rope.at(rows.positions), rows.added(states, self.groups)
            states = self_attention(normed, states, self.block, config, rotation, mask, rows.cache, 0)
        if self.parts.feed_forward:
            states = feed_forward(states, self.swiglu, config)
        if self.parts.linears:
            first, second = self.linears
            states = states + second(F.silu(first(normed)))
        return rms_norm(states, self.norm, config.norm_eps)

    @classmethod
    def load(cls, folder: Path, target: Llama, variant: Variant) -> Adapter:
        """Read an adapter's folder. Raises UserError when it is another variant, or does not fit the target."""
        found = str(read_json(folder / "config.json").get("variant", PUBLISHED))
        if found != variant:
            raise UserError(f"method.checkpoint={folder}: an adapter of variant {found}, but method.variant={variant}")
        own = read_config(folder)
        if own.num_layers != 1:
            raise UserError(f"method.checkpoint={folder}: an adapter has one layer, config.json says {own.num_layers}")
        config = replace(own, context=target.config.context, vocab_size=target.config.vocab_size)
        if config.hidden_size != target.config.hidden_size:
            raise UserError(
                f"method.checkpoint={folder}: adapter for hidden size {config.hidden_size}, "
                f"the target has {target.config.hidden_size}"
            )
        vocabulary = read_vocabulary(folder, target)
        if vocabulary is not None and not VARIANTS[variant].own_head:
            raise UserError(f"method.checkpoint={folder}: {OFFSETS} is for a head, and {variant} has none of its own")
        adapter = cls(config, variant=variant, dtype=target.dtype, device=target.device, vocabulary=vocabulary)
        views = adapter.published()
        beside = {OFFSETS: tuple(views.pop(OFFSETS).shape)} if vocabulary is not None else {}
        fill(folder, views, beside)
        if target.packed:
            adapter.pack()
        return adapter.requires_grad_(False)
