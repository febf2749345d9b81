"""Hydra: prediction heads that know the tokens drafted before them (Ankner et al., arXiv 2402.05109, sections 3 and 4).

Hydra++, the published one, has a decoder layer of its own before the heads; plain Hydra reads the target's state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.beam import best
from methods.decoder import Prefill, Verification
from methods.draft import Draft, upload
from methods.engine.checkpoint import empty_weights, fill, published_layer, tensor_shapes
from methods.engine.config import read_json
from methods.engine.llama import Llama, Weights
from methods.engine.matrix import Matrix, matrices, new_matrix
from methods.engine.unit import Rows, Unit
from methods.errors import UserError
from methods.files import Checkpoint
from methods.trees import MC_SIM_7B_63, Level, by_depth, pick_tree

PREFIX = "prefix_embeding_layer"  # as it is spelt in published checkpoints
# Copies of the target's embedding, which the authors' trainer writes because modules of theirs hold it.
UNUSED = (f"{PREFIX}.embed_tokens.weight", "input_embed_fn.weight")
ARCHITECTURES = {"mlp": (0, 1, ""), "prefix-mlp": (1, 2, ".1")}  # first block, distance of blocks, where the head is


@dataclass
class Head:
    """One head: (k + 2) * hidden numbers -> a block that narrows them, one block `repeats` times, logits."""

    narrow: Matrix  # [hidden, (k + 2) * hidden] of [state, embedding of the pending token, ... of the k-th drafted]
    narrow_bias: Tensor
    residual: Matrix  # the same shape: the narrowing block's own residual
    residual_bias: Tensor
    block: Matrix | None  # [hidden, hidden]
    block_bias: Tensor | None
    lm_head: Matrix  # [vocab, hidden]
    lm_bias: Tensor

    def __call__(self, states: Tensor, repeats: int, dropout: float = 0.0) -> Tensor:
        """[n, (k + 2) * hidden] -> states for the head's linear [n, hidden].

        dropout: share of the numbers that every block, and the linear, do not see; for training, as published.
        """

        def seen(hidden: Tensor) -> Tensor:
            return F.dropout(hidden, dropout) if dropout else hidden

        states = seen(states)
        hidden = self.residual(states, self.residual_bias) + F.silu(self.narrow(states, self.narrow_bias))
        if self.block is not None:
            for _ in range(repeats):
                hidden = seen(hidden)  # the block's residual lacks them too
                hidden = hidden + F.silu(self.block(hidden, self.block_bias))
        return seen(hidden)

    def logits(self, states: Tensor, repeats: int) -> Tensor:
        """[n, (k + 2) * hidden] -> [n, vocab]."""
        return self.lm_head(self(states, repeats), self.lm_bias)


class HydraModel:
    """Prefix layer and heads, with the target's embeddings. Made with weights that are not initialised.

    architecture: of ARCHITECTURES. layers: blocks of a head, of which all but the first are one and the same.
    """

    def __init__(self, target: Llama, *, architecture: str, heads: int, layers: int, dtype: torch.dtype) -> None:
        self.target, self.architecture, self.repeats = target, architecture, layers - 1
        hidden, vocab, device = target.config.hidden_size, target.config.vocab_size, target.device

        bias = partial(torch.empty, dtype=dtype, device=device)

        def matrix(outputs: int, inputs: int) -> Matrix:
            return Matrix(new_matrix(outputs, inputs, dtype, device))

        self.heads = [
            Head(
                narrow=matrix(hidden, (k + 2) * hidden),
                narrow_bias=bias(hidden),
                residual=matrix(hidden, (k + 2) * hidden),
                residual_bias=bias(hidden),
                block=matrix(hidden, hidden) if layers > 1 else None,
                block_bias=bias(hidden) if layers > 1 else None,
                lm_head=matrix(vocab, hidden),
                lm_bias=bias(vocab),
            )
            for k in range(heads)
        ]
        self.prefix = _prefix(target, dtype) if architecture == "prefix-mlp" else None
        self.extra_parameters = sum(tensor.numel() for tensor in self.published().values())

    def published(self) -> dict[str, Tensor]:
        """The weights under their names in a checkpoint, as views, each once."""
        first, distance, end = ARCHITECTURES[self.architecture]
        names: dict[str, Tensor | Matrix | None] = {}
        for k, head in enumerate(self.heads):
            for part, weight, vector in (
                (f"hydra_mlp.{k}.{first}.linear", head.narrow, head.narrow_bias),
                (f"hydra_mlp.{k}.{first}.res_connection", head.residual, head.residual_bias),
                (f"hydra_mlp.{k}.{first + distance}.linear", head.block, head.block_bias),
                (f"hydra_lm_head.{k}{end}", head.lm_head, head.lm_bias),
            ):
                names |= {f"{part}.weight": weight, f"{part}.bias": vector}
        if self.prefix is not None:
            (layer,) = self.prefix.weights.layers
            names |= {f"{PREFIX}.layers.0.{n}": t for n, t in published_layer(self.prefix.config, layer).items()}
            names |= {f"{PREFIX}.layers.0.input_layernorm.weight": layer.input_norm}
            names |= {f"{PREFIX}.norm.weight": self.prefix.weights.norm}
        return {n: p.weight if isinstance(p, Matrix) else p for n, p in names.items() if p is not None}

    def aliases(self) -> dict[str, str]:
        """The other names under which a checkpoint repeats the block that a head has several times: alias -> name."""
        first, distance, _ = ARCHITECTURES[self.architecture]
        places = [first + distance * block for block in range(1, 1 + self.repeats)]
        return {
            f"hydra_mlp.{k}.{again}.linear.{kind}": f"hydra_mlp.{k}.{places[0]}.linear.{kind}"
            for k in range(len(self.heads))
            for again in places[1:]
            for kind in ("weight", "bias")
        }

    @classmethod
    def load(cls, folder: Path, target: Llama) -> HydraModel:
        """Read a published checkpoint: config.json and hydra_lm_head.pt.

        Raises UserError for heads that are no Hydra's, are incomplete or too many, and for ones that do not fit.
        """
        where, raw = f"method.checkpoint={folder}", read_json(folder / "config.json")
        heads, layers = raw.get("hydra_num_heads", 4), raw.get("hydra_num_layers", 1)
        for key, value in (("hydra_num_heads", heads), ("hydra_num_layers", layers)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
                raise UserError(f"{where}: config.json says {key}={value!r}; valid: 1 to 64")
        architecture = raw.get("hydra_head_arch", "mlp")
        if architecture not in ARCHITECTURES:
            valid = ", ".join(ARCHITECTURES)
            raise UserError(f"{where}: hydra_head_arch={architecture!r} is not supported; valid: {valid}")
        if raw.get("grounded_heads", False) is not True:
            raise UserError(f"{where}: heads that are not grounded are Medusa's (method=medusa), not Hydra's")
        if raw.get("hidden_state_offset", 0) != 0:
            raise UserError(f"{where}: hidden_state_offset={raw['hidden_state_offset']!r} is not supported; 0 is")
        model = cls(target, architecture=architecture, heads=heads, layers=layers, dtype=target.dtype)
        slots, found = model.published(), tensor_shapes(folder)
        again = {alias: torch.empty_like(slots[name]) for alias, name in model.aliases().items() if alias in found}
        beside = {name: tuple(target.weights.embedding.shape) for name in UNUSED if name in found}
        fill(folder, {**slots, **again}, beside)
        for alias, tensor in again.items():
            name = model.aliases()[alias]
            if not tensor.is_meta and not torch.equal(tensor, slots[name]):
                raise UserError(f"{where}: {alias} is not {name}, which the published heads run again in its place")
        if target.packed:
            model.pack()
        return model

    def pack(self) -> None:
        """Copy the matrices for decoding, as `Llama.pack` does."""
        layers = [] if self.prefix is None else self.prefix.weights.layers
        for matrix in matrices(*self.heads, *layers):
            matrix.pack()

    def states(self, features: Tensor, rows: Rows) -> Tensor:
        """The target's normed states [n, hidden] -> what the heads read of them [n, hidden]."""
        if self.prefix is None:
            return features
        return self.prefix.norm(self.prefix.layers(features, rows, range(1))[0])


def _prefix(target: Llama, dtype: torch.dtype) -> Llama:
    """One layer like the target's, with a final norm, whose inputs are states instead of tokens."""
    config = replace(target.config, num_layers=1, vocab_size=1, tied=True)  # no embeddings of its own
    made = empty_weights(config, dtype, target.device)
    shared = Weights(target.weights.embedding, made.norm, target.weights.lm_head, made.layers)
    return Llama(config, shared)


class Hydra:
    """Drafts a fixed tree, head by head: each sees the path that leads to its node.

    checkpoint: folder or hub id of the heads. tree: mc_sim_7b_63 (Medusa's 63 nodes), chain, or a list of paths, not
    deeper than there are heads. Raises UserError for a tree or a checkpoint that does not fit.
    """

    def __init__(self, target: Llama, *, checkpoint: Annotated[Path, Checkpoint("Hydra heads")], tree: Any) -> None:
        folder = Path(checkpoint)
        self.target, self.model = target, HydraModel.load(folder, target)
        heads = len(self.model.heads)
        known = {"mc_sim_7b_63": MC_SIM_7B_63, "chain": tuple((0,) * depth for depth in range(1, heads + 1))}
        nodes = sorted(pick_tree(tree, known, target.config.vocab_size), key=len)
        if len(nodes[-1]) > heads:
            raise UserError(f"method.tree: {list(nodes[-1])} is {len(nodes[-1])} deep, there are {heads} heads")
        self.taps = (target.config.num_layers,)
        self.extra_parameters, self.max_rows = self.model.extra_parameters, 1 + len(nodes)
        self.width = 1 + max(map(max, nodes))
        self.levels = Level.build_all(nodes, self.width, target.device)
        self.trees = [tree.shape for tree in by_depth(nodes, self.width, target.device)]
        self.draft = Unit(self._draft, id(self), (range(int(self.model.prefix is not None)),), "last")

    def start(self, prompt: list[int], prefill: Prefill) -> GroundedDraft:
        """Run the prefix layer over the prompt's states."""
        return GroundedDraft(self, prefill)

    def _draft(self, features: Tensor, pending: Tensor, rows: Rows) -> tuple[Tensor]:
        """The target's normed states that the prefix layer has not seen, the pending token [1] -> the tree's [n]."""
        embed, drafted = self.target.embed, list[Tensor]()
        states = torch.cat((rows.last(self.model.states(features, rows)), embed(pending[:1])), 1)
        for head, level in zip(self.model.heads, self.levels, strict=False):
            choices = best(head.logits(states, self.model.repeats).float(), self.width)[1]
            drafted.append(choices.flatten()[level.places])
            states = torch.cat((states[level.above], embed(drafted[-1][level.runs])), 1)
        return (torch.cat(drafted),)


class GroundedDraft:
    """Hydra's heads on one sequence."""

    def __init__(self, method: Hydra, prefill: Prefill) -> None:
        self.method, prefix = method, method.model.prefix
        self.cache = None
        if prefix is not None:
            rows = len(method.levels) + 1
            self.cache = method.target.new_cache(prefill.cache.capacity, rows=rows, config=prefix.config)
        # Normed states of accepted tokens behind those in the cache; without a prefix layer only the last counts.
        self.unseen = self._wanted(method.target.norm(*prefill.tapped))

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The tree, cut to the depth that the context has room for."""
        method, target = self.method, self.method.target
        pending, tree = torch.full((1,), tokens[-1], device=target.device), method.trees[:room][-1]
        positions = torch.arange(len(tokens) - 1 - len(self.unseen), len(tokens) - 1, device=target.device)
        inputs, self.unseen = (self.unseen, pending), self.unseen[:0]
        (drafted,) = target.through(method.draft, inputs, positions, (self.cache,))
        return Draft(tokens=drafted[: tree.size], tree=tree)

    def observe(self, verification: Verification) -> None:
        """Note the states of the accepted rows, whoever drafted them."""
        accepted = verification.final[upload(verification.path, self.unseen.device)]
        self.unseen = self._wanted(torch.cat((self.unseen, accepted)))

    def _wanted(self, states: Tensor) -> Tensor:
        return states[-1:] if self.cache is None else states
