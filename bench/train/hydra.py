"""Training Hydra's heads and their prefix layer: each learns what the target would say behind the tokens it is given.

Ankner et al., arXiv 2402.05109, section 4: the cross-entropy to the target's own distribution, no other loss. That all
heads weigh the same, and what is dropped out, are from their code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bench.settings import Model, Text
from bench.train import loop
from bench.train.loss import Sums, Target, cross_entropy, final_states
from bench.train.medusa import places
from bench.train.packing import Row
from bench.train.source import ModelSource, read_data
from methods.engine.checkpoint import INIT_STD
from methods.engine.llama import Llama
from methods.engine.unit import Rows
from methods.errors import UserError
from methods.hydra import HydraModel


class GroundedTraining(nn.Module):
    """Hydra's heads beside a frozen target: a Row in, the sum of the heads' cross-entropies out.

    dropout: share of the numbers that each block and linear of a head do not see while it learns.
    """

    def __init__(self, draft: HydraModel, *, dropout: float, chunk: int) -> None:
        super().__init__()
        self.target, self.draft, self.dropout, self.chunk = draft.target, draft, dropout, chunk
        prefix = draft.prefix
        self.weights = loop.parameters(*draft.heads, *([] if prefix is None else prefix.weights.layers))
        if prefix is not None:
            prefix.weights.norm = nn.Parameter(prefix.weights.norm)
            self.weights.append(prefix.weights.norm)

    def forward(self, row: Row) -> Sums:
        """Every head at every place where the token it predicts belongs to the answer that it begins in.

        Agreement and overlap are means over the heads.
        """
        target, draft = self.target, self.draft
        features, embedded = final_states(target, row), target.embed(row.tokens).float()
        states = draft.states(features.float(), Rows(row.positions, sees=row.lengths))
        parts, dropout = [], self.dropout if torch.is_grad_enabled() else 0.0
        for place in places(row, len(draft.heads)):
            head = draft.heads[place.head - 1]
            given = [embedded[place.at + 1 + known] for known in range(place.head)]
            read = head(torch.cat((states[place.at], *given), 1), draft.repeats, dropout)
            # The bias as one more input: the loss knows linears without one.
            wide = torch.cat((read, read.new_ones(len(read), 1)), 1)
            linear = torch.cat((head.lm_head.weight, head.lm_bias[:, None]), 1)
            # by the state from which the target itself predicts that token
            says = Target(features[place.wanted - 1], target.weights.lm_head.weight)
            parts.append(cross_entropy(wide, linear, says, chunk=self.chunk))
        return Sums.of_parts(parts, [1.0] * len(parts))


def build_draft(
    target: Llama, *, architecture: Literal["mlp", "prefix-mlp"], heads: int, layers: int, seed: int
) -> HydraModel:
    """In float32; at first each head says what the target's own says of the prefix layer's state, but for noise.

    Raises UserError for a shape that cannot be.
    """
    if not (1 <= heads <= 64 and 1 <= layers <= 64):
        raise UserError(f"train.heads={heads}, train.layers={layers}: must be 1 to 64")
    draft = HydraModel(target, architecture=architecture, heads=heads, layers=layers, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in draft.published().items():
        if name.startswith("hydra_lm_head") and tensor.dim() == 2:
            tensor.copy_(target.weights.lm_head.weight)
        elif tensor.dim() == 2:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * INIT_STD)
        else:
            tensor.fill_(0 if name.endswith("bias") else 1)
    for head in draft.heads:
        head.residual.weight.diagonal().add_(1)  # of the state, which stands first
        for silent in (head.narrow, *([] if head.block is None else [head.block])):
            silent.weight.zero_()  # a block that adds nothing, as in the published code
    return draft


def write(folder: Path, draft: HydraModel, *, base: str, dtype: torch.dtype) -> None:
    """config.json and hydra_lm_head.pt as published: a block that runs several times stands under all its names."""
    tensors = loop.stored(draft.published(), dtype)
    tensors |= {alias: tensors[name] for alias, name in draft.aliases().items()}
    config = {
        "hydra_num_heads": len(draft.heads),
        "hydra_num_layers": draft.repeats + 1,
        "hydra_head_arch": draft.architecture,
        "grounded_heads": True,
        "hidden_state_offset": 0,
        "base_model_name_or_path": base,
    }
    loop.write_draft(folder / "hydra_lm_head.pt", tensors, config, indent=1)


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    architecture: Literal["mlp", "prefix-mlp"],
    heads: int,
    layers: int,
    dropout: float,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
) -> list[loop.Point]:
    """Train heads for a model and write them to `output`. Raises UserError for settings or data that do not fit."""
    if not 0 <= dropout < 1:
        raise UserError(f"train.dropout={dropout}: must be at least 0 and below 1")
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    draft = build_draft(source.target, architecture=architecture, heads=heads, layers=layers, seed=seed)
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    torch.manual_seed(seed)  # of what is dropped out; a run that goes on has the state of its random numbers
    shape = {"architecture": architecture, "heads": heads, "layers": layers}
    job = loop.Job(
        title=f"Hydra heads for {source.name}",
        module=GroundedTraining(draft, dropout=dropout, chunk=loop_settings.chunk),
        write=lambda folder: write(folder, draft, base=model.path, dtype=dtype),
        identity={"method": "hydra", **shape, "dropout": dropout, **source.identity(dtype)},
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
