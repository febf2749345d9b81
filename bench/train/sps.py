"""Training a drafter for methods.sps: a small Llama with the target's tokenizer learns to say what the target would.

From the text, as vicuna-68m was made of llama-68m by tuning it on ShareGPT. Or by distillation, as in DistillSpec (Zhou
et al., arXiv 2310.08461): the cross-entropy to the target's whole distribution at the assistant's tokens, which is what
acceptance asks for and tells more a token than the token itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from bench.binder import file_hashes
from bench.files import replace_file, replace_text
from bench.settings import Model, Text
from bench.train import loop
from bench.train.loss import Sums, Target, cross_entropy, final_states
from bench.train.packing import Row
from bench.train.source import ModelSource, Started, read_data
from methods.engine.checkpoint import empty_weights, load_model, published_weights, randomise
from methods.engine.config import published_config
from methods.engine.llama import Llama, ModelConfig
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Form:
    """Shape of a fresh drafter. Raises UserError for one that cannot be.

    feed_forward: width of the SwiGLU blocks, in widths of the model. tied: the head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    tied: bool

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must be at least 1")
        if self.hidden % (2 * self.heads):
            raise UserError(f"train.heads={self.heads}: twice their number must divide train.hidden={self.hidden}")

    def identity(self) -> dict[str, Any]:
        """Drafters were recorded before there was a choice of the last two: what they all had is not named."""
        named = asdict(self)
        for name, once in (("feed_forward", 3), ("tied", True)):
            if named[name] == once:
                del named[name]
        return named


class Lesson(nn.Module):
    """A drafter beside a frozen target: a Row in, the cross-entropy to the text or to the target's distribution out.

    The target runs for either, as agreement is counted with it.
    """

    def __init__(self, target: Llama, drafter: Llama, *, learns: str, chunk: int) -> None:
        super().__init__()
        self.target, self.drafter, self.learns, self.chunk = target, drafter, learns, chunk
        self.weights = loop.parameters(drafter.weights, *drafter.weights.layers)

    def forward(self, row: Row) -> Sums:
        """Sums over the positions that predict the assistant's tokens."""
        target, drafter, chosen = self.target, self.drafter, row.predicting()
        states = drafter.run(drafter.embed(row.tokens), row.positions, None, slice(None), row.lengths)
        says = Target(final_states(target, row)[chosen], target.weights.lm_head.weight)
        labels = row.tokens[chosen + 1] if self.learns == "text" else None
        head = drafter.weights.lm_head.weight
        return cross_entropy(drafter.norm(states[chosen]), head, says, labels=labels, chunk=self.chunk)


def build_drafter(target: Llama, form: Form, seed: int) -> Llama:
    """A Llama of random weights in float32."""
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=target.config.vocab_size,
        hidden_size=form.hidden,
        intermediate_size=form.feed_forward * form.hidden,
        num_layers=form.layers,
        num_heads=form.heads,
        num_kv_heads=form.heads,
        head_dim=form.hidden // form.heads,
        norm_eps=target.config.norm_eps,
        context=target.config.context,
        tied=form.tied,
        eos_token_ids=target.config.eos_token_ids,
    )
    drawn = empty_weights(config, torch.float32, torch.device("cpu"))  # a seed means the same on every device
    randomise(drawn, seed)
    weights = empty_weights(config, torch.float32, target.device)
    for tensor, values in zip(weights.tensors(), drawn.tensors(), strict=True):
        tensor.copy_(values)
    return Llama(config, weights)


def trained_drafter(folder: Path, target: Llama, length: int) -> Llama:
    """A model to go on from, in float32. Raises UserError for one that does not fit the target or rows of `length`."""
    assert target.folder is not None, "a trained target was read from somewhere"
    if (theirs := Vocabulary.read(folder)) != (ours := Vocabulary.read(target.folder)):
        raise UserError(f"train.start_from={folder}: its tokenizer has {theirs}; the target's has {ours}")
    drafter = load_model(folder, dtype="float32", device=target.device)
    sizes = drafter.config.vocab_size, target.config.vocab_size
    if sizes[0] != sizes[1]:
        raise UserError(f"train.start_from={folder}: has {sizes[0]} tokens, the target {sizes[1]}")
    if length > drafter.config.context:
        raise UserError(f"loop.length={length}: train.start_from has a context of {drafter.config.context} tokens")
    return drafter


def write(folder: Path, drafter: Llama, tokenizer: Any, dtype: torch.dtype) -> None:
    """A checkpoint as any Llama's: config.json, model.safetensors and the target's tokenizer."""
    tensors = loop.stored(published_weights(drafter), dtype)
    replace_file(folder / "model.safetensors", lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    config = published_config(replace(drafter.config, dtype=str(dtype).removeprefix("torch.")))
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    replace_file(folder / "tokenizer.json", lambda file: tokenizer.backend_tokenizer.save(str(file)))


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    learns: Literal["text", "distribution"],
    hidden: int,
    layers: int,
    heads: int,
    feed_forward: int,
    tied: bool,
    start_from: Started | None,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
) -> list[loop.Point]:
    """Train a drafter for a model and write it to `output`. Raises UserError for settings or data that do not fit."""
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    if start_from is None:
        form = Form(hidden=hidden, layers=layers, heads=heads, feed_forward=feed_forward, tied=tied)
        drafter = build_drafter(source.target, form, seed)
        origin = form.identity()
    else:
        drafter = trained_drafter(start_from, source.target, loop_settings.length)
        origin = {"start_from": file_hashes(start_from)}
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    job = loop.Job(
        title=f"Drafter for {source.name}, {drafter.config.num_layers} layers {drafter.config.hidden_size} wide",
        module=Lesson(source.target, drafter, learns=learns, chunk=loop_settings.chunk),
        write=lambda folder: write(folder, drafter, source.tokenizer, dtype),
        identity={
            "method": "sps",
            **origin,
            **({} if learns == "distribution" else {"learns": learns}),  # there was nothing else once
            **source.identity(dtype),
        },
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
