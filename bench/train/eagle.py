"""Training EAGLE's draft model: from the target's features up to a token it learns the next one.

Li et al., arXiv 2401.15077, section 4.2; weights, noise and format are those of their code. EAGLE-2 takes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.settings import Model, Text
from bench.train import loop
from bench.train.loss import Sums, Target, cross_entropy, final_states
from bench.train.packing import Row
from bench.train.source import ModelSource, read_data
from methods.eagle import EagleModel
from methods.engine.config import published_config
from methods.engine.llama import Llama, ModelConfig
from methods.engine.unit import Rows
from methods.errors import UserError

NOISE_LENGTH = 512  # tokens of a conversation whose noise is as large as `noise` says


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised at every token of the assistant, and what the features are disturbed with.

    feature: weight of the smooth L1 distance to the target's feature, a mean over its elements. token: weight of the
    cross-entropy to the target's distribution. noise: width of the uniform noise on every feature of a conversation of
    512 tokens; a shorter one has more, in inverse proportion.
    """

    feature: float
    token: float
    noise: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise UserError(f"train.{name}={value}: must be 0 or above")
        if not self.feature + self.token:
            raise UserError("train.feature=0 and train.token=0: one of them must be above 0")


class FeatureTraining(nn.Module):
    """A draft model beside a frozen target: a Row in, the weighted losses out."""

    def __init__(self, draft: EagleModel, objective: Objective, *, chunk: int) -> None:
        super().__init__()
        self.target, self.draft, self.objective, self.chunk = draft.target, draft, objective, chunk
        self.weights = loop.parameters(draft.weights)

    def forward(self, row: Row) -> Sums:
        """Sums over the pairs whose output should predict a token of the assistant. Noise is for training only."""
        target, objective = self.target, self.objective
        features = final_states(target, row)
        wanted = row.predicting()
        wanted = wanted[row.positions[wanted] > 0]  # the first token's feature has no pair before it
        inputs = features.float()
        if torch.is_grad_enabled() and objective.noise:
            inputs = inputs + objective.noise * noise(row, features.shape[1])
        # The last pair of the row lacks its token; it is no one's input, so any will do.
        outputs = self.draft.run(row.tokens.roll(-1), inputs, Rows(row.positions, sees=row.lengths))[wanted - 1]
        head = target.weights.lm_head.weight
        sums = cross_entropy(outputs, head, Target(features[wanted], head), chunk=self.chunk)
        distance = F.smooth_l1_loss(outputs.float(), features[wanted].float(), reduction="none").mean(-1).sum()
        return replace(sums, loss=objective.token * sums.loss + objective.feature * distance)


def noise(row: Row, hidden: int) -> Tensor:
    """Uniform in ±256 / length of the conversation, [n, hidden]."""
    lengths = torch.tensor(row.lengths, device=row.tokens.device)[row.segments]
    draws = torch.rand(len(row.tokens), hidden, device=row.tokens.device) - 0.5
    return draws * (NOISE_LENGTH / lengths)[:, None]


def layer_config(target: Llama) -> ModelConfig:
    """The shape of a layer of the target, as a Llama's without scaled rotary positions."""
    llama = replace(target.config, architecture="LlamaForCausalLM", num_layers=1, tied=False)
    return replace(llama, rope_scaling=None, qkv_bias=False, qk_norm=False)


def initialise(tensors: Mapping[str, Tensor], seed: int) -> None:
    """Matrices as wide as torch's linears are at first, norms 1, biases 0; by published name."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            spread = (3 * tensor.shape[1]) ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
        else:
            tensor.fill_(0 if name.endswith("bias") else 1)


def build_draft(target: Llama, *, bias: bool, seed: int) -> EagleModel:
    """A fresh draft model in float32."""
    draft = EagleModel(layer_config(target), target, bias=bias, dtype=torch.float32)
    initialise(draft.published(), seed)
    return draft


def write(folder: Path, draft: EagleModel, dtype: torch.dtype) -> None:
    """config.json and pytorch_model.bin as published, but without the copy of the target's embeddings."""
    config = published_config(replace(draft.config, dtype=str(dtype).removeprefix("torch.")))
    config["bias"] = draft.weights.fc_bias is not None
    loop.write_draft(folder / "pytorch_model.bin", loop.stored(draft.published(), dtype), config)


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    bias: bool,
    feature: float,
    token: float,
    noise: float,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
) -> list[loop.Point]:
    """Train a draft model and write it to `output`. Raises UserError for settings or data that do not fit."""
    objective = Objective(feature=feature, token=token, noise=noise)
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    draft = build_draft(source.target, bias=bias, seed=seed)
    torch.manual_seed(seed)  # of the noise; a run that goes on has the state of its random numbers in its checkpoint
    job = loop.Job(
        title=f"EAGLE draft model for {source.name}",
        module=FeatureTraining(draft, objective, chunk=loop_settings.chunk),
        write=lambda folder: write(folder, draft, dtype),
        identity={"method": "eagle", "bias": bias, **vars(objective), **source.identity(dtype)},
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
