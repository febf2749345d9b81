"""Training EAGLE-3's draft model on its own outputs, as it will draft (Li et al., arXiv 2503.01840, section 3).

The training-time test: a first step reads the target's features at all positions, every further one the outputs of the
step before, each behind its own, with the text's true tokens. Nothing is said of what the outputs should be, only of
the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.binder import file_hashes
from bench.settings import Model, Text
from bench.train import loop
from bench.train.eagle import initialise, layer_config
from bench.train.loss import Picked, Sums, Target, cross_entropy, final_states
from bench.train.packing import Row
from bench.train.source import ModelSource, Started, frequent, read_data
from methods.draft_vocabulary import OFFSETS, offsets
from methods.eagle3 import Eagle3Model
from methods.eagle3_formats import KEPT, Shape, default_taps, empty_weights, published, read_shape, read_weights
from methods.engine.attention import Mask
from methods.engine.config import published_config
from methods.engine.kv_cache import KVCache
from methods.engine.llama import Llama, Taps
from methods.engine.unit import Rows
from methods.errors import UserError

DISCOUNT = 0.8  # weight of step j is DISCOUNT**j


class Steps(KVCache):
    """Keys and values of all steps of a row. Gradients flow through them, so nothing is written in place."""

    def __init__(self) -> None:
        self.lengths = [0]
        self._parts: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As KVCache does."""
        self._parts.append((keys.transpose(0, 1), values.transpose(0, 1)))
        self.lengths = [self.lengths[0] + len(keys)]
        all_keys, all_values = zip(*self._parts, strict=True)
        return torch.cat(all_keys, 1), torch.cat(all_values, 1)


@dataclass(frozen=True)
class Diagonal:
    """Attention of the m rows of a step behind the first: to keys of the first, and to their own of every later one.

    As a mask over all keys it would be mostly empty. added [m, n]: 0 for keys of the first step that a row sees, -inf
    for others. Keys and values [kv_heads, n + j * m, head_dim] are those of `Steps`.
    """

    added: Tensor

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[m, heads, head_dim] -> [m, heads * head_dim]."""
        rows, first = self.added.shape
        query = query.unflatten(1, (len(keys), -1)).permute(1, 2, 0, 3) * query.shape[-1] ** -0.5
        early, own = _parted(keys, first, rows)
        seen = (query.flatten(1, 2) @ early.transpose(1, 2)).unflatten(1, (-1, rows)).float() + self.added
        itself = (query[:, :, None] * own).sum(-1).float().transpose(2, 3)  # [kv_heads, groups, m, j]
        shares = torch.cat((seen, itself), -1).softmax(-1)
        early, own = _parted(values, first, rows)
        said = (shares[..., :first].flatten(1, 2) @ early).unflatten(1, (-1, rows))
        said = said + (shares[..., first:].transpose(2, 3)[..., None] * own).sum(2)
        return said.permute(2, 0, 1, 3).reshape(rows, -1)


def _parted(slots: Tensor, first: int, rows: int) -> tuple[Tensor, Tensor]:
    """[kv_heads, first + j * rows, head_dim] -> the first ones, and the others as [kv_heads, 1, j, rows, head_dim]."""
    return slots[:, :first], slots[:, first:].unflatten(1, (-1, rows))[:, None]


class Unrolled(nn.Module):
    """A draft model beside a frozen target: a Row in, the discounted cross-entropies of all steps out."""

    def __init__(self, draft: Eagle3Model, *, unrolls: int, chunk: int) -> None:
        super().__init__()
        self.target, self.draft, self.unrolls, self.chunk = draft.target, draft, unrolls, chunk
        self.weights = loop.parameters(draft.weights)

    def forward(self, row: Row) -> Sums:
        """Loss: sum over steps of 0.8^j times the cross-entropy to what the target says of its tokens, renormalised
        over the draft vocabulary, where its best is in it. Agreement and overlap: mean over the steps.
        """
        tapped, final = self.states(row)
        known, parts = row.predicting(), []
        target = Target(final[known], self.target.weights.lm_head.weight, self.draft.vocabulary).kept(self.chunk)
        for step, (rows, outputs) in enumerate(self.outputs(row, tapped)):
            at = places(row, step)
            drafted = self.draft.head_input(outputs[torch.searchsorted(rows, at)])
            says = Picked(target, torch.searchsorted(known, at + 1 + step))
            parts.append(cross_entropy(drafted, self.draft.weights.lm_head.weight, says, chunk=self.chunk))
        return Sums.of_parts(parts, [DISCOUNT**step for step in range(len(parts))])

    def states(self, row: Row) -> tuple[tuple[Tensor, ...], Tensor]:
        """The target's: before each tap, and after the final norm, [n, hidden] each."""
        taps = Taps(self.draft.taps)
        final = final_states(self.target, row, taps)
        return tuple(states.float() for states in taps.collected()), final

    def outputs(self, row: Row, tapped: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each step, the rows t [m] that it runs on, and their outputs [m, hidden]: of the pairs up to t, and of as
        many true tokens behind them as there were steps before.

        Later steps are for what draws a loss: nobody else sees their rows. A row whose token lies beyond its
        conversation gets some other token, for the same reason.
        """
        draft, cache, device = self.draft, Steps(), row.tokens.device
        states, rows = draft.features(tapped), torch.arange(len(row.tokens), device=device)
        sees: Mask = row.lengths
        for step in range(self.unrolls):
            if step == 1:
                kept = torch.cat([places(row, later) for later in range(1, self.unrolls)]).unique()
                hidden = (row.segments[kept, None] != row.segments) | (kept[:, None] < rows)
                sees = Diagonal(torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf))
                states, rows = states[kept], kept
            positions = (row.positions[rows] + step).clamp(max=draft.config.context - 1)
            states = draft.run(row.tokens.roll(-1 - step)[rows], states, Rows.of(positions, cache, sees))
            yield rows, states


def places(row: Row, step: int) -> Tensor:
    """Rows t [m] whose output of step j should predict a token of the assistant: that of t + 2 + j."""
    wanted = row.predicting()  # states that the target predicts such a token from
    wanted = wanted[row.positions[wanted] > step]  # the pairs of a conversation begin with its first token
    return wanted - 1 - step


def build_draft(target: Llama, vocabulary: Tensor | None, seed: int) -> Eagle3Model:
    """A fresh draft model in float32, whose norm and head are the target's own. Raises UserError for a tiny target."""
    taps, layers = default_taps(target.config.num_layers), target.config.num_layers
    if min(taps) < 0 or max(taps) > layers:
        raise UserError(f"model: EAGLE-3 reads the target before the layers {list(taps)}, this one has {layers}")
    rows = target.weights.lm_head.weight if vocabulary is None else target.weights.lm_head.weight[vocabulary]
    shape = Shape(layer=layer_config(target), width=target.config.hidden_size, taps=taps, draft_vocab=len(rows))
    weights = empty_weights(shape, torch.float32, target.device)
    initialise(published(shape, weights), seed)
    weights.lm_head.weight.copy_(rows)
    weights.norm.copy_(target.weights.norm)
    return Eagle3Model(target, shape, weights, vocabulary)


def trained_draft(folder: Path, target: Llama, draft_vocab: int | None) -> Eagle3Model:
    """A draft model to go on from, in float32, with the vocabulary that it has.

    Raises UserError for one that does not fit, or that `write` could not write.
    """
    shape = read_shape(folder, target)
    weights, vocabulary, embedding = read_weights(folder, shape, target, torch.float32)
    width, taps = target.config.hidden_size, default_taps(target.config.num_layers)
    ours = Shape(layer=shape.layer, width=width, taps=taps, draft_vocab=shape.draft_vocab)
    if shape != ours or embedding is not None:
        raise UserError(f"train.start_from={folder}: is not as the authors' draft models are, and could not be written")
    if draft_vocab not in (None, shape.draft_vocab):
        raise UserError(f"train.draft_vocab={draft_vocab}: the head in train.start_from has {shape.draft_vocab} tokens")
    return Eagle3Model(target, shape, weights, vocabulary)


def write(folder: Path, draft: Eagle3Model, dtype: torch.dtype) -> None:
    """config.json and pytorch_model.bin as the authors publish them."""
    config = published_config(replace(draft.config, dtype=str(dtype).removeprefix("torch.")))
    config |= {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": draft.shape.draft_vocab}
    tensors = loop.stored(published(draft.shape, draft.weights), dtype)
    if draft.vocabulary is not None:
        kept = torch.zeros(draft.config.vocab_size, dtype=torch.bool, device=draft.vocabulary.device)
        kept[draft.vocabulary] = True
        tensors |= loop.stored({OFFSETS: offsets(draft.vocabulary), KEPT: kept}, dtype)
    loop.write_draft(folder / "pytorch_model.bin", tensors, config)


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    unrolls: int,
    draft_vocab: int | None,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
    start_from: Started | None = None,
) -> list[loop.Point]:
    """Train a draft model and write it to `output`. Raises UserError for settings or data that do not fit."""
    if unrolls < 1:
        raise UserError(f"train.unrolls={unrolls}: must be at least 1")
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    if start_from is None:
        draft = build_draft(source.target, frequent(examples, draft_vocab, source.target), seed)
    else:
        draft = trained_draft(start_from, source.target, draft_vocab)
    job = loop.Job(
        title=f"EAGLE-3 draft model for {source.name}",
        module=Unrolled(draft, unrolls=unrolls, chunk=loop_settings.chunk),
        write=lambda folder: write(folder, draft, dtype),
        identity={
            "method": "eagle3",
            "unrolls": unrolls,
            "draft_vocab": draft_vocab,
            **source.identity(dtype),
            **({} if start_from is None else {"start_from": file_hashes(start_from)}),
        },
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
