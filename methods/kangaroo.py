"""Kangaroo: self-speculative decoding via double early exiting (Liu et al., arXiv 2404.18911).

The draft model is the target's first layers 0..exit_layer, one small attention adapter, and the target's LM head.
Drafting exits early a second time: it stops once the draft model's confidence falls below eta.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.decoder import Prefill, Verification
from methods.draft import Draft, Tree
from methods.engine.checkpoint import read_config, read_tensors, resolve
from methods.engine.kv_cache import KVCache
from methods.engine.llama import (
    AttentionWeights,
    Llama,
    ModelConfig,
    Rope,
    attention_mask,
    new_matrix,
    self_attention,
)
from methods.errors import UserError


class Adapter(nn.Module):
    """The adapter network A (section 3.1): input norm, attention with its own KV cache, residual, final norm.

    At hidden size 4096 it has 4 * 4096^2 = 67 M parameters. q, k and v are one matrix; `published` and
    `load_published` speak the names of the published checkpoints.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        hidden, attention = config.hidden_size, config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.config, self.qkv_split = config, (attention, keys, keys)

        self.input_norm = nn.Parameter(torch.empty(hidden, dtype=dtype, device=device))
        self.qkv = nn.Parameter(new_matrix(sum(self.qkv_split), hidden, dtype, device))
        self.output = nn.Parameter(new_matrix(hidden, attention, dtype, device))
        self.norm = nn.Parameter(torch.empty(hidden, dtype=dtype, device=device))
        self.weights = AttentionWeights(input_norm=self.input_norm, qkv=self.qkv, output=self.output)

    def published(self) -> dict[str, Tensor]:
        """The parameters under their published names, as views."""
        q, k, v = self.qkv.split(self.qkv_split)
        return {
            "norm.weight": self.norm,
            "layers.0.input_layernorm.weight": self.input_norm,
            "layers.0.self_attn.q_proj.weight": q,
            "layers.0.self_attn.k_proj.weight": k,
            "layers.0.self_attn.v_proj.weight": v,
            "layers.0.self_attn.o_proj.weight": self.output,
        }

    @torch.no_grad()
    def load_published(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors given under their published names."""
        for name, view in self.published().items():
            view.copy_(tensors[name])

    def forward(
        self, states: Tensor, rope: Rope, positions: Tensor, cache: KVCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Exit-layer states [n, hidden] -> states for the LM head [n, hidden].

        With a cache, the rows are appended to it and see all it holds; mask [n, held slots], None = causal.
        """
        config = self.config
        past = cache.lengths[0] if cache else 0
        mask = attention_mask(mask, len(states), past, config.num_heads // config.num_kv_heads, states.device)
        mixed = self_attention(states, self.weights, config, rope.at(positions), mask, cache, 0)
        return F.rms_norm(mixed, (config.hidden_size,), self.norm, config.norm_eps)

    @classmethod
    def load(cls, folder: Path, target: Llama) -> Adapter:
        """Read config.json and weights of a published adapter. Raises UserError when it does not fit the target."""
        config = replace(read_config(folder), context=target.config.context)
        if config.hidden_size != target.config.hidden_size:
            raise UserError(
                f"method.checkpoint={folder}: adapter for hidden size {config.hidden_size}, "
                f"the target has {target.config.hidden_size}"
            )
        adapter = cls(config, dtype=target.dtype, device=target.device)
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.published().items()}
        adapter.load_published(read_tensors(folder, shapes, device=target.device, dtype=target.dtype))
        return adapter.requires_grad_(False)


class Kangaroo:
    """Drafts a chain of at most gamma tokens with the target's first layers and the adapter (section 3.2).

    exit_layer: number of target layers in the draft model (l in the paper; 0 puts the adapter on the embeddings).
    gamma: most tokens drafted a step. eta: confidence in [0, 1] below which drafting stops; the token that fell below
    is still verified. checkpoint: folder or hub id of the adapter. Raises UserError for values out of range.
    """

    def __init__(self, target: Llama, *, exit_layer: int, gamma: int, eta: float, checkpoint: str | None) -> None:
        layers = target.config.num_layers
        if gamma < 1:
            raise UserError(f"method.gamma={gamma}: must be at least 1")
        if not 0 <= eta <= 1:
            raise UserError(f"method.eta={eta}: must be between 0 and 1")
        if not 0 <= exit_layer <= layers:
            raise UserError(f"method.exit_layer={exit_layer}: must be between 0 and the model's {layers} layers")
        if checkpoint is None:
            raise UserError("method.checkpoint: this model has no adapter configured, give a folder or a hub id")
        self.target, self.gamma, self.eta = target, gamma, eta
        self.tap_layer, self.max_rows = exit_layer, gamma + 1
        self.adapter = Adapter.load(resolve(checkpoint, key="method.checkpoint"), target)
        self.extra_parameters = sum(p.numel() for p in self.adapter.parameters())
        config = self.adapter.config
        self.rope = Rope(config, config.context, target.dtype, target.device)
        self.positions = torch.arange(config.context, device=target.device)
        self.adapter_cache = KVCache(
            layers=1,
            kv_heads=config.num_kv_heads,
            capacity=config.context,
            head_dim=config.head_dim,
            dtype=target.dtype,
            device=target.device,
        )

    def start(self, prompt: Tensor, prefill: Prefill) -> None:
        """Run the adapter over the exit-layer states of the whole prompt."""
        self.cache = prefill.cache
        self.adapter_cache.reset()
        self._adapt(prefill.tapped)
        self.unseen = prefill.tapped[:0]

    def propose(self, tokens: list[int], room: int) -> Draft:
        """Draft until the confidence falls below eta, or gamma tokens, or the context is full."""
        base = len(tokens) - 1
        states = [self._exit_state(torch.full((1,), tokens[-1], device=self.target.device), base)]
        new_rows = torch.cat((self.unseen, states[0]))
        drafted: list[Tensor] = []
        while len(drafted) < min(self.gamma, room):
            logits = self.target.lm_head(self._adapt(new_rows)[-1:])
            confidence, token = torch.softmax(logits.float(), -1).max(-1)
            drafted.append(token)
            states.append(self._exit_state(token, base + len(drafted)))
            new_rows = states[-1]
            if confidence.item() < self.eta:
                break
        self.base, self.states = base, torch.cat(states)
        tree = Tree.chain(len(drafted), self.target.device)
        return Draft(tokens=torch.cat(drafted), tree=tree, hidden=self.states)

    def observe(self, verification: Verification) -> None:
        """Drop rejected rows from the adapter's cache; note the accepted state it never saw, if all were accepted."""
        accepted = len(verification.path)
        seen = self.adapter_cache.lengths[0] - self.base
        self.adapter_cache.truncate(self.base + accepted)
        self.unseen = self.states[seen:accepted]

    def _exit_state(self, token: Tensor, position: int) -> Tensor:
        """State [1, hidden] of token [1] after the exit layer."""
        positions = self.positions[position : position + 1]
        return self.target.run(self.target.embed(token), positions, self.cache, slice(0, self.tap_layer))

    def _adapt(self, states: Tensor) -> Tensor:
        start = self.adapter_cache.lengths[0]
        return self.adapter(states, self.rope, self.positions[start : start + len(states)], self.adapter_cache)
