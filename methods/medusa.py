"""Medusa-1: extra heads on the frozen target, each predicting a token further ahead (Cai et al., arXiv 2401.10774).

Greedy acceptance only: typical acceptance (section 2.3.1 there) does not give the target's own tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.decoder import Prefill, Verification
from methods.draft import Draft
from methods.draft_vocabulary import OFFSETS, read_vocabulary
from methods.engine.checkpoint import read_tensors, tensor_shapes
from methods.engine.config import read_json
from methods.engine.llama import Llama
from methods.engine.matrix import new_matrix
from methods.engine.weight_files import weight_files
from methods.errors import UserError
from methods.files import Checkpoint, DataFile
from methods.trees import CALIBRATION, by_depth, read_tree

MOST_HEADS = 64  # of a checkpoint, and blocks of a head; published ones have five


class Heads(nn.ModuleList):
    """Medusa's heads: residual blocks x + SiLU(Wx + b), then a linear to the vocabulary. State keys as published.

    Made without storage (on the meta device): `load` gives them a checkpoint's tensors, training fresh ones.
    """

    vocabulary: Tensor | None = None  # [vocab] int64: which of the target's tokens the heads know; None: all

    def __init__(self, count: int, *, layers: int = 1, hidden: int, vocab: int) -> None:
        from medusa.model.medusa_model import ResBlock  # takes seconds: it brings transformers

        with torch.device("meta"):
            super().__init__(
                nn.Sequential(*(ResBlock(hidden) for _ in range(layers)), nn.Linear(hidden, vocab, bias=False))
                for _ in range(count)
            )

    def forward(self, final: Tensor) -> Tensor:
        """State [1, hidden] after the final norm -> each head's logits [heads, vocab]."""
        return torch.cat([head(final) for head in self])

    @classmethod
    def load(cls, folder: Path, target: Llama, count: int, used: int | None = None) -> Heads:
        """The first `used` (None: all) of `count` heads of a published checkpoint.

        That is config.json and medusa_lm_head.pt or .safetensors. Raises UserError when the checkpoint is incomplete,
        does not fit the target or has fewer than `count` heads.
        """
        raw = read_json(folder / "config.json")
        for key in ("medusa_num_heads", "medusa_num_layers"):
            if isinstance(raw.get(key), bool) or not isinstance(raw.get(key), int) or not 1 <= raw[key] <= MOST_HEADS:
                most = f"a positive integer, {MOST_HEADS} at most"
                raise UserError(f"method.checkpoint={folder}: config.json needs {key}, {most}")
        if not weight_files(folder):
            raise UserError(f"method.checkpoint={folder}: no heads in this folder; wanted: medusa_lm_head.pt")
        found, vocabulary = tensor_shapes(folder), read_vocabulary(folder, target)
        rows = target.config.vocab_size if vocabulary is None else len(vocabulary)
        layers, shape = raw["medusa_num_layers"], (rows, target.config.hidden_size)
        last = found.get(f"0.{layers}.weight", shape)
        if last != shape:
            theirs, ours = (f"hidden size {s[-1]} and a vocabulary of {s[0]}" for s in (last, shape))
            who = "the target has" if vocabulary is None else f"the target and {OFFSETS} have"
            raise UserError(f"method.checkpoint={folder}: heads for {theirs}, {who} {ours}")
        # The published config.json files say 2 where the weights have 5 heads: the weights decide.
        numbers = [int(name.partition(".")[0]) + 1 for name in found if name.partition(".")[0].isdigit()]
        held = max([raw["medusa_num_heads"], *(number for number in numbers if number <= MOST_HEADS)])
        if not 1 <= count <= held:
            raise UserError(f"method.heads={count}: must be between 1 and the {held} heads in {folder}")
        shapes = {
            n: tuple(t.shape) for n, t in cls(held, layers=layers, hidden=shape[1], vocab=shape[0]).named_parameters()
        }
        used = count if used is None else used
        wanted = {name for name in shapes if int(name.partition(".")[0]) < used}
        shapes |= {OFFSETS: (rows,)} if vocabulary is not None else {}
        tensors = read_tensors(folder, shapes, device=target.device, dtype=target.dtype, only=wanted)
        heads = cls(used, layers=layers, hidden=shape[1], vocab=shape[0])
        heads.load_state_dict({name: _for_one_row(tensor) for name, tensor in tensors.items()}, assign=True)
        heads.vocabulary = vocabulary
        return heads.requires_grad_(False)


def _for_one_row(tensor: Tensor) -> Tensor:
    """Matrices in the memory order that one row of input multiplies fastest with."""
    if tensor.dim() < 2:
        return tensor
    return new_matrix(tensor.shape[0], tensor.shape[1], tensor.dtype, tensor.device).copy_(tensor)


class Medusa:
    """Drafts a fixed tree over the heads' top choices; the pending token is its root.

    checkpoint: folder or hub id of the heads, of which the first `heads` are used, as far down as the tree reaches.
    tree: chain (each head's top choice), mc_sim_7b_63, auto, or a list of paths. For auto: `nodes`, the most nodes it
    may have, and `calibration`, a file of measured accuracies (None: the one beside the heads). Raises UserError for
    values that do not fit.
    """

    taps: tuple[int, ...] = ()

    def __init__(
        self,
        target: Llama,
        *,
        checkpoint: Annotated[Path, Checkpoint("Medusa heads")],
        heads: int,
        tree: Any,
        nodes: int,
        calibration: Annotated[Path, DataFile("measured accuracies of the heads")] | None,
    ) -> None:
        folder = Path(checkpoint)
        self.nodes = read_tree(
            tree,
            heads=heads,
            vocab_size=target.config.vocab_size,
            nodes=nodes,
            calibration=Path(calibration) if calibration else folder / CALIBRATION,
        )
        self.heads = Heads.load(folder, target, heads, used=max(map(len, self.nodes)))
        self.extra_parameters = sum(p.numel() for p in self.heads.parameters())
        self.width = 1 + max(map(max, self.nodes))
        if self.heads.vocabulary is not None and self.width > len(self.heads.vocabulary):
            raise UserError(f"method.tree: takes {self.width} choices of {len(self.heads.vocabulary)} drafted tokens")
        self.trees = by_depth(self.nodes, self.width, target.device)
        self.max_rows = len(self.nodes) + 1

    def start(self, prompt: list[int], prefill: Prefill) -> HeadDraft:
        """The heads look at the state from which the target predicted the first token."""
        return HeadDraft(self, prefill.final)


class HeadDraft:
    """Medusa's heads on one sequence. final: the state [1, hidden] from which the pending token was predicted."""

    def __init__(self, method: Medusa, final: Tensor) -> None:
        self.method, self.final = method, final

    def propose(self, tokens: list[int], room: int) -> Draft:
        """The tree filled with the heads' choices, cut to the depth that the context has room for."""
        trees = self.method.trees
        tree = trees[min(room, len(trees)) - 1]
        heads = self.method.heads
        chosen = heads(self.final).topk(self.method.width).indices.view(-1)[tree.index]  # [heads, width] -> [nodes]
        return Draft(tokens=chosen if heads.vocabulary is None else heads.vocabulary[chosen], tree=tree.shape)

    def observe(self, verification: Verification) -> None:
        """The pending token was predicted from the last accepted row's state."""
        last = verification.path[-1]
        self.final = verification.final[last : last + 1]
