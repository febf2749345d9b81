"""EAGLE-1's and EAGLE-2's drafts as published, slowly: no cache, no tensors of trees.

Everything is computed anew, but for what the target says of the same whole text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.decoder import Drafter, Prefill, Verification
from methods.draft import Draft
from methods.engine.llama import Llama, ModelConfig
from methods.trees import Node

Tensors = dict[str, Tensor]
Paths = frozenset[tuple[int, ...]]  # of tokens, one for each node of a draft


def random_eagle(target: ModelConfig, *, kv_heads: int = 2, bias: bool = True, seed: int = 0) -> Tensors:
    """A published checkpoint's tensors, random, for a layer with 4 heads; the target's embeddings not among them."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = target.hidden_size, target.intermediate_size
    keys = hidden // 4 * kv_heads
    shapes = {
        "fc.weight": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "layers.0.self_attn.k_proj.weight": (keys, hidden),
        "layers.0.self_attn.v_proj.weight": (keys, hidden),
        "layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "layers.0.mlp.gate_proj.weight": (inner, hidden),
        "layers.0.mlp.up_proj.weight": (inner, hidden),
        "layers.0.mlp.down_proj.weight": (hidden, inner),
    }
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    tensors["layers.0.post_attention_layernorm.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    return tensors | ({"fc.bias": 0.1 * torch.randn(hidden, generator=generator)} if bias else {})


def draft_config(target: ModelConfig, *, kv_heads: int = 2, **changes: Any) -> dict[str, Any]:
    """Its config.json; a change to None takes the key away."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": target.hidden_size,
        "intermediate_size": target.intermediate_size,
        "max_position_embeddings": 64,  # less than the target's: rotary positions go as far as the target does
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
        "vocab_size": target.vocab_size,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def write_draft(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def layer(tensors: Tensors, config: dict[str, Any], joined: Tensor) -> Tensor:
    """[embedding; feature] of n pairs in a row [n, 2 * hidden] -> n outputs. Pair i stands at position i."""
    weights = {name.removeprefix("layers.0."): tensor.to(joined.dtype) for name, tensor in tensors.items()}
    state = joined @ weights["fc.weight"].T + weights.get("fc.bias", 0)
    return block(weights, config, state, state)


def block(weights: Tensors, config: dict[str, Any], state: Tensor, residual: Tensor) -> Tensor:
    """Attention over state [n, any], added to the residual [n, hidden], and SwiGLU with its norm."""
    count, heads, groups = len(state), config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim", config["hidden_size"] // heads)
    inverse = config.get("rope_theta", 10_000.0) ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(count).float(), inverse)

    def rotated(part: Tensor) -> Tensor:  # [n, heads, size]
        cos, sin = angles.cos()[:, None].to(part.dtype), angles.sin()[:, None].to(part.dtype)
        first, second = part.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    queries, keys, values = ((state @ weights[f"self_attn.{n}_proj.weight"].T).view(count, -1, size) for n in "qkv")
    queries, keys = rotated(queries), rotated(keys)
    mixed = []
    for head in range(heads):
        group = head // (heads // groups)
        scores = queries[:, head] @ keys[:, group].T / size**0.5
        hidden = torch.ones(count, count).triu(1).bool()
        mixed.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values[:, group])
    state = residual + torch.cat(mixed, -1) @ weights["self_attn.o_proj.weight"].T
    normed = rms(state, weights["post_attention_layernorm.weight"], config["rms_norm_eps"])
    gate, up = normed @ weights["mlp.gate_proj.weight"].T, normed @ weights["mlp.up_proj.weight"].T
    return state + (F.silu(gate) * up) @ weights["mlp.down_proj.weight"].T


def rms(state: Tensor, weight: Tensor, eps: float) -> Tensor:
    return state / (state.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def fit(target: Llama, tensors: Tensors, config: dict[str, Any], texts: Sequence[Sequence[int]], steps: int) -> Tensors:
    """The draft after some training on texts: right at times, wrong at times."""
    learnt = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    optimizer = torch.optim.Adam(learnt.values(), lr=0.01)
    for _ in range(steps):
        loss = torch.zeros((), dtype=torch.float64)
        for text in texts:
            tokens = torch.tensor(text)
            joined = torch.cat((target.embed(tokens[1:-1]), features(target, tokens[:-2])), -1)
            loss = loss + F.cross_entropy(target.lm_head(layer(learnt, config, joined)), tokens[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach().float() for name, tensor in learnt.items()}


def features(target: Llama, tokens: Tensor) -> Tensor:
    """The target's states after its final norm [n, hidden]."""
    with torch.no_grad():
        hidden = target.run(target.embed(tokens), torch.arange(len(tokens)), None, slice(0, None))
        return target.norm(hidden)


class Reference:
    """What is drafted after some tokens, as a set of paths of tokens."""

    def __init__(self, target: Llama, tensors: Tensors, config: dict[str, Any]) -> None:
        self.target, self.tensors, self.config = target, tensors, config
        self.features = cache(lambda tokens: features(target, torch.tensor(tokens)))  # the same for every path

    def says(self, tokens: Sequence[int]) -> int:
        """The target's choice after some tokens."""
        return int(self.target.lm_head(self.features(tuple(tokens))[-1:]).argmax())

    def accepted(self, tokens: list[int], drafted: Paths) -> list[int]:
        """What a step emits: the longest path that the target agrees with, and its next token."""
        emitted = [self.says(tokens)]
        while tuple(emitted) in drafted:
            emitted.append(self.says([*tokens, *emitted]))
        return emitted

    def logits(self, tokens: list[int], path: tuple[int, ...]) -> Tensor:
        """The draft model's logits [vocab] behind a path of the tree."""
        pairs, following = self.features(tuple(tokens[:-1])), [*tokens[1:], *path]
        output = pairs[:0]
        embedded = self.target.embed(torch.tensor(following))
        for count in range(len(pairs), len(following) + 1):  # what a node on the path gives is the next feature
            output = layer(self.tensors, self.config, torch.cat((embedded[:count], pairs), -1))[-1:]
            pairs = torch.cat((pairs, output))
        return self.target.lm_head(output)[0].float()

    def static(self, tokens: list[int], room: int, tree: Sequence[Node]) -> Paths:
        """EAGLE-1: a node takes its choice of what the draft model says behind its parent."""
        filled: dict[Node, tuple[int, ...]] = {(): ()}
        for node in sorted(tree, key=len):
            if len(node) <= room:
                above = filled[node[:-1]]
                filled[node] = (*above, ranked(self.logits(tokens, above))[node[-1]])
        return frozenset(filled.values()) - {()}

    def dynamic(self, tokens: list[int], room: int, *, top_k: int, depth: int, nodes: int) -> Paths:
        """EAGLE-2: the best of all that the best nodes of each level say."""
        found: list[tuple[tuple[int, ...], np.float32]] = []
        frontier: list[tuple[tuple[int, ...], np.float32]] = [((), np.float32(0))]
        for _ in range(min(depth + 1, room)):
            level = []
            for path, score in frontier:
                chances = self.logits(tokens, path).log_softmax(-1)
                level += [((*path, t), np.float32(chances[t].item()) + score) for t in ranked(chances)[:top_k]]
            found += level
            frontier = sorted(level, key=lambda node: -node[1])[:top_k]  # a stable sort: of equals, the earlier
        return frozenset(path for path, _ in sorted(found, key=lambda node: -node[1])[: nodes - 1])


def ranked(values: Tensor) -> list[int]:
    """Indices from the largest value to the smallest; of equals, the lower index first."""
    return sorted(range(len(values)), key=lambda index: -values[index].item())


class Recording:
    """A method, and what each of its drafts was made of: (tokens, room, paths)."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.taps, self.max_rows, self.extra_parameters = method.taps, method.max_rows, method.extra_parameters
        self.drafts: list[tuple[list[int], int, Paths]] = []

    def start(self, prompt: list[int], prefill: Prefill) -> Drafter:
        inner, drafts = self.method.start(prompt, prefill), self.drafts

        class Recorder:
            def propose(self, tokens: list[int], room: int) -> Draft:
                draft = inner.propose(tokens, room)
                found = paths(draft)
                assert len(found) == draft.tree.size, "a candidate stands there twice"
                drafts.append((list(tokens), room, found))
                return draft

            def observe(self, verification: Verification) -> None:
                inner.observe(verification)

        return Recorder()


def paths(draft: Draft) -> Paths:
    """The draft's nodes as paths of tokens."""
    rows, tokens = draft.tree.paths.tolist(), draft.tokens.tolist()
    depths = draft.tree.depths.tolist()
    return frozenset(
        tuple(tokens[row - 1] for row in path[1 : depth + 1]) for path, depth in zip(rows, depths, strict=True) if depth
    )
