"""Training Kangaroo's adapter: the target's early exit learns to speak with the target's own distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.binder import file_hashes
from bench.settings import Model, Text
from bench.train import loop
from bench.train.loss import Sums, Target, as_is, cross_entropy
from bench.train.packing import Row
from bench.train.source import ModelSource, Started, frequent, read_data
from bench.train.states import kept_states
from methods.adapters import PUBLISHED, VARIANTS, Adapter, Variant
from methods.draft_vocabulary import OFFSETS
from methods.engine.config import ModelConfig, published_config
from methods.engine.llama import Llama
from methods.engine.unit import Rows
from methods.errors import UserError


class Distillation(nn.Module):
    """Adapter over a frozen target: a Row in, the soft-target cross-entropy out (Liu et al., section 3.1)."""

    def __init__(
        self,
        target: Llama,
        adapter: Adapter,
        *,
        exit_layer: int,
        chunk: int,
        kept: Path | None = None,
        frequent: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.target, self.adapter, self.exit_layer, self.chunk, self.kept = target, adapter, exit_layer, chunk, kept
        self.head, self.known = target.weights.lm_head.weight, None
        if frequent is not None:
            self.few = self.head[frequent]
            self.known = torch.zeros(len(self.head), dtype=torch.bool, device=target.device)
            self.known[frequent] = True

    def forward(self, row: Row) -> Sums:
        """Sums over the positions that predict the assistant's tokens.

        With `frequent` tokens [m], gradients come from those positions alone whose next token is one of them, and of
        both distributions only their part is computed; what is evaluated is always the whole.
        """
        target, chosen, head = self.target, row.predicting(), self.head
        if self.known is not None and torch.is_grad_enabled():
            chosen, head = chosen[self.known[row.tokens[chosen + 1]]], self.few
        exits, final = self.states(row) if self.kept is None else kept_states(self.kept, row, self.states)
        drafted = self.adapter(exits.float(), target.rope, Rows(row.positions, sees=row.lengths))[chosen]
        own = head if self.adapter.lm_head is None else self.adapter.lm_head
        says = Target(final[chosen].to(target.dtype), head, self.adapter.vocabulary)
        return cross_entropy(drafted, own, says, chunk=self.chunk)

    def states(self, row: Row) -> tuple[Tensor, Tensor]:
        """What the target has at the exit layer, and after its final norm: [n, hidden] each."""
        target = self.target
        with torch.no_grad(), as_is(target.dtype, target.device):
            exits = target.run(target.embed(row.tokens), row.positions, None, slice(0, self.exit_layer), row.lengths)
            final = target.run(exits, row.positions, None, slice(self.exit_layer, None), row.lengths)
            return exits, target.norm(final)


def initialise(adapter: Adapter, target: Llama, seed: int) -> None:
    """Normal matrices, norms 1, and the target's own final norm and head: the one is what the other is used to."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name == "norm":
                parameter.copy_(target.weights.norm)
            elif name == "lm_head":
                head, vocabulary = target.weights.lm_head.weight, adapter.vocabulary
                parameter.copy_(head if vocabulary is None else head[vocabulary])
            elif parameter.dim() == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def write(folder: Path, adapter: Adapter, *, exit_layer: int, dtype: torch.dtype) -> None:
    """config.json and pytorch_model.bin as published: a one-layer LlamaConfig and tensors under published names."""
    name = str(dtype).removeprefix("torch.")
    shape = replace(adapter.config, architecture="LlamaForCausalLM", num_layers=1, dtype=name)
    config = {**published_config(shape), "exit_layer": exit_layer}
    if adapter.variant != PUBLISHED:
        config["variant"] = adapter.variant
    if adapter.vocabulary is not None:
        config["draft_vocab_size"] = len(adapter.vocabulary)
    loop.write_draft(folder / "pytorch_model.bin", loop.stored(adapter.published(), dtype), config)


def _check(variant: Variant, *, draft_vocab: int | None, loss_vocab: int | None, kv_heads: int | None) -> None:
    """Raises UserError for a setting that this variant has no use for."""
    for key, value, need, has in (
        ("draft_vocab", draft_vocab, "head of its own", lambda parts: parts.own_head),
        ("loss_vocab", loss_vocab, "use for the target's head", lambda parts: not parts.own_head),
        ("kv_heads", kv_heads, "attention", lambda parts: parts.attention),
    ):
        if value is not None and not has(VARIANTS[variant]):
            valid = ", ".join(name for name, parts in VARIANTS.items() if has(parts))
            raise UserError(f"train.{key}={value}: {variant} has no {need}; those that have: {valid}")


def _shape(config: ModelConfig, kv_heads: int | None) -> ModelConfig:
    if kv_heads is None:
        return config
    if not 1 <= kv_heads <= config.num_heads or config.num_heads % kv_heads:
        raise UserError(f"train.kv_heads={kv_heads}: must divide the model's {config.num_heads} attention heads")
    return replace(config, num_kv_heads=kv_heads)


def _copy(folder: Path, adapter: Adapter, target: Llama) -> None:
    """The weights of an adapter that was trained before. Raises UserError for one of another form."""
    tensors = Adapter.load(folder, target, adapter.variant).published()
    own = adapter.published()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"train.start_from={folder}: {name} is {tuple(tensor.shape)}, not as these settings say")
        if name == OFFSETS and not torch.equal(own[name], tensor):
            raise UserError(f"train.start_from={folder}: its head is for other tokens than are most frequent here")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)  # offsets are equal, and no view


def build_adapter(
    target: Llama,
    vocabulary: Tensor | None,
    *,
    variant: Variant,
    kv_heads: int | None,
    seed: int,
    start_from: Path | None,
) -> Adapter:
    """In float32: a fresh one, or with the weights of one that was trained. Raises UserError for what does not fit."""
    shape, device = _shape(target.config, kv_heads), target.device
    adapter = Adapter(shape, variant=variant, dtype=torch.float32, device=device, vocabulary=vocabulary)
    initialise(adapter, target, seed)
    if start_from is not None:
        _copy(start_from, adapter, target)
    return adapter


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    draft_vocab: int | None,
    exit_layer: int,
    variant: Variant,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
    keep_states: bool = False,
    kv_heads: int | None = None,
    loss_vocab: int | None = None,
    start_from: Started | None = None,
) -> list[loop.Point]:
    """Train an adapter for a model and write it to `output`. Raises UserError for settings or data that do not fit."""
    _check(variant, draft_vocab=draft_vocab, loss_vocab=loss_vocab, kv_heads=kv_heads)
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    layers = source.target.config.num_layers
    if not 0 <= exit_layer <= layers:
        raise UserError(f"method.exit_layer={exit_layer}: must be between 0 and the model's {layers} layers")
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    vocabulary = frequent(examples, draft_vocab, source.target)
    adapter = build_adapter(
        source.target, vocabulary, variant=variant, kv_heads=kv_heads, seed=seed, start_from=start_from
    )
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    folder = Path(output) / "states" / f"{source.fingerprint()}-{exit_layer}-{source.dtype}"
    module = Distillation(
        source.target,
        adapter,
        exit_layer=exit_layer,
        chunk=loop_settings.chunk,
        kept=folder if keep_states else None,
        frequent=frequent(examples, loss_vocab, source.target, key="train.loss_vocab"),
    )
    extra = {
        "keep_states": keep_states or None,
        "kv_heads": kv_heads,
        "loss_vocab": loss_vocab,
        "start_from": start_from and file_hashes(start_from),
    }
    job = loop.Job(
        title=f"Adapter {variant} for {source.name}, exit layer {exit_layer}",
        module=module,
        write=lambda folder: write(folder, adapter, exit_layer=exit_layer, dtype=dtype),
        identity={
            "method": "kangaroo",
            "variant": variant,
            "exit_layer": exit_layer,
            "draft_vocab": draft_vocab,
            **source.identity(dtype),
            **{key: value for key, value in extra.items() if value is not None},
        },
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
