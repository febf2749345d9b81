"""EAGLE-3: a layer that reads the target early, in the middle and late (Li et al., arXiv 2503.01840, section 3).

The states before three of the target's layers, none of them normed, become one feature. What the layer gives needs to
imitate nothing: it was trained on its own outputs, and has a head of its own, often over a part of the vocabulary. The
tree is EAGLE-2's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.eagle2 import DynamicMethod
from methods.eagle3_formats import Eagle3Weights, Shape, read_shape, read_weights
from methods.engine.llama import Llama, Rope, feed_forward, rms_norm, self_attention
from methods.engine.matrix import matrices
from methods.engine.unit import Rows
from methods.files import Checkpoint


class Eagle3Model:
    """The draft model. vocabulary [draft vocab] int64: the target's id of each of its tokens, None for all of them.

    embedding [vocab, hidden]: its own, None for the target's.
    """

    def __init__(
        self,
        target: Llama,
        shape: Shape,
        weights: Eagle3Weights,
        vocabulary: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> None:
        self.target, self.shape, self.weights, self.vocabulary = target, shape, weights, vocabulary
        self.config, self.taps = shape.layer, shape.taps
        self.embedding = target.weights.embedding if embedding is None else embedding
        tensors = [part for part in vars(weights).values() if isinstance(part, Tensor)]
        own = [*tensors, *(matrix.weight for matrix in matrices(weights)), *([] if embedding is None else [embedding])]
        self.extra_parameters = sum(tensor.numel() for tensor in own)
        self.rope = Rope(self.config, self.config.context, weights.norm.dtype, target.device)

    @classmethod
    def load(cls, folder: Path, target: Llama) -> Eagle3Model:
        """Read a checkpoint of any dialect. Raises UserError when it is broken or does not fit the target."""
        shape = read_shape(folder, target)
        model = cls(target, shape, *read_weights(folder, shape, target))
        for matrix in matrices(model.weights) if target.packed else ():
            matrix.pack()
        return model

    def features(self, tapped: tuple[Tensor, ...]) -> Tensor:
        """The target's states [n, width] before each of the taps, as one: [n, hidden]."""
        weights, eps = self.weights, self.config.norm_eps
        if weights.tap_norms is not None:
            tapped = tuple(rms_norm(states, norm, eps) for states, norm in zip(tapped, weights.tap_norms, strict=True))
        joined = torch.cat(tapped, -1)
        if weights.joined_norm is not None:
            joined = rms_norm(joined, weights.joined_norm, eps)
        return weights.fc(joined)

    def run(self, tokens: Tensor, features: Tensor, rows: Rows) -> Tensor:
        """As DraftModel says: the layer reads embedding and feature, and adds to the feature."""
        config, weights = self.config, self.weights
        embedded = F.embedding(tokens, self.embedding).to(features.dtype)
        normed = rms_norm(features, weights.hidden_norm, config.norm_eps)
        joined = torch.cat((rms_norm(embedded, weights.input_norm, config.norm_eps), normed), -1)
        residual = normed if self.shape.norm_before_residual else features
        mask = rows.added(features, config.num_heads // config.num_kv_heads)
        states = self_attention(joined, residual, weights, config, self.rope.at(rows.positions), mask, rows.cache, 0)
        states = feed_forward(states, weights, config)
        return self._norm(states) if self.shape.normed_outputs else states

    def head_input(self, outputs: Tensor) -> Tensor:
        """Outputs [n, hidden] -> what the head reads [n, hidden]."""
        shape = self.shape
        return self._norm(outputs) if shape.normed_head and not shape.normed_outputs else outputs

    def logits(self, outputs: Tensor) -> Tensor:
        """By its own head, [n, draft vocab]."""
        return self.weights.lm_head(self.head_input(outputs))

    def _norm(self, states: Tensor) -> Tensor:
        return rms_norm(states, self.weights.norm, self.config.norm_eps)


class Eagle3(DynamicMethod):
    """EAGLE-3's draft model under a dynamic tree; checkpoint: its folder or hub id, the rest as DynamicMethod says."""

    def __init__(
        self,
        target: Llama,
        *,
        checkpoint: Annotated[Path, Checkpoint("an EAGLE-3 draft model")],
        tree: Literal["dynamic", "chain"],
        top_k: int,
        depth: int,
        nodes: int,
    ) -> None:
        super().__init__(Eagle3Model.load(Path(checkpoint), target), tree=tree, top_k=top_k, depth=depth, nodes=nodes)
