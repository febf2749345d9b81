"""Training a drafter for methods.sps: a small Llama with the target's tokenizer learns to say what the target would.

Distillation as in DistillSpec (Zhou et al., arXiv 2310.08461): the cross-entropy to the target's whole distribution at
the assistant's tokens, which is what acceptance asks for and tells more a token than the token itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.files import replace_file, replace_text
from bench.train import loop
from bench.train.loss import Sums, as_is, cross_entropy
from bench.train.packing import Row
from bench.train.source import DataSource, ModelSource
from methods.engine.checkpoint import empty_weights, published_weights, randomise
from methods.engine.config import published_config
from methods.engine.llama import Llama, ModelConfig
from methods.errors import UserError

FEED_FORWARD = 3  # width of the SwiGLU blocks, in widths of the model


class Distillation(nn.Module):
    """A drafter beside a frozen target: a Row in, the soft-target cross-entropy out."""

    def __init__(self, target: Llama, drafter: Llama, *, chunk: int) -> None:
        super().__init__()
        self.target, self.drafter, self.chunk = target, drafter, chunk
        self.weights = loop.parameters(drafter.weights, *drafter.weights.layers)

    def forward(self, row: Row) -> Sums:
        """Sums over the positions that predict the assistant's tokens."""
        target, drafter, chosen = self.target, self.drafter, row.predicting()
        with torch.no_grad(), as_is(target.dtype, target.device):
            wanted = target.norm(self._states(target, row)[chosen])
        drafted = drafter.norm(self._states(drafter, row)[chosen])
        heads = drafter.weights.lm_head.weight, target.weights.lm_head.weight
        return cross_entropy(drafted, heads[0], wanted, heads[1], chunk=self.chunk)

    @staticmethod
    def _states(model: Llama, row: Row) -> Tensor:
        return model.run(model.embed(row.tokens), row.positions, None, slice(0, None), row.lengths)


def build_drafter(target: Llama, *, hidden: int, layers: int, heads: int, seed: int) -> Llama:
    """A tied Llama of random weights in float32. Raises UserError for a shape that cannot be."""
    for name, value in (("hidden", hidden), ("layers", layers), ("heads", heads)):
        if value < 1:
            raise UserError(f"train.{name}={value}: must be at least 1")
    if hidden % (2 * heads):
        raise UserError(f"train.heads={heads}: twice their number must divide train.hidden={hidden}")
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=target.config.vocab_size,
        hidden_size=hidden,
        intermediate_size=FEED_FORWARD * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        norm_eps=target.config.norm_eps,
        context=target.config.context,
        tied=True,
        eos_token_ids=target.config.eos_token_ids,
    )
    drawn = empty_weights(config, torch.float32, torch.device("cpu"))  # a seed means the same on every device
    randomise(drawn, seed)
    weights = empty_weights(config, torch.float32, target.device)
    for tensor, values in zip(weights.tensors(), drawn.tensors(), strict=True):
        tensor.copy_(values)
    return Llama(config, weights)


def write(folder: Path, drafter: Llama, tokenizer: Any, dtype: torch.dtype) -> None:
    """A checkpoint as any Llama's: config.json, model.safetensors and the target's tokenizer."""
    tensors = loop.stored(published_weights(drafter), dtype)
    replace_file(folder / "model.safetensors", lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    config = published_config(replace(drafter.config, dtype=str(dtype).removeprefix("torch.")))
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    replace_file(folder / "tokenizer.json", lambda file: tokenizer.backend_tokenizer.save(str(file)))


def train(
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    loop_settings: loop.Settings,
    hidden: int,
    layers: int,
    heads: int,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
) -> list[loop.Point]:
    """Train a drafter for a model and write it to `output`. Raises UserError for settings or data that do not fit."""
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.get("device", "auto"))
    source = ModelSource.load(model, accelerate.device)
    drafter = build_drafter(source.target, hidden=hidden, layers=layers, heads=heads, seed=seed)
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    examples = DataSource(**data).load(source, loop_settings.length, seed, accelerate.print)
    job = loop.Job(
        title=f"Drafter for {source.name}, {layers} layers {hidden} wide",
        module=Distillation(source.target, drafter, chunk=loop_settings.chunk),
        write=lambda folder: write(folder, drafter, source.tokenizer, dtype),
        identity={
            "method": "sps",
            "hidden": hidden,
            "layers": layers,
            "heads": heads,
            "target": source.fingerprint(),
        },
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
