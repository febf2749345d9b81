"""EAGLE-3's drafts as published, slowly, and its checkpoints in three dialects written from the same weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from methods.engine.llama import Llama, ModelConfig
from tests.methods.eagle_reference import Reference, Tensors, block, draft_config, rms, write_draft

HEAD_DIM = 12  # of 4 heads on 64: not hidden / heads


def random_eagle3(target: ModelConfig, draft_vocab: int, *, kv_heads: int = 2, seed: int = 0) -> Tensors:
    """The authors' tensors, random, for a layer with 4 heads; offsets only where the vocabulary is reduced."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = target.hidden_size, target.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.self_attn.q_proj.weight": (4 * HEAD_DIM, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (kv_heads * HEAD_DIM, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (kv_heads * HEAD_DIM, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, 4 * HEAD_DIM),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "lm_head.weight": (draft_vocab, hidden),
    }
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        tensors[f"midlayer.{name}.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    tensors["norm.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
    return tensors


def with_vocabulary(tensors: Tensors, ids: Sequence[int], size: int) -> Tensors:
    """The tensors with the offsets and the marks of a reduced vocabulary."""
    kept = torch.zeros(size, dtype=torch.bool)
    kept[list(ids)] = True
    return {**tensors, "d2t": torch.tensor(ids) - torch.arange(len(ids)), "t2d": kept}


def draft_config3(target: ModelConfig, draft_vocab: int, *, kv_heads: int = 2, **changes: Any) -> dict[str, Any]:
    """The authors' config.json."""
    return draft_config(target, kv_heads=kv_heads, **{"head_dim": HEAD_DIM, "draft_vocab_size": draft_vocab, **changes})


def write_speculators(folder: Path, tensors: Tensors, config: dict[str, Any], **changes: Any) -> Path:
    """The same in the dialect of the library speculators."""
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {name.replace("midlayer.", "layers.0."): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    inner = {key: value for key, value in config.items() if key not in ("draft_vocab_size", "architectures")}
    outer = {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": config["draft_vocab_size"],
        "norm_before_residual": False,
        "speculators_model_type": "eagle3",
        "transformer_layer_config": inner,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(outer))
    return folder


def write_specforge(folder: Path, tensors: Tensors, config: dict[str, Any], **changes: Any) -> Path:
    """The same in SpecForge's dialect."""
    return write_draft(folder, tensors, {**config, "architectures": ["LlamaForCausalLMEagle3"], **changes})


def tapped(target: Llama, tokens: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """The target's states before some layers, [n, hidden] each, none of them normed."""
    with torch.no_grad():
        embedded, positions = target.embed(tokens), torch.arange(len(tokens))
        return [target.run(embedded, positions, None, slice(0, tap)) for tap in taps]


class Reference3(Reference):
    """EAGLE-3's; tensors are the authors', and those of the options. `tree` and acceptance are EAGLE-2's."""

    def __init__(
        self, target: Llama, tensors: Tensors, config: dict[str, Any], taps: Sequence[int], *options: str
    ) -> None:
        super().__init__(target, tensors, config)
        self.options, self.eps = options, config["rms_norm_eps"]
        self.tapped = cache(lambda tokens: tapped(target, torch.tensor(tokens), taps))  # the same for every path

    def weight(self, name: str) -> Tensor:
        return self.tensors[f"{name}.weight"].to(self.target.dtype)

    def joined(self, tokens: Sequence[int]) -> Tensor:
        states = self.tapped(tuple(tokens))
        if "fc_norm" in self.options:
            states = [rms(state, self.weight(f"fc_norm.{i}"), self.eps) for i, state in enumerate(states)]
        state = torch.cat(states, -1)
        if "norm_before_fc" in self.options:
            state = rms(state, self.weight("input_norm"), self.eps)
        return state @ self.weight("fc").T

    def outputs(self, following: Tensor, features: Tensor) -> Tensor:
        """Of n pairs in a row: [n, hidden]. Pair i stands at position i."""
        weights = {n.removeprefix("midlayer."): t.to(features.dtype) for n, t in self.tensors.items()}
        table = self.tensors.get("embed_tokens.weight", self.target.weights.embedding).to(features.dtype)
        normed = rms(features, weights["hidden_norm.weight"], self.eps)
        state = torch.cat((rms(table[following], weights["input_layernorm.weight"], self.eps), normed), -1)
        residual = normed if "norm_before_residual" in self.options else features
        outputs = block(weights, self.config, state, residual)
        return rms(outputs, self.weight("norm"), self.eps) if "norm_output" in self.options else outputs

    def head(self, outputs: Tensor) -> Tensor:
        """[n, vocab]; tokens that the draft does not know are impossible."""
        plain = {"norm_output", "no_head_norm"} & {*self.options}
        logits = (outputs if plain else rms(outputs, self.weight("norm"), self.eps)) @ self.weight("lm_head").T
        if "d2t" not in self.tensors:
            return logits
        ids = torch.arange(logits.shape[1]) + self.tensors["d2t"]
        everything = logits.new_full((len(logits), self.target.config.vocab_size), -torch.inf)
        return everything.index_copy(1, ids, logits)

    def logits(self, tokens: list[int], path: tuple[int, ...]) -> Tensor:
        """As Reference's: what a node on the path gives is the next feature, without fc."""
        pairs, following = self.joined(tokens[:-1]), torch.tensor([*tokens[1:], *path])
        output = pairs[:0]
        for count in range(len(pairs), len(following) + 1):
            output = self.outputs(following[:count], pairs)[-1:]
            pairs = torch.cat((pairs, output))
        return self.head(output)[0].float()

    def fit(self, texts: Sequence[Sequence[int]], steps: int) -> None:
        """Train the tensors on texts of tokens that the draft knows: right at times, wrong at times."""
        learnt = {n: t.double().requires_grad_() for n, t in self.tensors.items() if t.is_floating_point()}
        self.tensors |= learnt
        optimizer = torch.optim.Adam(learnt.values(), lr=0.01)
        for _ in range(steps):
            loss = torch.zeros((), dtype=torch.float64)
            for text in map(torch.tensor, texts):
                logits = self.head(self.outputs(text[1:-1], self.joined(text[:-2].tolist())))
                known = logits.detach().gather(1, text[2:, None])[:, 0] > -torch.inf
                loss = loss + F.cross_entropy(logits[known], text[2:][known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.tensors |= {name: tensor.detach().float() for name, tensor in learnt.items()}
