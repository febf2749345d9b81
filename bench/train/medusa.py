"""Training Medusa's heads (Medusa-1): head k learns the token k places after the next one, the target stays frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.files import replace_tensors, replace_text
from bench.settings import Model, Text
from bench.train import loop
from bench.train.loss import Sums, Target, cross_entropy, final_states
from bench.train.packing import Row
from bench.train.source import ModelSource, frequent, read_data
from methods.draft_vocabulary import OFFSETS, offsets
from methods.engine.llama import Llama
from methods.errors import UserError
from methods.medusa import MOST_HEADS, Heads
from methods.trees import CALIBRATION

DISCOUNT = 0.8  # weight of head k is DISCOUNT**k
RANKS = 10  # choices a head's accuracy is measured for


def build_heads(target: Llama, count: int, vocabulary: Tensor | None = None) -> Heads:
    """`count` heads that start as the target's own: residual 0, the LM head's rows of a vocabulary. Float32."""
    rows = target.weights.lm_head.weight if vocabulary is None else target.weights.lm_head.weight[vocabulary]
    heads = Heads(count, hidden=rows.shape[1], vocab=len(rows)).to_empty(device=target.device)
    heads.vocabulary = vocabulary
    with torch.no_grad():
        for name, parameter in heads.named_parameters():
            if name.endswith(".1.weight"):
                parameter.copy_(rows)
            else:
                parameter.zero_()
    return heads


@dataclass(frozen=True)
class Places:
    """Where head k (1, 2, ...) is trained: states at `at`, the token it should predict at `wanted`."""

    head: int
    at: Tensor  # [m]
    wanted: Tensor  # [m]


def places(row: Row, heads: int) -> Iterator[Places]:
    """For each head the positions whose token k + 1 ahead belongs to the same answer as the next one."""
    change = row.assistant[1:] != row.assistant[:-1]
    change |= row.segments[1:] != row.segments[:-1]
    answer = torch.cat((change.new_zeros(1), change)).cumsum(0)
    start = row.predicting()
    for head in range(1, heads + 1):
        at = start[start + 1 + head < len(row.tokens)]
        at = at[answer[at + 1 + head] == answer[at + 1]]
        yield Places(head, at, at + 1 + head)


class HeadTraining(nn.Module):
    """Heads over a frozen target: a Row in, the discounted cross-entropies of all heads out."""

    def __init__(self, target: Llama, heads: Heads, *, chunk: int) -> None:
        super().__init__()
        self.target, self.heads, self.chunk = target, heads, chunk

    def forward(self, row: Row) -> Sums:
        """Loss: sum over heads of 0.8^k times the cross-entropy; agreement and overlap: mean over the heads."""
        final = final_states(self.target, row)
        lm_head = self.target.weights.lm_head.weight
        parts = []
        for place in places(row, len(self.heads)):
            block, linear = cast(nn.Sequential, self.heads[place.head - 1])
            # by the state from which the target itself predicts the wanted token
            says = Target(final[place.wanted - 1], lm_head, self.heads.vocabulary)
            labels = says.places(row.tokens[place.wanted])
            drafted, weight = block(final[place.at].float()), cast(Tensor, linear.weight)
            sums = cross_entropy(drafted, weight, says, labels=labels, chunk=self.chunk)
            parts.append(sums)
        return Sums.of_parts(parts, [DISCOUNT**head for head in range(1, 1 + len(parts))])


@torch.no_grad()
def head_accuracies(training: HeadTraining, rows: list[Row]) -> list[list[float]]:
    """Share of positions where the r-th choice of head k is what the target itself would say there: [head][rank].

    Heads for which `rows` have no position, always the last ones, are missing.
    """
    count, vocabulary = len(training.heads), training.heads.vocabulary
    ranks = RANKS if vocabulary is None else min(RANKS, len(vocabulary))
    hits = torch.zeros(count, ranks, dtype=torch.float64)
    totals = torch.zeros(count, dtype=torch.float64)
    for row in rows:
        final = final_states(training.target, row)
        for place in places(row, count):
            block, linear = cast(nn.Sequential, training.heads[place.head - 1])
            for at, before in zip(
                place.at.split(training.chunk), (place.wanted - 1).split(training.chunk), strict=True
            ):
                said = training.target.lm_head(final[before]).argmax(-1)
                choices = linear(block(final[at].float())).topk(ranks).indices
                choices = choices if vocabulary is None else vocabulary[choices]
                hits[place.head - 1] += (choices == said[:, None]).sum(0).double().cpu()
            totals[place.head - 1] += len(place.at)
    measured = totals > 0
    return (hits[measured] / totals[measured, None]).tolist()


def write(folder: Path, heads: Heads, *, base: str, dtype: torch.dtype, accuracies: list[list[float]]) -> None:
    """config.json and medusa_lm_head.pt as published, and, where any were measured, the heads' accuracies."""
    config: dict[str, Any] = {"medusa_num_heads": len(heads), "medusa_num_layers": 1, "base_model_name_or_path": base}
    tensors = loop.stored(heads.state_dict(), dtype)
    if heads.vocabulary is not None:
        config["draft_vocab_size"] = len(heads.vocabulary)
        tensors |= loop.stored({OFFSETS: offsets(heads.vocabulary)}, dtype)
    replace_tensors(folder / "medusa_lm_head.pt", tensors)
    texts: dict[str, Any] = {"config.json": config}
    if accuracies:
        texts[CALIBRATION] = {"accuracies": [[round(a, 5) for a in row] for row in accuracies]}
    else:
        (folder / CALIBRATION).unlink(missing_ok=True)  # of other heads
    for name, content in texts.items():
        replace_text(folder / name, json.dumps(content, indent=1) + "\n")


def train(
    *,
    model: Model,
    data: Text,
    loop_settings: loop.Settings,
    heads: int,
    draft_vocab: int | None,
    output: str,
    save_dtype: str,
    seed: int,
    resume: bool,
) -> list[loop.Point]:
    """Train Medusa heads for a model and write them to `output`. Raises UserError for settings that do not fit."""
    if not 1 <= heads <= MOST_HEADS:
        raise UserError(f"train.heads={heads}: must be at least 1, and at most {MOST_HEADS}")
    accelerate = loop.accelerator(loop_settings.mixed_precision, model.device)
    source = ModelSource.load(model, accelerate.device)
    examples = read_data(data, source, loop_settings.length, seed, accelerate.print)
    modules = build_heads(source.target, heads, frequent(examples, draft_vocab, source.target))
    dtype = loop.saved_dtype(save_dtype, source.target.config.dtype)
    training = HeadTraining(source.target, modules, chunk=loop_settings.chunk)

    def save(folder: Path) -> None:
        accuracies = head_accuracies(training, loop.held_out_rows(examples, loop_settings, source.target.device))
        if len(accuracies) < heads:
            found = f"{CALIBRATION} is for {len(accuracies)} of {heads} heads" if accuracies else f"no {CALIBRATION}"
            accelerate.print(f"data.held_out={data.held_out}: too little text to measure all heads; {found}")
        write(folder, modules, base=model.path, dtype=dtype, accuracies=accuracies)

    job = loop.Job(
        title=f"Medusa heads for {source.name}",
        module=training,
        write=save,
        identity={"method": "medusa", "heads": heads, "draft_vocab": draft_vocab, **source.identity(dtype)},
        output=Path(output),
    )
    return loop.fit(job, examples, loop_settings, accelerate, seed=seed, resume=resume)
