"""EAGLE: one layer goes on with the target's features and drafts a tree (Li et al., arXiv 2401.15077, section 4).

A feature is the target's state after its final norm. What the layer gives imitates the next one, so that the target's
LM head reads a token from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from methods.beam import best
from methods.decoder import Prefill
from methods.draft import Draft
from methods.engine.checkpoint import empty_block, fill, published_layer, read_config, tensor_shapes
from methods.engine.config import read_json
from methods.engine.llama import BlockWeights, Llama, ModelConfig, Rope, feed_forward, self_attention
from methods.engine.matrix import Matrix, matrices, new_matrix
from methods.engine.unit import Rows, Unit
from methods.errors import UserError
from methods.files import Checkpoint
from methods.follower import Follower, reading
from methods.trees import EAGLE_25, Level, by_depth, pick_tree

EMBEDDING = "embed_tokens.weight"  # in published checkpoints a copy of the target's


@dataclass(kw_only=True)
class EagleWeights(BlockWeights):
    """A linear that joins token and feature, and a decoder layer without its input norm."""

    fc: Matrix  # [hidden, 2 * hidden] of [embedding, feature]
    fc_bias: Tensor | None  # [hidden]


class EagleModel:
    """The draft model of EAGLE-1 and EAGLE-2, with the target's own embeddings and LM head.

    config: shape of its layer. Made with weights that are not initialised.
    """

    vocabulary: Tensor | None = None

    def __init__(self, config: ModelConfig, target: Llama, *, bias: bool, dtype: torch.dtype) -> None:
        self.config, self.target, device, hidden = config, target, target.device, config.hidden_size
        self.weights = EagleWeights(
            fc=Matrix(new_matrix(hidden, 2 * hidden, dtype, device)),
            fc_bias=torch.empty(hidden, dtype=dtype, device=device) if bias else None,
            **empty_block(config, hidden, dtype, device),
        )
        self.taps: tuple[int, ...] = (target.config.num_layers,)
        self.rope = Rope(config, config.context, dtype, device)
        self.extra_parameters = sum(tensor.numel() for tensor in self.published().values())

    def published(self) -> dict[str, Tensor]:
        """The weights under their names in a checkpoint, as views."""
        weights = self.weights
        layer = {f"layers.0.{name}": part for name, part in published_layer(self.config, weights).items()}
        bias = {} if weights.fc_bias is None else {"fc.bias": weights.fc_bias}
        return {"fc.weight": weights.fc.weight, **bias, **layer}

    @classmethod
    def load(cls, folder: Path, target: Llama) -> EagleModel:
        """Read a published checkpoint: config.json of a Llama of one layer, and pytorch_model.bin or model.safetensors.

        `bias` in config.json says whether fc has one (absent: true). Raises UserError when the weights contradict
        it, are incomplete or too many, and for a draft model that does not fit the target.
        """
        where, bias = f"method.checkpoint={folder}", read_json(folder / "config.json").get("bias", True)
        if not isinstance(bias, bool):
            raise UserError(f"{where}: config.json says bias={bias!r}; valid: true, false")
        own, theirs = read_config(folder), target.config
        if own.num_layers != 1:
            raise UserError(f"{where}: an EAGLE draft model has one layer, config.json says {own.num_layers}")
        for what, draft, wanted in (
            ("hidden size", own.hidden_size, theirs.hidden_size),
            ("a vocabulary of", own.vocab_size, theirs.vocab_size),
        ):
            if draft != wanted:
                raise UserError(f"{where}: a draft model for {what} {draft}, the target has {wanted}")
        config = replace(own, context=theirs.context, qkv_bias=False, qk_norm=False)
        model = cls(config, target, bias=bias, dtype=target.dtype)
        copied = EMBEDDING in tensor_shapes(folder)
        fill(folder, model.published(), {EMBEDDING: (theirs.vocab_size, theirs.hidden_size)} if copied else {})
        for matrix in matrices(model.weights) if target.packed else ():
            matrix.pack()
        return model

    def features(self, tapped: tuple[Tensor, ...]) -> Tensor:
        """What the last layer gives, [n, hidden], normed."""
        return self.target.norm(*tapped)

    def run(self, tokens: Tensor, features: Tensor, rows: Rows) -> Tensor:
        """As DraftModel says: fc([embedding; feature]), then the layer."""
        config, weights = self.config, self.weights
        joined = torch.cat((self.target.embed(tokens).to(features.dtype), features), -1)
        states = weights.fc(joined, weights.fc_bias)
        mask = rows.added(states, config.num_heads // config.num_kv_heads)
        states = self_attention(states, states, weights, config, self.rope.at(rows.positions), mask, rows.cache, 0)
        return feed_forward(states, weights, config)

    def logits(self, outputs: Tensor) -> Tensor:
        """By the target's LM head, without a norm: an output stands for a state that is normed already."""
        return self.target.lm_head(outputs)


class Eagle:
    """Drafts a fixed tree: of each node's choices by the draft model, the best.

    checkpoint: folder or hub id of the draft model. tree: mc_sim_7b_63 (EAGLE's 25 nodes of that name, not Medusa's),
    chain (its deepest branch), or a list of paths. Above temperature 0 a node's children are drawn without replacement,
    with the target's noise of that position. Raises UserError for a tree or a checkpoint that does not fit.
    """

    def __init__(
        self, target: Llama, *, checkpoint: Annotated[Path, Checkpoint("an EAGLE draft model")], tree: Any
    ) -> None:
        named = {"mc_sim_7b_63": EAGLE_25, "chain": tuple((0,) * depth for depth in range(1, 1 + len(EAGLE_25[-1])))}
        nodes = sorted(pick_tree(tree, named, target.config.vocab_size), key=len)
        self.model = EagleModel.load(Path(checkpoint), target)
        self.taps, self.extra_parameters = self.model.taps, self.model.extra_parameters
        self.width, self.max_rows = 1 + max(map(max, nodes)), 1 + len(nodes)
        self.levels = Level.build_all(nodes, self.width, target.device)
        self.trees = [tree.shape for tree in by_depth(nodes, self.width, target.device)]
        self.units = {sampled: self._units(sampled) for sampled in (False, True)}

    def start(self, prompt: list[int], prefill: Prefill) -> StaticDraft:
        """Run the draft model over the prompt."""
        return StaticDraft(self, prompt, prefill)

    def choose(self, scores: Tensor, level: Level) -> Tensor:
        """Scores [nodes run above, vocab] -> the level's tokens [n]."""
        return best(scores.float(), self.width)[1].flatten()[level.places]

    def _units(self, sampled: bool) -> list[Unit]:
        """Of each level, which ends with its tokens; with logits where noise, which no unit has, comes before those."""

        def read(level: Level, logits: Tensor) -> tuple[Tensor]:
            return (logits if sampled else self.choose(logits, level),)

        return [
            reading(self.model, partial(read, level), (id(self), depth, sampled), level=depth > 0)
            for depth, level in enumerate(self.levels)
        ]


class StaticDraft:
    """EAGLE-1 on one sequence."""

    def __init__(self, method: Eagle, prompt: list[int], prefill: Prefill) -> None:
        self.method, self.sampler = method, prefill.sampler
        self.follower = Follower(method.model, prompt, prefill, nodes=method.max_rows, deepest=len(method.levels))
        self.observe = self.follower.observe

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The tree, cut to the depth that the context has room for."""
        method, follower = self.method, self.follower
        levels, drafted = method.levels[:room], list[Tensor]()
        units = method.units[self.sampler.temperature > 0]
        outputs, found = follower.catch_up(units[0], tokens)
        for depth, level in enumerate(levels, 1):
            if self.sampler.temperature:
                found = method.choose(self.sampler.scores(found, len(tokens) + depth - 1), level)
            drafted.append(found)
            if depth < len(levels):
                inputs = found[level.runs], outputs[level.above]
                outputs, found = follower.level(units[depth], inputs, level.sees, depth)
        follower.end_tree()
        return Draft(tokens=torch.cat(drafted), tree=method.trees[len(levels) - 1])
